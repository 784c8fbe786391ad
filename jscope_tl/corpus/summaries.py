"""Summaries of a run: scores by distance, position, token and word class. Each takes one pass over the files of the run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from jscope_tl.corpus.dataset import CorpusRun
from jscope_tl.corpus.passes import SINGLES, Counts, labels_of, made, one_pass, place_of, rows_of_means, to_edges
from jscope_tl.corpus.summary import EVEN, Summary
from jscope_tl.corpus.tokens import Tokens
from jscope_tl.errors import InputError, count

LEAST = 5
"""The fewest prompts that must have a token for it to be listed."""
OTHER = "other"


def by_distance(run: CorpusRun, *, edges: Sequence[int] | None = None, off_scale: bool = False) -> Summary:
    """Influence by the distance of a token from the explained position; 0 is the token at the explained position.

    Args:
        run: a run, from `jscope_tl.corpus.open`.
        edges: the first distance of each row, increasing from 0. None: every distance up to 15, then 16 to 31, 32 to 63, ...
        off_scale: whether BOS, and a first token that is an attention sink, are counted.

    Raises:
        InputError: ``edges`` are not increasing whole numbers from 0, or no row has scores.

    Example:
        >>> import tempfile
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), [prompt.text for prompt in js.pocket_prompts("agreement", 8)]
        >>> run = js.corpus.run(model, prompts, tempfile.mkdtemp(), "temperature", progress=False)
        >>> js.corpus.by_distance(run).rows[0].name
        '0'
    """
    return _by_place(run, "distance", edges, off_scale)


def by_position(run: CorpusRun, *, edges: Sequence[int] | None = None, off_scale: bool = True) -> Summary:
    """Influence by the position of a token in the prompt, which shows the scores of attention sinks.

    Args:
        run: a run, from `jscope_tl.corpus.open`.
        edges: the first position of each row, increasing from 0: ``[0, 5]`` gives one row for the first five tokens and one for all
            others. None: every position up to 7, then 8 to 15, 16 to 31, ...
        off_scale: whether BOS, and a first token that is an attention sink, are counted. By default they are counted here.

    Raises:
        InputError: ``edges`` are not increasing whole numbers from 0, or no row has scores.
    """
    return _by_place(run, "position", edges, off_scale)


def _by_place(run: Any, by: str, edges: Sequence[int] | None, off_scale: bool) -> Summary:
    names, counts = labels_of(to_edges(edges, SINGLES[by])), Counts(run, off_scale)
    means = one_pass(run, counts, lambda batch, tokens: place_of(tokens, by, edges))
    return made(run, by, rows_of_means(means, names), counts)


def by_token(run: CorpusRun, *, least: int = LEAST, chance: str = EVEN, off_scale: bool = False) -> Summary:
    """Influence by token of the vocabulary, ranked by the lower limit of the interval of ``ratio``.

    Args:
        run: a run, from `jscope_tl.corpus.open`.
        least: the fewest prompts that must have a token for it to be listed, 2 or more.
        chance: the expected score that corresponds to a ``ratio`` of 1: ``"even"``, the mean score of the prompt; ``"distance"`` (or
            ``"position"``), the average score of tokens at the same distance from the prediction (or position) in this run, which corrects
            for tokens that are mostly near the end.
        off_scale: whether BOS, and a first token that is an attention sink, are counted.

    Raises:
        InputError: ``least`` is not 2 or more, ``chance`` is unknown, or no row has scores.
    """
    least, counts = count("least", least, 2), Counts(run, off_scale, chance)
    texts: dict[int, str] = {}

    def category(batch: pa.RecordBatch, tokens: Tokens) -> Int[np.ndarray, "n"]:
        return ids_of_tokens(batch, tokens, texts)

    means = one_pass(run, counts, category)
    rare = int(((means.n > 0) & (means.n < least)).sum())
    notes = [f"tokens not listed because they are in fewer than {least} prompts: {rare}"] if rare else []
    names = {token: repr(text) for token, text in texts.items() if means.n[token] >= least}
    return made(run, "token", rows_of_means(means, names, ranked=True), counts, notes)


def by_class(run: CorpusRun, classes: Any, *, chance: str = EVEN, off_scale: bool = False) -> Summary:
    """Influence by class of words, ranked by the lower limit of the interval of ``ratio``.

    Args:
        run: a run, from `jscope_tl.corpus.open`.
        classes: the class of each token by its text, as a mapping or a function. In a mapping, the text is looked up as it is, and if it
            is missing, without surrounding spaces and in lower case. A function is called once for each text. Tokens without a class (or
            with None) are ``"other"``. In a word of several tokens, each token is classified by itself.
        chance: the expected score that corresponds to a ``ratio`` of 1: ``"even"``, the mean score of the prompt; ``"distance"`` (or
            ``"position"``), the average score of tokens at the same distance from the prediction (or position) in this run, which corrects
            for tokens that are mostly near the end.
        off_scale: whether BOS, and a first token that is an attention sink, are counted.

    Raises:
        InputError: ``classes`` is neither a mapping nor a function or gives anything but strings, ``chance`` is unknown, or no row has
            scores.

    Example:
        >>> import tempfile
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), [prompt.text for prompt in js.pocket_prompts("agreement", 8)]
        >>> run = js.corpus.run(model, prompts, tempfile.mkdtemp(), "temperature", progress=False)
        >>> sorted(row.name for row in js.corpus.by_class(run, {"the": "article", "a": "article"}).rows)
        ['article', 'other']
    """
    class_of, counts = _class_function(classes), Counts(run, off_scale, chance)
    numbers: dict[str, int] = {}
    known: dict[str, int] = {}

    def category(batch: pa.RecordBatch, tokens: Tokens) -> Int[np.ndarray, "n"]:
        texts = _texts_of(batch, tokens)
        for text in texts.dictionary.to_pylist():
            if text not in known:
                known[text] = numbers.setdefault(class_of(text), len(numbers))
        each = np.array([known[text] for text in texts.dictionary.to_pylist()], dtype=np.int64)
        return each[texts.indices.to_numpy()]

    means = one_pass(run, counts, category)
    return made(run, "class", rows_of_means(means, {n: name for name, n in numbers.items()}, ranked=True), counts)


def _texts_of(batch: pa.RecordBatch, tokens: Tokens) -> pa.DictionaryArray:
    """The text of each counted token."""
    return pc.list_flatten(batch.column("str_tokens")).take(pa.array(tokens.place)).dictionary_encode()


def ids_of_tokens(batch: pa.RecordBatch, tokens: Tokens, texts: dict[int, str]) -> Int[np.ndarray, "n"]:
    """The id of each counted token; the text of each id is added to ``texts``."""
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
            raise InputError(f"The class of a token must be a string or None; for {text!r} it is {name!r}.")
        return OTHER if name is None else name

    return checked
