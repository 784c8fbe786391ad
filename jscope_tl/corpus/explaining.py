"""`run_corpus`: many prompts explained, written as they come, resumed by the same call."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as File
from typing import Any

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.paths import Path
from jscope_tl.corpus.batching import Budget, Explaining
from jscope_tl.corpus.dataset import CorpusRun, open_run
from jscope_tl.corpus.folder import held
from jscope_tl.corpus.on_ray import Ray, run_on_ray, to_engine
from jscope_tl.corpus.parts import Parts, ids_done, next_number
from jscope_tl.corpus.prompts import Line, Prompts, read_prompts
from jscope_tl.corpus.questions import Asked
from jscope_tl.corpus.settings import settings_of
from jscope_tl.corpus.shards import Shard, to_shard
from jscope_tl.engine.inputs import Reduction
from jscope_tl.engine.progress import progress_bar
from jscope_tl.engine.rules import Rules
from jscope_tl.errors import count
from jscope_tl.scopes.base import Scope

PART_ROWS = 512
PART_SECONDS = 60.0
"""After which what there is is written: what a process that is killed loses at most."""


@documented
def run_corpus(
    model: Any,
    prompts: Any,
    folder: str | File,
    scope: str | Scope | Callable[..., Any] = "temperature",
    *,
    column: str | None = None,
    shard: str | tuple[int, int] | None = None,
    position: int = -1,
    at: str | Sequence[str] = "hook_embed",
    prepend_bos: bool | None = None,
    chat_template: str | None = None,
    reduction: str | Reduction | None = None,
    path: str | Path | None = None,
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    batch_tokens: int | None = None,
    part_rows: int = PART_ROWS,
    engine: str | Ray = "local",
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> CorpusRun:
    """Explain many prompts, one row each, in the Parquet files of a folder. The same call again goes on where it ended.

    Prompts of like length share a forward and a backward pass, where the scope is additive (all but ``fisher``, ``fisher_input`` and
    ``spectral``). A prompt that cannot be explained is a row with its error. Rows are written in parts, each there as a whole or not at
    all: a process that is killed loses what it did in the last minute.

    Args:
        prompts: a file, ``.txt`` (one a line), ``.jsonl``, ``.parquet`` or ``.csv``; a `datasets` object; or any iterable of texts, lists of
            ids, chats and mappings. Columns, or keys: ``prompt`` (or ``text``), ``messages`` (a chat) or ``tokens``; ``id`` (else the number
            of the line, counted from 0); ``target``, ``baseline`` and ``position`` of that prompt; all others are carried along. A target goes to
            the scopes that have one, and is carried along otherwise.
        folder: that the run is in; made where there is none. A run that is there is resumed if its settings are the same.
        column: that holds the prompts, where it has another name.
        shard: ``"2/8"`` or ``(2, 8)``: every eighth line, from the third on, by a process of its own; all write into one folder.
        at: the residual-stream hook point whose activation ``x`` the scores refer to, or ``"pattern"``.
        chat_template: another than the tokenizer's: its name there, or its text.
        batch_tokens: of the prompts in one pass, padding included; by default what fits into memory, at most 512 on a CPU.
        part_rows: rows of a part; it is written earlier after a minute.
        engine: ``"local"``, this process; or ``"ray"`` or `jscope_tl.corpus.Ray`, many machines. There ``model`` is a name, a folder or a
            function that loads the model, which every worker calls.
        progress: a progress bar over prompts always (True), never (False), or where the wait is over a second (None).
        {shared}

    Returns:
        The rows as a data set, as `jscope_tl.corpus.open` gives it.

    Raises:
        InputError: prompts, scope or settings that cannot be used; a folder with a run of other settings, whose differences are
            named; a shard that another process writes; a damaged part; a full disk.

    Example:
        >>> import tempfile
        >>> import jscope_tl as js
        >>> model, folder = js.load_pocket_model(), tempfile.mkdtemp()
        >>> prompts = ["the keys near the door", {"id": "b", "prompt": "the key near the doors", "position": 3}]
        >>> run = js.corpus.run(model, prompts, folder, "temperature")
        >>> [(row.id, row.target_str) for row in run]
        [('0', ' are'), ('b', ' the')]
    """
    settings: dict[str, Any] = {"at": at, "reduction": reduction, "path": path, "gradient": gradient, "frozen": frozen}
    settings |= {"chunk_size": chunk_size, "matmul_precision": matmul_precision}
    asked = Asked(scope, options, settings, position, prepend_bos, chat_template)
    part, cluster = to_shard(shard), to_engine(engine)
    count("part_rows", part_rows, 1)
    budget = Budget(None if batch_tokens is None else count("batch_tokens", batch_tokens, 1))
    if cluster is not None:
        given, where = read_prompts(prompts, column), File(folder).resolve()
        run_on_ray(cluster, model, asked, given, where, part, budget.tokens, part_rows, progress)
        return open_run(where)
    question = asked.of(model)
    given, where = read_prompts(prompts, column), File(folder)
    with held(where, part, settings_of(question, given.known_by)):
        _write(Explaining(question, budget), given, where, part, part_rows, progress)
    return open_run(where)


def _write(
    explaining: Explaining, prompts: Prompts, folder: File, shard: Shard, part_rows: int, progress: bool | None
) -> None:
    """Explain what has no row yet."""
    done, parts = ids_done(folder), Parts(folder, shard.label, part_rows, PART_SECONDS)
    parts.number = next_number(folder, shard.label)
    bar = progress_bar(progress, "prompts", "prompt", total=shard.size(prompts.total))

    def left() -> Iterator[Line]:
        for line in prompts.lines():
            if shard.has(line.n):
                if line.id not in done:
                    yield line
                elif not bar.disable:
                    bar.initial += 1  # of no weight in the time that is left
                    bar.update(1)

    try:
        for n, row in explaining.rows(left()):
            parts.add(n, row)
            bar.update(1)
        parts.flush()
    except KeyboardInterrupt:
        parts.flush()
        raise
    finally:
        bar.close()
