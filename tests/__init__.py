"""Types are checked at run time (``--jaxtyping-packages``), in tests only; here that is made fast. It runs before any module of tests."""

import functools
from types import FunctionType
from typing import Any

import jaxtyping

_jaxtyped = jaxtyping.jaxtyped
_checked: dict[int, Any] = {}
"""The code of functions that have been called, by identity."""


def first_definition(function: Any = None, **how: Any) -> Any:
    """`jaxtyping.jaxtyped`, whose checker is written at the first call, and for the first definition that is called alone: inner functions are
    defined at every call of the outer one, and writing a checker each time took half of the suite's time."""
    if function is None:
        return functools.partial(first_definition, **how)
    if not isinstance(function, FunctionType):
        return _jaxtyped(function, **how)
    code = function.__code__
    if id(code) in _checked:
        return function
    checker: list[Any] = []

    @functools.wraps(function)
    def checked(*args: Any, **keywords: Any) -> Any:
        __tracebackhide__ = True
        if not checker:
            _checked[id(code)] = code
            checker.append(_jaxtyped(function, **how))
        return checker[0](*args, **keywords)

    return checked


jaxtyping.jaxtyped = first_definition
