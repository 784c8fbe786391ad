"""Colours for scores: a single hue that is darker for higher scores, which is readable with colour blindness and in grey."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from jaxtyping import Float
from torch import Tensor

from jscope_tl.results.base import Result

LIGHT, DARK = (255, 240, 224), (191, 84, 0)
DECADES = 3
"""The number of decades below the highest score at which a logarithmic scale begins."""


@dataclass(frozen=True)
class Scale:
    """A scale from ``low`` to ``high``, which maps scores to intensities from 0 to 1; scores outside are clipped."""

    low: float
    high: float
    log: bool
    left_out: tuple[str, ...] = ()

    def __call__(self, score: float) -> float:
        if score <= self.low or self.high <= 0:
            return 0.0
        if not self.log:
            return min(1.0, score / self.high)
        if self.high <= self.low:
            return 1.0
        return min(1.0, log(score / self.low) / log(self.high / self.low))

    @property
    def note(self) -> str:
        """A note about the meaning of the colours, and the tokens that are left out of the scale."""
        kind = "logarithmic" if self.log else "linear"
        return "; ".join([f"colour: {kind} from {self.low:.4g} to the highest score, {self.high:.4g}", *self.left_out])


def scale_of(results: Sequence[Result], log: bool = False) -> Scale:
    """One scale for all results, up to the highest score outside BOS. It begins at 0, or (``log``) at most `DECADES` below the highest score."""
    scores = [s for result in results for s in _on_scale(result).flatten().tolist() if s > 0]
    high = max(scores, default=0.0)
    low = max(min(scores, default=0.0), high / 10**DECADES) if log else 0.0
    return Scale(low * (1 - 1e-6), high, log, tuple(left_out(results)))


def row_scales(result: Result) -> list[Scale]:
    """A scale for each row of a layer map or a pattern, from 0 to the row's highest score outside BOS."""
    return [Scale(0.0, top, False, tuple(left_out([result]))) for top in tops(result).tolist()]


def tops(result: Result) -> Float[Tensor, "row"]:
    """The highest score of each row, without tokens that are left out of the scale."""
    scores = result._rows()[0].clone()
    scores[:, list(result.bos_positions)] = 0
    scores[[size is not None for size in result.sinks()], 0] = 0
    return scores.amax(-1)


def left_out(results: Sequence[Result]) -> list[str]:
    """Notes about the tokens that are left out of the scale."""
    names = ["BOS"] if any(result.bos_positions for result in results) else []
    names += ["the first token"] if any({*result.off_scale} - {*result.bos_positions} for result in results) else []
    return [f"{name} is left out of the scale" for name in names]


def _on_scale(result: Result) -> Float[Tensor, "row kept"]:
    kept = [i for i in range(len(result.str_tokens)) if i not in result.off_scale]
    return result._rows()[0][:, kept]


def background(intensity: float) -> tuple[int, int, int]:
    """The colour of an intensity between 0 and 1."""
    red, green, blue = (round(a + (b - a) * intensity) for a, b in zip(LIGHT, DARK, strict=True))
    return red, green, blue


def ink(intensity: float) -> str:
    """A text colour with a contrast of at least 4.5 on `background`."""
    return "#ffffff" if intensity > 0.98 else "#000000"
