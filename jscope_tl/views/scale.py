"""From scores to colour: one hue whose lightness falls with the score, the same for everyone's eyes and in grey."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from jscope_tl.views.together import Result

LIGHT, DARK = (255, 240, 224), (191, 84, 0)
DECADES = 3
"""How far below the highest score a logarithmic scale begins."""


@dataclass(frozen=True)
class Scale:
    """Scores from ``low`` to ``high`` as intensities from 0 to 1; beyond them 0 and 1."""

    low: float
    high: float
    log: bool
    bos_left_out: bool

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
        """What the colours mean, and what was left out of their scale."""
        kind = "logarithmic" if self.log else "linear"
        left_out = "; BOS is left out of the scale" if self.bos_left_out else ""
        return f"colour: {kind} from {self.low:.4g} to the highest score, {self.high:.4g}{left_out}"


def scale_of(results: Sequence[Result], log: bool = False) -> Scale:
    """One scale for all: up to the highest score outside BOS, from 0 or (``log``) from at most `DECADES` below that."""
    scores = [s for result in results for s in _outside_bos(result) if s > 0]
    high = max(scores, default=0.0)
    low = max(min(scores, default=0.0), high / 10**DECADES) if log else 0.0
    return Scale(low * (1 - 1e-6), high, log, any(result.bos_positions for result in results))


def _outside_bos(result: Result) -> list[float]:
    kept = [i for i in range(result.scores.shape[-1]) if i not in result.bos_positions]
    return result.scores[..., kept].flatten().tolist()


def background(intensity: float) -> tuple[int, int, int]:
    """The colour of an intensity between 0 and 1."""
    red, green, blue = (round(a + (b - a) * intensity) for a, b in zip(LIGHT, DARK, strict=True))
    return red, green, blue


def ink(intensity: float) -> str:
    """The text colour that is readable on `background`."""
    return "#ffffff" if intensity > 0.9 else "#000000"
