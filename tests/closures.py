"""Type checks of functions inside functions. ``--jaxtyping-packages`` writes a checker each time such a function is defined, which takes
half of the time of many tests; here the first definition's serves the later ones."""

import functools
import inspect
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import jaxtyping

jaxtyped = jaxtyping.jaxtyped


class _Running(threading.local):
    """The function that a shared checker is to call."""

    function: Any = None


_running = _Running()
_checkers: dict[Any, Callable[..., Any]] = {}


def shared(fn: Any = None, **options: Any) -> Any:
    """`jaxtyping.jaxtyped`. Defaults are checked where a function is defined, so that one with defaults gets its own checker."""
    if fn is None:
        return functools.partial(shared, **options)
    inner = isinstance(fn, FunctionType) and "<locals>" in fn.__qualname__
    if not inner or fn.__defaults__ or fn.__kwdefaults__:
        return jaxtyped(fn, **options)
    key = (fn.__module__, fn.__qualname__, fn.__code__, *options.values())
    if key not in _checkers:
        _checkers[key] = jaxtyped(_caller(fn), **options)
    checker = _checkers[key]

    @functools.wraps(fn)
    def checked(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        outer, _running.function = _running.function, fn
        try:
            return checker(*args, **kwargs)
        finally:
            _running.function = outer

    return checked


def _caller(fn: FunctionType) -> FunctionType:
    """Calls the running function, with the signature of ``fn``, which it does not keep alive."""
    running = _running

    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return running.function(*args, **kwargs)

    typed = FunctionType(call.__code__, fn.__globals__, fn.__name__, None, call.__closure__)
    functools.update_wrapper(typed, fn)
    typed.__signature__ = inspect.signature(fn)  # type: ignore[attr-defined]
    del typed.__wrapped__  # type: ignore[attr-defined]
    return typed
