"""One pass over the files of a run, and the summary of its means."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from jscope_tl.corpus.dataset import CorpusRun
from jscope_tl.corpus.means import Means
from jscope_tl.corpus.summary import EVEN, ORDERED, Summary, SummaryRow, need_rows_left
from jscope_tl.corpus.tokens import COLUMNS, Tokens, tokens_of
from jscope_tl.errors import InputError, nearest, whole
from jscope_tl.faithfulness.results import Mean

Categories = Callable[[pa.RecordBatch, Tokens], Int[np.ndarray, "n"]]
"""A function from a batch and its tokens to the category of each token; below 0 for no category."""
SINGLES = {"distance": 16, "position": 8}
"""How many of the first distances or positions have their own row."""


class Counts:
    """The numbers of prompts that are counted and left out, and the settings for counting tokens."""

    def __init__(self, run: Any, off_scale: bool, chance: str = EVEN) -> None:
        need_run(run)
        if chance not in (EVEN, *ORDERED):
            raise InputError(
                f"chance is one of {EVEN}, {', '.join(ORDERED)}; got {chance!r}.{nearest(chance, (EVEN, *ORDERED))}"
            )
        self.off_scale, self.chance = off_scale, chance
        self.usual = None if chance == EVEN else usual_scores(run, chance, off_scale)
        self.n = self.n_errors = self.n_empty = 0

    def count(self, batch: pa.RecordBatch) -> Tokens:
        """Count a batch, and return its tokens."""
        tokens = tokens_of(batch, self.off_scale)
        if self.usual is not None:
            weights = self.usual[place_of(tokens, self.chance)]
            tokens = replace(tokens, expected=weights / np.bincount(tokens.row, weights)[tokens.row])
        self.n += tokens.n_rows
        self.n_empty += tokens.n_empty
        self.n_errors += batch.num_rows - batch.column("error").null_count
        return tokens


def need_run(run: Any) -> None:
    """Refuse anything but a run."""
    if not isinstance(run, CorpusRun):
        raise InputError(f"A summary needs a run, as js.corpus.open(folder) returns it; got a {type(run).__name__}.")


def one_pass(run: Any, counts: Counts, category: Categories) -> Means:
    """Means by category over all rows of a run."""
    means = Means(4)
    for batch in run.batches(COLUMNS):
        tokens = counts.count(batch)
        means.add_tokens(category(batch, tokens), tokens)
    need_rows_left(counts.n, counts.n_errors, repr(str(run.folder)))
    return means


def place_of(tokens: Tokens, by: str, edges: Any = None) -> Int[np.ndarray, "n"]:
    """The number of the row for each token's distance or position."""
    return np.searchsorted(to_edges(edges, SINGLES[by]), getattr(tokens, by), "right") - 1


def usual_scores(run: Any, by: str, off_scale: bool) -> Float[np.ndarray, "row"]:
    """The mean ratio of a token's score to the mean score of its prompt, for each distance or position."""
    return one_pass(run, Counts(run, off_scale), lambda batch, tokens: place_of(tokens, by)).means[2]


def made(run: CorpusRun, by: str, rows: Sequence[SummaryRow], counts: Counts, notes: Sequence[str] = ()) -> Summary:
    """The summary of a pass."""
    return Summary(
        by=by, rows=tuple(rows), chance=counts.chance, n=counts.n, n_errors=counts.n_errors, n_empty=counts.n_empty, off_scale=counts.off_scale, scope=run.scope,
        model=run.model, unit=run.unit, notes=[*(one.said for one in run.filters), *notes],
    )  # fmt: skip


def rows_of_means(means: Means, names: Mapping[int, str], ranked: bool = False, group: str = "") -> list[SummaryRow]:
    """One row for each category that any prompt has; ``ranked``: ordered by the lower limit of the interval of ``ratio``."""
    rows = [
        SummaryRow(
            name=name, n_tokens=int(means.n_tokens[i]), share=means.mean(i, 0), expected=means.mean(i, 1).mean, ratio=means.mean(i, 2),
            top=means.mean(i, 3).mean, group=group,
        )
        for i, name in names.items()
        if i < len(means.n) and means.n[i] > 0
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -_sure(row.ratio)) if ranked else rows


def _sure(ratio: Mean) -> float:
    return ratio.low if ratio.n > 1 else -np.inf


def to_edges(edges: Sequence[int] | None, singles: int) -> Int[np.ndarray, "row"]:
    """The first distance or position of each row. By default the first ``singles`` have their own rows, and then rows double in size."""
    if edges is None:
        return np.array([*range(singles), *(singles * 2**i for i in range(32))])
    given = [whole(edge) for edge in edges]
    if None in given or given[:1] != [0] or any(b <= a for a, b in pairwise(given)):  # type: ignore[operator]
        raise InputError(f"edges are increasing whole numbers from 0, the start of each row; got {edges!r}.")
    return np.array(given)


def labels_of(edges: Int[np.ndarray, "row"]) -> dict[int, str]:
    """The names of the rows."""
    firsts = edges.tolist()
    names = [str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in pairwise(firsts)]
    return dict(enumerate([*names, f"{firsts[-1]} and more"]))
