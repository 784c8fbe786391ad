"""Where the influence lies: by distance, position, token, word class, and by target; one pass over the files of a run each."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from jscope_tl.corpus.dataset import CorpusRun
from jscope_tl.corpus.means import Means
from jscope_tl.corpus.summary import Summary, SummaryRow, need_rows_left
from jscope_tl.corpus.tokens import COLUMNS, Tokens, tokens_of
from jscope_tl.errors import InputError, count, whole
from jscope_tl.faithfulness.results import Mean

LEAST = 5
"""Prompts that a token must stand in to be listed."""
OTHER = "other"
Categories = Callable[[pa.RecordBatch, Tokens], Int[np.ndarray, "n"]]
"""From a batch and its tokens to the category of each; below 0 for none."""


def by_distance(run: CorpusRun, *, edges: Sequence[int] | None = None, off_scale: bool = False) -> Summary:
    """Influence by how far before the explained position a token stands; 0 is the token there itself.

    Args:
        run: of `jscope_tl.corpus.open`.
        edges: the first distance of each row, from 0 on, rising. None: every distance up to 15, then 16 to 31, 32 to 63, ...
        off_scale: whether BOS, and a first token that is an attention sink, are counted.

    Raises:
        InputError: the edges are not such, or no row has scores.

    Example:
        >>> import tempfile
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), [prompt.text for prompt in js.pocket_prompts("agreement", 8)]
        >>> run = js.corpus.run(model, prompts, tempfile.mkdtemp(), "temperature", progress=False)
        >>> js.corpus.by_distance(run).rows[0].name
        '0'
    """
    limits = _edges(edges, 16)
    means, counts = _pass(run, off_scale, lambda batch, tokens: np.searchsorted(limits, tokens.distance, "right") - 1)
    return _summary(run, "distance", _labels(limits), means, counts, off_scale)


def by_position(run: CorpusRun, *, edges: Sequence[int] | None = None, off_scale: bool = True) -> Summary:
    """Influence by position from the beginning of the prompt: how much attention sinks have.

    Args:
        run: of `jscope_tl.corpus.open`.
        edges: the first position of each row, from 0 on, rising: ``[0, 5]`` is the first five tokens and all others. None: every
            position up to 7, then 8 to 15, 16 to 31, ...
        off_scale: whether BOS, and a first token that is an attention sink, are counted; here they are the question.

    Raises:
        InputError: the edges are not such, or no row has scores.
    """
    limits = _edges(edges, 8)
    means, counts = _pass(run, off_scale, lambda batch, tokens: np.searchsorted(limits, tokens.position, "right") - 1)
    return _summary(run, "position", _labels(limits), means, counts, off_scale)


def by_token(run: CorpusRun, *, least: int = LEAST, off_scale: bool = False) -> Summary:
    """Influence by token of the vocabulary, ranked by the lower limit of the interval of ``ratio``: what is surely high first.

    Args:
        run: of `jscope_tl.corpus.open`.
        least: prompts that a token must stand in to be listed, 2 or more.
        off_scale: whether BOS, and a first token that is an attention sink, are counted.

    Raises:
        InputError: ``least`` is not 2 or more, or no row has scores.
    """
    least = count("least", least, 2)
    texts: dict[int, str] = {}

    def category(batch: pa.RecordBatch, tokens: Tokens) -> Int[np.ndarray, "n"]:
        return ids_of_tokens(batch, tokens, texts)

    means, counts = _pass(run, off_scale, category)
    rare = int(((means.n > 0) & (means.n < least)).sum())
    notes = [f"tokens not listed because they stand in fewer than {least} prompts: {rare}"] if rare else []
    names = {token: repr(text) for token, text in texts.items() if means.n[token] >= least}
    return _summary(run, "token", names, means, counts, off_scale, notes, ranked=True)


def by_class(run: CorpusRun, classes: Any, *, off_scale: bool = False) -> Summary:
    """Influence by class of words, strongest class first.

    Args:
        run: of `jscope_tl.corpus.open`.
        classes: from the text of a token to its class: a mapping, in which a token is looked up as it is, and if it is not there
            without its surrounding spaces and in small letters; or a function, asked once for each text. What has no class (or None)
            is ``"other"``. A word of several tokens has the classes of its parts.
        off_scale: whether BOS, and a first token that is an attention sink, are counted.

    Raises:
        InputError: ``classes`` is neither, or holds anything but texts, or no row has scores.

    Example:
        >>> import tempfile
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), [prompt.text for prompt in js.pocket_prompts("agreement", 8)]
        >>> run = js.corpus.run(model, prompts, tempfile.mkdtemp(), "temperature", progress=False)
        >>> {row.name for row in js.corpus.by_class(run, {"the": "article", "a": "article"}).rows}
        {'article', 'other'}
    """
    class_of = _class_function(classes)
    numbers: dict[str, int] = {}
    known: dict[str, int] = {}

    def category(batch: pa.RecordBatch, tokens: Tokens) -> Int[np.ndarray, "n"]:
        texts = _texts_of(batch, tokens)
        for text in texts.dictionary.to_pylist():
            if text not in known:
                known[text] = numbers.setdefault(class_of(text), len(numbers))
        each = np.array([known[text] for text in texts.dictionary.to_pylist()], dtype=np.int64)
        return each[texts.indices.to_numpy()]

    means, counts = _pass(run, off_scale, category)
    return _summary(run, "class", {n: name for name, n in numbers.items()}, means, counts, off_scale, ranked=True)


class Counts:
    """How many prompts were counted and left out."""

    def __init__(self) -> None:
        self.n = self.n_errors = self.n_empty = 0

    def count(self, batch: pa.RecordBatch, off_scale: bool) -> Tokens:
        """The tokens of a batch, which is counted."""
        tokens = tokens_of(batch, off_scale)
        self.n += tokens.n_rows
        self.n_empty += tokens.n_empty
        self.n_errors += batch.num_rows - batch.column("error").null_count
        return tokens


def need_run(run: Any) -> None:
    """Refuse what is no run."""
    if not isinstance(run, CorpusRun):
        raise InputError(f"A summary is of a run, as js.corpus.open(folder) gives it; got a {type(run).__name__}.")


def _pass(run: Any, off_scale: bool, category: Categories) -> tuple[Means, Counts]:
    need_run(run)
    means, counts = Means(4), Counts()
    for batch in run.batches(COLUMNS):
        tokens = counts.count(batch, off_scale)
        means.add_tokens(category(batch, tokens), tokens)
    need_rows_left(counts.n, counts.n_errors, repr(str(run.folder)))
    return means, counts


def _summary(
    run: CorpusRun, by: str, names: Mapping[int, str], means: Means, counts: Counts, off_scale: bool,
    notes: Sequence[str] = (), ranked: bool = False,
) -> Summary:  # fmt: skip
    return made(run, by, tuple(rows_of_means(means, names, ranked)), counts, off_scale, notes)


def made(
    run: CorpusRun, by: str, rows: tuple[SummaryRow, ...], counts: Counts, off_scale: bool, notes: Sequence[str]
) -> Summary:
    return Summary(
        by=by, rows=rows, n=counts.n, n_errors=counts.n_errors, n_empty=counts.n_empty, off_scale=off_scale, scope=run.scope,
        model=run.model, unit=run.unit, notes=[*(one.said for one in run.filters), *notes],
    )  # fmt: skip


def rows_of_means(means: Means, names: Mapping[int, str], ranked: bool, group: str = "") -> list[SummaryRow]:
    rows = [
        SummaryRow(
            name=name, n_tokens=int(means.n_tokens[i]), share=means.mean(i, 0), even=means.mean(i, 1).mean, ratio=means.mean(i, 2),
            top=means.mean(i, 3).mean, group=group,
        )
        for i, name in names.items()
        if i < len(means.n) and means.n[i] > 0
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -_sure(row.ratio)) if ranked else rows


def _sure(ratio: Mean) -> float:
    return ratio.low if ratio.n > 1 else -np.inf


def _edges(edges: Sequence[int] | None, singles: int) -> Int[np.ndarray, "row"]:
    if edges is None:
        return np.array([*range(singles), *(singles * 2**i for i in range(32))])
    given = [whole(edge) for edge in edges]
    if None in given or given[:1] != [0] or any(b <= a for a, b in pairwise(given)):  # type: ignore[operator]
        raise InputError(f"edges are rising whole numbers from 0 on, the first of each row; got {edges!r}.")
    return np.array(given)


def _labels(edges: Int[np.ndarray, "row"]) -> dict[int, str]:
    firsts = edges.tolist()
    names = [str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in pairwise(firsts)]
    return dict(enumerate([*names, f"{firsts[-1]} and more"]))


def _texts_of(batch: pa.RecordBatch, tokens: Tokens) -> pa.DictionaryArray:
    """The text of each counted token."""
    return pc.list_flatten(batch.column("str_tokens")).take(pa.array(tokens.place)).dictionary_encode()


def ids_of_tokens(batch: pa.RecordBatch, tokens: Tokens, texts: dict[int, str]) -> Int[np.ndarray, "n"]:
    """The id of each counted token; its text is put into ``texts``."""
    flat = pc.list_flatten(batch.column("tokens")).to_numpy(zero_copy_only=False).astype(np.int64)
    ids = flat[tokens.place]
    new, first = np.unique(ids, return_index=True)
    column = pc.list_flatten(batch.column("str_tokens"))
    for token, place in zip(new.tolist(), first.tolist(), strict=True):
        if token not in texts:
            texts[token] = column[int(tokens.place[place])].as_py()
    return ids


def _class_function(classes: Any) -> Callable[[str], str]:
    if isinstance(classes, Mapping):

        def found(text: str) -> Any:
            return classes.get(text, classes.get(text.strip().lower()))
    elif callable(classes):
        found = classes
    else:
        raise InputError(f"classes is a mapping from tokens to classes, or a function; got a {type(classes).__name__}.")

    def checked(text: str) -> str:
        name = found(text)
        if name is not None and not isinstance(name, str):
            raise InputError(f"The class of a token is a text, or None; of {text!r} it is {name!r}.")
        return OTHER if name is None else name

    return checked
