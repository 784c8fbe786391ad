"""The exception for inputs that cannot be used, and helpers that check numbers and suggest names."""

import operator
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """An input that cannot be used; the message says what was given, what is needed and what to do."""


def nearest(given: object, known: Iterable[str]) -> str:
    """``' Did you mean ...?'`` with the closest known name, or an empty string if none is close."""
    close = get_close_matches(str(given), list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def whole(value: object) -> int | None:
    """A whole number as an int (also from NumPy or a zero-dimensional tensor); None for anything else, including bools."""
    if type(value).__name__ in ("bool", "bool_") or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def count(name: str, value: object, least: int) -> int:
    """A whole number that is at least ``least`` and fits into 64 bits, as an int; anything else is refused."""
    number = whole(value)
    if number is None or not least <= number < 2**63:
        raise InputError(f"{name} is a whole number, {least} or more and below 2**63; got {value!r}.")
    return number
