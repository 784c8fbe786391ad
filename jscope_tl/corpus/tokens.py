"""The tokens of many prompts in flat arrays, each with its share of the prompt's scores."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

COLUMNS = ("position", "tokens", "str_tokens", "scores", "off_scale", "target", "target_str", "error")
"""Of a run, that summaries read."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens that are counted, of several prompts one after another.

    Attributes:
        row: the prompt of each token, as the number of its row in the batch; rising.
        place: the place of each token among all of the batch.
        position: of each token in its prompt.
        distance: how many tokens it stands before the explained position.
        share: of the summed scores of the prompt's counted tokens.
        expected: the share that chance gives it: one over the number of tokens that are counted in its prompt, unless said otherwise.
        strongest: whether it is the one with the highest score; the first of equals.
        n_rows: prompts with counted tokens.
        n_empty: prompts without: no scores above 0.
    """

    row: Int[np.ndarray, "n"]
    place: Int[np.ndarray, "n"]
    position: Int[np.ndarray, "n"]
    distance: Int[np.ndarray, "n"]
    share: Float[np.ndarray, "n"]
    expected: Float[np.ndarray, "n"]
    strongest: Bool[np.ndarray, "n"]
    n_rows: int
    n_empty: int


def tokens_of(batch: pa.RecordBatch, off_scale: bool) -> Tokens:
    """The tokens up to the explained positions; those off the scale only where ``off_scale`` says so. Rows with errors have none."""
    column = batch.column("scores")
    scores = pc.list_flatten(column).to_numpy(zero_copy_only=False).astype(float)
    lengths = _numbers(pc.list_value_length(column), 0)
    starts, explained = np.cumsum(lengths) - lengths, _numbers(batch.column("position"), -1)
    row = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(scores)) - starts[row]
    counted = position <= explained[row]
    if not off_scale:
        places = off_scale_places(batch.column("off_scale"))
        counted[starts[places[0]] + places[1]] = False
    totals = np.bincount(row[counted], scores[counted], len(lengths))
    n = np.bincount(row[counted], minlength=len(lengths))
    counted &= totals[row] > 0
    row, position, place = row[counted], position[counted], np.flatnonzero(counted)
    return Tokens(
        row=row,
        place=place,
        position=position,
        distance=explained[row] - position,
        share=scores[counted] / totals[row],
        expected=1 / n[row],
        strongest=_strongest(row, scores[counted]),
        n_rows=int((totals > 0).sum()),
        n_empty=int((totals <= 0).sum()) - _errors(batch),
    )


def _errors(batch: pa.RecordBatch) -> int:
    return batch.num_rows - batch.column("error").null_count


def _numbers(values: pa.Array, missing: int) -> Int[np.ndarray, "row"]:
    return pc.fill_null(values, missing).to_numpy(zero_copy_only=False).astype(np.int64)


def off_scale_places(column: pa.Array) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """Row and position of each token off the scale."""
    rows, positions = pc.list_parent_indices(column), pc.list_flatten(column)
    return _numbers(rows, 0), _numbers(positions, 0)


def _strongest(row: Int[np.ndarray, "n"], scores: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """The highest score of each row, of equal ones the first."""
    found = np.zeros(len(row), dtype=bool)
    if len(row):
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        highest = np.repeat(np.maximum.reduceat(scores, starts), np.diff(np.append(starts, len(row))))
        places = np.flatnonzero(scores == highest)
        found[places[np.unique(row[places], return_index=True)[1]]] = True
    return found
