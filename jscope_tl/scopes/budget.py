"""Stopping criteria of an estimate: its tolerance, and its budget of backward rows."""

from dataclasses import dataclass, field
from math import inf
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.one_position import VJP


@dataclass(frozen=True)
class Tolerance:
    """The largest accepted standard error: ``rtol`` times the score, or ``atol`` times the largest score if that is more.

    A score far below the largest one is hardly visible in a figure, so its relative error matters little. The first token's score is
    not used as the largest one: it often exceeds all others for every scope, and figures omit it from their colour scale.
    """

    rtol: float
    atol: float = 0.0

    def sizes(self, values: Float[Tensor, "*layer pos"]) -> Float[Tensor, "*layer pos"]:
        """The values that ``rtol`` is relative to: the scores, but at least ``atol / rtol`` times the largest one."""
        others = values[..., 1:] if values.shape[-1] > 1 else values
        least = (self.atol / self.rtol * others.amax(-1, keepdim=True)).clamp_min(torch.finfo(values.dtype).tiny)
        return torch.maximum(values, least)

    def worst(self, values: Float[Tensor, "*layer pos"], stderr: Float[Tensor, "*layer pos"]) -> float:
        """The largest standard error relative to `sizes`; the estimate is precise enough when this is at most ``rtol``."""
        return float((stderr / self.sizes(values)).max())


@dataclass
class Budget:
    """The number of backward rows that a call may take: ``max_rows``, or as many as ``max_seconds`` allows at the speed so far."""

    vjp: VJP
    max_rows: int | None = None
    max_seconds: float | None = None
    _begun: float = field(default_factory=perf_counter)
    _before: int = 0

    def __post_init__(self) -> None:
        self._before = self.vjp.backward.passes.n_backward

    @property
    def taken(self) -> int:
        """The number of rows so far."""
        return self.vjp.backward.passes.n_backward - self._before

    def left(self) -> float:
        """The number of rows that are left."""
        return min(self._by_rows(), self._by_time())

    def spent(self) -> str:
        """The limit that is reached first, for a message."""
        if self._by_rows() <= self._by_time():
            return f"max_rows={self.max_rows}"
        return f"max_seconds={self.max_seconds:g}"

    def _by_rows(self) -> float:
        return inf if self.max_rows is None else float(self.max_rows - self.taken)

    def _by_time(self) -> float:
        if self.max_seconds is None:
            return inf
        seconds = perf_counter() - self._begun
        return (self.max_seconds - seconds) / (seconds / max(self.taken, 1))
