"""The one exception for input that cannot be explained, and the search for the name that was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """What was asked cannot be done; the message says what was given, what is needed and what to do."""


def nearest(given: str, known: Iterable[str]) -> str:
    """``' Did you mean ...?'`` with the closest known name, or nothing where none is close."""
    close = get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
