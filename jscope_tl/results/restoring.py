"""Restore dataclasses from JSON and tensors; a value that does not fit the type of its field is refused."""

import re
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

TENSOR = "__tensor__"
"""The JSON key for the name of a tensor."""
LATER = {"later": True}
"""Metadata of fields that were added to a schema later: if a file lacks such a field, its default is used."""
OWN_KEY = re.compile(rf"\\*{TENSOR}")


def escaped(key: Any) -> str:
    """A dictionary's key for JSON; a key that could be taken for `TENSOR` gets a backslash."""
    return "\\" + str(key) if OWN_KEY.fullmatch(str(key)) else str(key)


def restored(kind: Any, value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value of a field of this type, restored from its JSON form.

    Raises:
        ValueError, TypeError, KeyError: the value has another type, or something is missing.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return _untyped(value, tensors)
    if origin in (Union, UnionType):  # `X | None`, or `int | float`
        others = [argument for argument in arguments if argument is not NoneType]
        if value is None and len(others) < len(arguments):
            return None
        return restored(next((other for other in others if type(value) is other), others[0]), value, tensors)
    if isinstance(kind, type) and issubclass(kind, AbstractArray):
        return tensors[_need(dict, value)[TENSOR]]
    if is_dataclass(kind):
        return _dataclass(kind, _need(dict, value), tensors)
    if origin is dict:
        key, inner = arguments
        items = _need(dict, value).items()
        return {key(_plain_key(name)): restored(inner, item, tensors) for name, item in items}
    if kind is tuple or origin in (list, tuple):
        given, inners = _need(list, value), arguments or (Any, ...)
        each = inners[:1] * len(given) if len(inners) < 2 or inners[1] is ... else inners
        return (origin or kind)(restored(inner, item, tensors) for inner, item in zip(each, given, strict=True))
    if origin is Literal and value in arguments:
        return value
    return _need(kind, value)


def _untyped(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value without a declared type, such as an option; tuples come back as lists."""
    if isinstance(value, dict) and TENSOR in value:
        return tensors[value[TENSOR]]
    if isinstance(value, dict):
        return {_plain_key(name): _untyped(item, tensors) for name, item in value.items()}
    return [_untyped(item, tensors) for item in value] if isinstance(value, list) else value


def _dataclass(kind: Any, value: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    hints = get_type_hints(kind)
    if unknown := value.keys() - {f.name for f in fields(kind)}:
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    stored = [f for f in fields(kind) if f.name in value or not f.metadata.get("later")]
    kept = {f.name: restored(hints[f.name], value[f.name], tensors) for f in stored}
    with jaxtyped("context"):  # axes with the same name must have the same length
        for name, item in kept.items():
            if isinstance(item, Tensor) and not isinstance(item, hints[name]):
                raise ValueError(f"{name} does not fit, with {item.dtype} {list(item.shape)}")
    return kind(**kept)


def _plain_key(key: str) -> str:
    return key[1:] if key.startswith("\\") and OWN_KEY.fullmatch(key) else key


def _need(kind: type, value: Any) -> Any:
    """A value of exactly this type (a bool is not a number); a whole number becomes a float where one is needed."""
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        with suppress(OverflowError):
            return float(value)
    raise TypeError(f"{kind.__name__} is needed, got {str(value)[:50]!r}")
