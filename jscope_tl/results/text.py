"""Formatting of token text and numbers for readers: invisible characters are shown, and rounding never gives 0 % or 100 % wrongly."""

from unicodedata import category

NAMED = {"\n": "↵", "\r": "␍", "\t": "⇥", "\x7f": "␡"}
UNSEEN = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"


def visible(text: str) -> str:
    """Token text in which control, direction and invisible characters are replaced by visible ones."""
    if text and all(category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f" for character in text):
        return "".join(f"\\u{ord(character):04x}" for character in text)  # characters that combine with the one before
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in NAMED:
        return NAMED[character]
    if character < " ":
        return chr(0x2400 + ord(character))  # Unicode's pictures of control characters
    # Surrogates and non-characters, which break an encoding or an SVG, and characters that cannot be seen.
    unsound = "\ud800" <= character <= "\udfff" or character in "\ufffe\uffff"
    if "\x80" <= character <= "\x9f" or character in UNSEEN or unsound:
        return f"\\u{ord(character):04x}"
    return character


def score_text(score: float, stderr: float | None) -> str:
    """``12.3 ± 0.4``, or the score alone if it is exact."""
    return f"{score:.4g}" if stderr is None else f"{score:.4g} ± {stderr:.2g}"


def percent(probability: float) -> str:
    """A probability as a percentage, which is 0 or 100 only if the probability is exactly 0 or 1."""
    if 0 < probability < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= probability < 1 else f"{probability:.1%}"


def shortened(text: str, most: int = 40) -> str:
    """A text of at most ``most`` characters, with an ellipsis in place of its middle.

    Example:
        >>> shortened("a rather long message", 12)
        'a rath…ssage'
    """
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}"
