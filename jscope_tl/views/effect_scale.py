"""Colours for effects: orange for positive and purple for negative effects, darker for larger ones. The colours are distinguishable with
colour blindness."""

from dataclasses import dataclass
from math import log10, sqrt

from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError, nearest
from jscope_tl.views.scale import DARK, DECADES, LIGHT

PURPLE, BETWEEN = (84, 39, 136), (247, 247, 247)
WORDS = {"linear": "linear", "sqrt": "square root of the effect", "log": f"logarithmic, {DECADES} decades"}
SCALES = tuple(WORDS)
EVEN, STEEP = 0.1, 0.004
"""Limits for the effect at the 90th percentile as a share of the largest effect: colours are linear above the first and logarithmic below
the second."""


@dataclass(frozen=True)
class EffectScale:
    """Effects as intensities from -1 to 1, and as colours.

    Attributes:
        kind: the kind, one of `SCALES`. A logarithmic scale begins `DECADES` below the largest effect.
        high: the largest absolute effect.
        signed: whether there are negative effects.
    """

    kind: str
    high: float
    signed: bool

    def __call__(self, effect: float) -> float:
        share = min(1.0, abs(effect) / self.high) if self.high else 0.0
        if self.kind == "sqrt":
            share = sqrt(share)
        elif self.kind == "log":
            share = max(0.0, 1 + log10(share) / DECADES) if share else 0.0
        return -share if effect < 0 else share

    def at(self, intensity: float) -> float:
        """The effect with this intensity."""
        size = abs(intensity)
        share = {"linear": size, "sqrt": size**2, "log": 10 ** (DECADES * (size - 1))}[self.kind]
        return self.high * (-share if intensity < 0 else share)

    def colours(self, effect: float) -> tuple[str, str]:
        """The background and the text colour for an effect."""
        intensity = self(effect)
        pale, full = (BETWEEN if self.signed else LIGHT), (PURPLE if intensity < 0 else DARK)
        rgb = [round(a + (b - a) * abs(intensity)) for a, b in zip(pale, full, strict=True)]
        ink = "#fff" if _luminance(rgb) < 0.18 else "#000"
        return f"rgb({','.join(map(str, rgb))})", ink

    @property
    def note(self) -> str:
        """A note about the meaning of the colours."""
        rises = "orange: the change raises what is explained, purple: it lowers it" if self.signed else "orange"
        return f"colour: {WORDS[self.kind]}, up to {self.high:.3g}, {rises}"


def effect_scale(effects: Float[Tensor, "*shown"], kind: str | None = None) -> EffectScale:
    """A scale for the shown effects.

    Args:
        effects: all shown effects.
        kind: one of `SCALES`; None: chosen by how much larger the largest effects are than the others.
    """
    if kind is not None and kind not in SCALES:
        raise InputError(f"scale is one of {', '.join(SCALES)}, or None; got {kind!r}.{nearest(kind, SCALES)}")
    sizes = effects.flatten().abs().sort(descending=True).values
    high = float(sizes[0])
    share = float(sizes[len(sizes) // 10]) / high if high else 1.0
    fit = "linear" if share >= EVEN else "sqrt" if share >= STEEP else "log"
    return EffectScale(kind or fit, high, bool((effects < 0).any()))


def _luminance(rgb: list[int]) -> float:
    """WCAG's relative luminance: below 0.18, white text has a higher contrast than black text."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
