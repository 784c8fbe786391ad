"""The tokens of many prompts in flat arrays, each with its share of its prompt's scores."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

COLUMNS = ("position", "tokens", "str_tokens", "scores", "off_scale", "target", "target_str", "error")
"""The columns of a run that summaries read."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The counted tokens of several prompts, concatenated.

    Attributes:
        row: the prompt of each token, as the number of its row in the batch, in increasing order.
        place: the index of each token among all tokens of the batch.
        position: the position of each token in its prompt.
        distance: the explained position minus the position of the token.
        share: the score as a share of the summed scores of the prompt's counted tokens.
        expected: the share expected by chance: by default 1 divided by the number of counted tokens of the prompt.
        strongest: whether the token has the highest score of its prompt; the first one of tied tokens.
        n_rows: the number of prompts with counted tokens.
        n_empty: the number of prompts without counted tokens, because no score is above 0.
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
    """The tokens up to the explained positions, with tokens off the scale (BOS, sinks) only if ``off_scale`` is set. Rows with errors have none."""
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
    """The row and position of each token off the scale."""
    rows, positions = pc.list_parent_indices(column), pc.list_flatten(column)
    return _numbers(rows, 0), _numbers(positions, 0)


def _strongest(row: Int[np.ndarray, "n"], scores: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Whether each token has the highest score of its row; the first one of tied tokens."""
    found = np.zeros(len(row), dtype=bool)
    if len(row):
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        highest = np.repeat(np.maximum.reduceat(scores, starts), np.diff(np.append(starts, len(row))))
        places = np.flatnonzero(scores == highest)
        found[places[np.unique(row[places], return_index=True)[1]]] = True
    return found
