"""From scores to colour: one hue, linear from 0 to the highest score that is not a BOS token's."""

from jscope_tl.result import Attribution

LIGHT, DARK = (255, 240, 224), (191, 84, 0)


def intensities(result: Attribution) -> list[float]:
    """Each score as a fraction of the highest one outside BOS, at most 1."""
    scores = result.scores.tolist()
    top = max((s for i, s in enumerate(scores) if i not in result.bos_positions), default=0.0)
    return [min(1.0, score / top) if top > 0 else 0.0 for score in scores]


def scale_note(result: Attribution) -> str:
    """What the colours mean, and what was left out of their scale."""
    left_out = "; BOS is left out of the scale" if result.bos_positions else ""
    return f"colour: linear from 0 to the highest score{left_out}"


def background(intensity: float) -> tuple[int, int, int]:
    """The colour of an intensity between 0 and 1."""
    red, green, blue = (round(a + (b - a) * intensity) for a, b in zip(LIGHT, DARK, strict=True))
    return red, green, blue


def ink(intensity: float) -> str:
    """The text colour that is readable on `background`."""
    return "#ffffff" if intensity > 0.9 else "#000000"


NAMED = {"\n": "↵", "\r": "␍", "\t": "⇥", "\x7f": "␡"}
BIDI = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def visible(text: str) -> str:
    """Token text with what would move a cursor or turn the writing made visible; nothing else is changed."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in NAMED:
        return NAMED[character]
    if character < " ":
        return chr(0x2400 + ord(character))  # Unicode's pictures of control characters
    if "\x80" <= character <= "\x9f" or character in BIDI:
        return f"\\u{ord(character):04x}"
    return character


def score_text(score: float, stderr: float | None) -> str:
    """``12.3 ± 0.4``, or the score alone where it is exact."""
    return f"{score:.4g}" if stderr is None else f"{score:.4g} ± {stderr:.2g}"
