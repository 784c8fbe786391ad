"""The scores of the same prompts in two runs, for each token, or for the shortest stretches of text that are whole tokens in both."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float

from jscope_tl.corpus.dataset import CorpusRun
from jscope_tl.corpus.row import Row, rows_of
from jscope_tl.model.pieces import text_of
from jscope_tl.results.sink import adds_up

FEWEST = 3
"""The fewest tokens or stretches of text for which two runs are compared on a prompt."""
FAILED, OTHER_TEXT, OTHER_PLACE, FEW = (
    "an error in one of them", "another text", "another position explained", f"fewer than {FEWEST} tokens in common or no score above 0",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Pair:
    """One prompt in both runs.

    Attributes:
        id: the id of the prompt.
        a, b: scores of the tokens, or of the stretches of text, up to the explained position, without tokens off the scale (BOS, sinks)
            of either run.
        a_off, b_off: the share of all summed scores that is on tokens off the scale.
        same_tokens: whether both runs have the same tokens.
        same_target: whether both explain a token with the same text.
    """

    id: str
    a: Float[np.ndarray, "n"]
    b: Float[np.ndarray, "n"]
    a_off: float
    b_off: float
    same_tokens: bool
    same_target: bool


def pairs(a: CorpusRun, b: CorpusRun, left_out: Counter[str]) -> Iterator[Pair]:
    """All prompts that are in both runs, in the order of the first. Those that cannot be compared are counted in ``left_out`` by reason."""
    squares = adds_up(a.unit), adds_up(b.unit)
    for batch in a.batches():
        places = pc.index_in(batch.column("id"), value_set=b.ids)
        found = b.at(places.drop_null().to_pylist())
        others = {row.id: row for row in rows_of(found)}
        for row in rows_of(batch):
            if row.id in others:
                pair = _pair(row, others[row.id], squares)
                if isinstance(pair, Pair):
                    yield pair
                else:
                    left_out[pair] += 1


def _pair(a: Row, b: Row, squares: tuple[bool, bool]) -> Pair | str:
    if a.error is not None or b.error is not None:
        return FAILED
    same = (
        a.tokens[: a.seen].tolist() == b.tokens[: b.seen].tolist() and a.str_tokens[: a.seen] == b.str_tokens[: b.seen]
    )
    if same:
        kept = [t for t in range(a.seen) if t not in {*a.off_scale, *b.off_scale}]
        cut = [(t, t + 1) for t in kept], [(t, t + 1) for t in kept]
    else:
        found = _common(a, b)
        if isinstance(found, str):
            return found
        cut = found
    sizes = [_sizes(row, spans, square, squares) for row, spans, square in zip((a, b), cut, squares, strict=True)]
    if len(sizes[0]) < FEWEST or not sizes[0].any() or not sizes[1].any():
        return FEW
    off = [_off(row, square, squares) for row, square in zip((a, b), squares, strict=True)]
    return Pair(a.id, sizes[0], sizes[1], off[0], off[1], same, a.target_str == b.target_str)


def _sizes(row: Row, spans: list[tuple[int, int]], square: bool, squares: tuple[bool, bool]) -> Float[np.ndarray, "n"]:
    """The score of each span: the root of the sum of squared norms, or the sum of scores that are squares. If only one of the runs has
    squares, their roots are taken."""
    powers = row.scores.astype(float) if square else row.scores.astype(float) ** 2
    sums = np.array([powers[start:stop].sum() for start, stop in spans])
    return sums if all(squares) else np.sqrt(sums)


def _off(row: Row, square: bool, squares: tuple[bool, bool]) -> float:
    scores = _sizes(row, [(t, t + 1) for t in range(row.seen)], square, squares)
    off = [t for t in row.off_scale if t < row.seen]
    return float(scores[off].sum() / (scores.sum() or 1.0))


Spans = list[tuple[int, int]]


def _common(a: Row, b: Row) -> tuple[Spans, Spans] | str:
    """Spans of tokens between the boundaries that both tokenizations share, matched from the explained position backwards."""
    (ends_a, text_a), (ends_b, text_b) = (_cuts(row) for row in (a, b))
    shorter, longer = sorted((text_a, text_b), key=len)
    beyond = len(longer) - len(shorter)
    if not shorter or not longer.endswith(shorter):
        return OTHER_PLACE if shorter and (a.text.strip() in b.text or b.text.strip() in a.text) else OTHER_TEXT
    if beyond > 1 + max(len(text_of([row.str_tokens[t]])) for row in (a, b) for t in (0, *row.off_scale)):
        return OTHER_PLACE  # the shorter text is only the end of the longer one
    shared = sorted(ends_a.keys() & ends_b.keys(), reverse=True)
    cuts = [_between(ends, shared) for ends in (ends_a, ends_b)]
    return cuts[0], cuts[1]


def _cuts(row: Row) -> tuple[dict[int, int], str]:
    """A mapping from the number of characters after a token boundary to the token that starts there; and the text. Tokens off the scale at
    the beginning are left out."""
    first = next((t for t in range(row.seen) if t not in row.off_scale), row.seen)
    text = text_of(row.str_tokens[first : row.seen]).lstrip()  # a tokenizer may add a space before every text
    behind, cuts = 0, {0: row.seen}
    for t in reversed(range(first, row.seen)):
        behind = min(len(text), behind + len(text_of([row.str_tokens[t]])))
        cuts.setdefault(behind, t)  # a character of several tokens belongs to the first of them
    return cuts, text


def _between(cuts: dict[int, int], shared: list[int]) -> Spans:
    return [(cuts[one], cuts[following]) for one, following in pairwise(shared)]
