"""`Row`: one explained prediction of a run."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from jscope_tl.model.pieces import text_of
from jscope_tl.results.files import Shown
from jscope_tl.results.text import percent, score_text


@dataclass(frozen=True, eq=False, kw_only=True)
class Row(Shown):
    """One prompt of a run: the scores of its tokens, or the error because of which it has none.

    Attributes:
        id: the id of the prompt.
        position: the position whose next-token prediction is explained.
        tokens, str_tokens: the tokens of the whole prompt, including BOS.
        scores, stderr: the scores of the tokens, in the run's unit, and their standard errors, or None if scores are exact.
        off_scale: positions that colour scales and summaries leave out (BOS; a first token that is an attention sink).
        target, target_str, probability, rank: the explained token, its probability, and its rank in the prediction (0: the most probable).
        entropy: the entropy of the prediction, in nats.
        n_forward, n_backward: the number of passes.
        warnings: sentences about the limits of these numbers.
        error: why there is no explanation; None if there is one. Unknown fields are then None or empty.
        carried: the other values in the prompt's line.
    """

    id: str
    position: int | None
    tokens: Int[np.ndarray, "pos"]
    str_tokens: list[str]
    scores: Float[np.ndarray, "pos"]
    stderr: Float[np.ndarray, "pos"] | None
    off_scale: tuple[int, ...]
    target: int | None
    target_str: str | None
    probability: float | None
    rank: int | None
    entropy: float | None
    n_forward: int | None
    n_backward: int | None
    warnings: list[str]
    error: str | None
    carried: dict[str, Any]

    @property
    def text(self) -> str:
        """The whole prompt."""
        return text_of(self.str_tokens)

    def top(self, k: int = 5) -> list[tuple[int, str, float]]:
        """Position, text and score of the ``k`` highest scores up to the explained position, without tokens off the scale."""
        seen = [t for t in range(self.seen) if t not in self.off_scale]
        best = sorted(seen, key=lambda t: -self.scores[t])[:k]
        return [(t, self.str_tokens[t], float(self.scores[t])) for t in best]

    @property
    def seen(self) -> int:
        """The number of tokens up to the explained position, on which the prediction can depend."""
        return len(self.scores) if self.position is None else min(len(self.scores), self.position + 1)

    def headline(self) -> str:
        """One line with the id, the explained position and the target, or the error."""
        if self.error is not None:
            return f"{self.id}: {self.error}"
        probability = "" if self.probability is None else f" {percent(self.probability)}"
        return f"{self.id}: position {self.position} of {len(self.str_tokens)} tokens, target {self.target_str!r}{probability}"

    def __repr__(self) -> str:
        errors = self.stderr
        lines = [
            f"  {text!r} at {t}: {score_text(score, None if errors is None else float(errors[t]))}"
            for t, text, score in self.top()
        ]
        return "\n".join([f"Row {self.headline()}", *lines, *(f"  warning: {warning}" for warning in self.warnings)])


def rows_of(batch: pa.RecordBatch | pa.Table) -> Iterator[Row]:
    """The rows of a batch with all columns."""
    yield from map(_row, batch.to_pylist())


def _row(values: Mapping[str, Any]) -> Row:
    lists = {name: values[name] or [] for name in ("str_tokens", "warnings")}
    stderr = values["stderr"]
    numbers = {
        "tokens": np.asarray(values["tokens"] or [], dtype=np.int32),
        "scores": np.asarray(values["scores"] or [], dtype=np.float32),
        "stderr": None if stderr is None else np.asarray(stderr, dtype=np.float32),
        "off_scale": tuple(values["off_scale"] or ()),
        "carried": json.loads(values["carried"]) if values["carried"] else {},
    }
    return Row(**{**values, **lists, **numbers})
