"""When an estimate is precise enough, and when it has cost enough."""

from dataclasses import dataclass, field
from math import inf
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.one_position import VJP


@dataclass(frozen=True)
class Tolerance:
    """Standard errors that are small enough: ``rtol`` of their score, or ``atol`` of the largest one beside it if that is more.

    What is far below the largest score is drawn as next to nothing, and an error that cannot be seen need not be paid for. The
    first token's score is not taken for the largest: it often exceeds all others whatever is asked, and pictures leave it out.
    """

    rtol: float
    atol: float = 0.0

    def sizes(self, values: Float[Tensor, "*layer pos"]) -> Float[Tensor, "*layer pos"]:
        """What ``rtol`` is a fraction of: the scores, small ones raised to where ``atol`` is more."""
        others = values[..., 1:] if values.shape[-1] > 1 else values
        least = (self.atol / self.rtol * others.amax(-1, keepdim=True)).clamp_min(torch.finfo(values.dtype).tiny)
        return torch.maximum(values, least)

    def worst(self, values: Float[Tensor, "*layer pos"], stderr: Float[Tensor, "*layer pos"]) -> float:
        """The largest standard error relative to `sizes`: enough is known when it is below ``rtol``."""
        return float((stderr / self.sizes(values)).max())


@dataclass
class Budget:
    """Backward rows that a call may take: ``max_rows``, and as many as ``max_seconds`` allow at the pace so far."""

    vjp: VJP
    max_rows: int | None = None
    max_seconds: float | None = None
    _begun: float = field(default_factory=perf_counter)
    _before: int = 0

    def __post_init__(self) -> None:
        self._before = self.vjp.backward.passes.n_backward

    @property
    def taken(self) -> int:
        """Rows so far."""
        return self.vjp.backward.passes.n_backward - self._before

    def left(self) -> float:
        """Rows that may follow."""
        return min(self._by_rows(), self._by_time())

    def spent(self) -> str:
        """Which of the two it is that ends first."""
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
