"""`run_corpus`: explain many prompts and write the results while it runs; the same call resumes an interrupted run."""

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
"""The time after which finished rows are written, which is the most that a killed process loses."""


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
    gradient: str | Rules | None = None,
    frozen: str | Sequence[str] = (),
    batch_tokens: int | None = None,
    part_rows: int = PART_ROWS,
    engine: str | Ray = "local",
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> CorpusRun:
    """Explain many prompts, and write one row for each to Parquet files in a folder. The same call again resumes an interrupted run.

    Prompts of similar length share a forward and a backward pass if the scope is additive (all but ``fisher``, ``fisher_input`` and
    ``spectral``; not ``"explain"``). The row of a prompt that cannot be explained has the error. Rows are written in parts, each
    completely or not at all: a process that is killed loses at most the work of the last minute.

    Args:
        prompts: a file, ``.txt`` (one prompt per line), ``.jsonl``, ``.parquet`` or ``.csv``; a `datasets` object; or any iterable of
            strings, lists of ids, chats and mappings. Columns, or keys, are ``prompt`` (or ``text``), ``messages`` (a chat) or ``tokens``;
            ``id`` (by default the number of the line, counted from 0); and ``target``, ``baseline`` and ``position`` for this prompt. All
            other columns are copied to the row's ``carried``, as are targets if the scope has no target.
        scope: the name of a registered scope, with its options as further keywords; a scope object; a function that maps the `State` to
            cotangents; or ``"explain"``: `jscope_tl.explain`, with ``target``, ``baseline`` and ``n``, which runs prompt by prompt.
        folder: the folder of the run, which is created if it does not exist. A run in it is resumed if its settings are the same.
        column: the name of the column with the prompts, if it is another one.
        shard: ``"2/8"`` or ``(2, 8)``: this process explains every eighth line, starting with the third; the processes of all shards
            write to the same folder.
        at: the residual-stream hook point whose activation ``x`` the scores refer to, or ``"pattern"``.
        gradient: as in `jscope_tl.attribute`; None: ``"plain"`` for scopes, ``"attnlrp"`` for ``"explain"``.
        chat_template: a chat template to use instead of the tokenizer's default: its name in the tokenizer, or its text.
        batch_tokens: the number of tokens in one pass, including padding; by default as many as fit into memory, at most 512 on a CPU.
        part_rows: the number of rows of a part. A part is also written after a minute.
        engine: ``"local"``: this process; ``"ray"`` or a `jscope_tl.corpus.Ray`: many machines. With Ray, ``model`` is a name, a folder,
            or a function that loads the model, which every worker calls.
        progress: a progress bar over prompts always (True), never (False), or if the call takes more than a second (None).
        {shared}

    Returns:
        The rows as a `CorpusRun`, as `jscope_tl.corpus.open` returns it.

    Raises:
        InputError: prompts, a scope or settings that cannot be used; a folder with a run of other settings, whose differences are
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
    """Explain the prompts that have no row yet."""
    done, parts = ids_done(folder), Parts(folder, shard.label, part_rows, PART_SECONDS)
    parts.number = next_number(folder, shard.label)
    bar = progress_bar(progress, "prompts", "prompt", total=shard.size(prompts.total))

    def left() -> Iterator[Line]:
        for line in prompts.lines():
            if shard.has(line.n):
                if line.id not in done:
                    yield line
                elif not bar.disable:
                    bar.initial += 1  # does not count for the estimate of the remaining time
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
