"""Checks of the requests: JSON objects with known fields. Errors are sentences."""

from collections.abc import Callable, Mapping
from typing import Any

from jscope_tl.errors import InputError, nearest, whole

LONGEST = 100_000
"""The largest number of characters of a prompt."""
SIMPLE = (str, int, float, bool, type(None))


def text(value: Any) -> bool:
    """A text of moderate length."""
    return isinstance(value, str) and len(value) <= LONGEST


def number(value: Any) -> bool:
    """A whole number."""
    return isinstance(value, int) and whole(value) is not None and abs(value) < 2**31


def real(value: Any) -> bool:
    """A number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def ids(value: Any) -> bool:
    """A list of token ids."""
    return isinstance(value, list) and all(map(number, value)) and len(value) <= LONGEST


def texts(value: Any) -> bool:
    """A text, or a list of them."""
    return text(value) or (isinstance(value, list) and len(value) <= 1000 and all(map(text, value)))


def messages(value: Any) -> bool:
    """Messages of a chat."""
    return isinstance(value, list) and len(value) <= 1000 and all(isinstance(item, dict) for item in value)


RESERVED = ("model", "prompt", "scope", "progress", "continuation", "position", "at", "spans", "by", "of")
"""Parameters of the entry points, which are not options of any scope: requests give them outside of ``options``, or not at all."""


def options(value: Any) -> bool:
    """Options of a scope: names with simple values or lists of simple values."""
    return (
        isinstance(value, dict)
        and value.keys().isdisjoint(RESERVED)
        and all(
            isinstance(item, SIMPLE) or (isinstance(item, list) and all(isinstance(one, SIMPLE) for one in item))
            for item in value.values()
        )
    )


Check = Callable[[Any], bool]
PROMPT: dict[str, tuple[Check, str]] = {
    "prompt": (text, f"a text of at most {LONGEST} characters"),
    "tokens": (ids, "a list of token ids"),
    "messages": (messages, "a list of chat messages"),
}
SETTINGS: dict[str, tuple[Check, str]] = {
    "scope": (text, "the name of a scope"),
    "options": (options, f"an object of options of the scope, none of them named {', '.join(RESERVED)}"),
    "position": (number, "a whole number"),
    "at": (texts, "a hook point's name, or a list of them"),
    "per": (text, "'layer' or 'head'"),
    "reduction": (text, "the name of a reduction"),
    "path": (text, "the name of a path"),
    "gradient": (text, "the name of gradient rules"),
    "frozen": (texts, "'attn', 'norm', or both in a list"),
    "job": (text, "the name of this call, a text"),
}


def spans(value: Any) -> bool:
    """A kind of span, or pairs of numbers."""
    return text(value) or (
        isinstance(value, list)
        and len(value) <= 1000
        and all(isinstance(pair, list) and len(pair) == 2 and all(map(number, pair)) for pair in value)
    )


TEXT: dict[str, tuple[Check, str]] = {
    **{name: SETTINGS[name] for name in ("scope", "options", "at", "reduction", "gradient", "frozen", "job")},
    "continuation": (text, f"a text of at most {LONGEST} characters"),
    "continuation_tokens": (ids, "a list of token ids"),
    "max_new_tokens": (number, "a whole number"),
    "temperature": (real, "a number"),
    "generation_seed": (number, "a whole number"),
    "by": (text, "token, word, sentence, line or message"),
    "spans": (spans, "token, word, sentence, line, message, or pairs of numbers"),
}


def checked(given: Any, fields: Mapping[str, tuple[Check, str]]) -> dict[str, Any]:
    """The fields of a request; a field that is null is left out.

    Raises:
        InputError: the request is not an object, or has an unknown field or a field of another type.
    """
    if not isinstance(given, dict):
        raise InputError(f"A request must be a JSON object; got {type(given).__name__}.")
    for name, value in given.items():
        if name not in fields:
            raise InputError(f"There is no field {name[:100]!r}.{nearest(name, fields)} Known: {', '.join(fields)}.")
        check, what = fields[name]
        if value is not None and not check(value):
            raise InputError(f"{name} must be {what}; got {str(value)[:100]!r}.")
    return {name: value for name, value in given.items() if value is not None}


def as_request(given: Any) -> Any:
    """The request that repeats a saved `Attribution`, if its JSON is given; any other request is returned unchanged."""
    if not isinstance(given, dict) or not {"scores", "provenance", "tokens", "options"} <= given.keys():
        return given
    if not isinstance(given["provenance"], dict) or not isinstance(given["options"], dict):
        raise InputError("provenance and options of a saved Attribution must be objects.")
    options = {name: value for name, value in given["options"].items() if name != "resolved" and value is not None}
    how = {name: options.pop(name) for name in list(options) if name in SETTINGS}
    at = given.get("hook_points") or given["provenance"].get("hook_point")
    scope = str(given.get("scope")).partition(",")[0]  # followed by the names of rules and reductions
    asked = {name: given.get(name) for name in ("tokens", "position", "job")}
    if scope == "explain":  # it has its own hook point
        at = None
        options.pop("choice", None)
    return {**asked, "scope": scope, **how, "at": at, "options": options}


def prompt_of(given: Mapping[str, Any]) -> Any:
    """The prompt, which is given as exactly one of three fields.

    Raises:
        InputError: none of the fields is given, or several.
    """
    ways = [name for name in PROMPT if name in given]
    if len(ways) != 1:
        raise InputError(
            f"A prompt must be given as exactly one of {', '.join(PROMPT)}; got {', '.join(ways) or 'none'}."
        )
    return given[ways[0]]
