"""Names of scopes: looking them up, listing them, and adding one's own."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from jscope_tl.errors import InputError, nearest
from jscope_tl.scopes.base import FunctionScope, Scope


@dataclass(frozen=True)
class Entry:
    """A registered scope: what makes it, the options that it takes, and its first line of documentation."""

    make: Callable[..., Scope]
    options: tuple[str, ...]
    summary: str
    builtin: bool


_ENTRIES: dict[str, Entry] = {}


def register_scope(name: Any, *, unit: str = Scope.unit) -> Any:
    """Decorator that makes a scope available by name: a `Scope` subclass, or a function from `State` to cotangents.

    The function's further parameters become the scope's options. Registering a name of one's own again replaces it (as
    re-running a notebook cell does); a scope of the package cannot be replaced.

    Args:
        name: the name to register; without it the function's own name is used.
        unit: unit of a function's score, shown with every result. A class states its own.

    Raises:
        InputError: the name belongs to a scope of the package, or what is decorated is neither class nor function.

    Example:
        >>> import jscope_tl as js
        >>> @js.register_scope("margin", unit="logit per unit of x")
        ... def margin(state):
        ...     return state.gradient(lambda logits: logits.topk(2).values @ logits.new_tensor([1.0, -1.0]))
        >>> "margin" in js.available_scopes()
        True
    """
    if not isinstance(name, str):
        return _register(getattr(name, "__name__", ""), unit, name)
    return partial(_register, name, unit)


def _register(name: str, unit: str, thing: Any) -> Any:
    builtin = getattr(thing, "__module__", "").startswith("jscope_tl.")
    if name in _ENTRIES and _ENTRIES[name].builtin and not builtin:
        raise InputError(f"{name!r} is a scope of jscope_tl; register yours under another name.")
    summary = (inspect.getdoc(thing) or "").partition("\n")[0]
    if inspect.isclass(thing) and issubclass(thing, Scope):
        thing.name = name
        _ENTRIES[name] = Entry(thing, tuple(f.name for f in fields(thing)), summary, builtin)  # type: ignore[arg-type]
    elif inspect.isfunction(thing):
        options = tuple(inspect.signature(thing).parameters)[1:]

        def make(**given: Any) -> Scope:
            return FunctionScope(thing, given, name, unit)

        _ENTRIES[name] = Entry(make, options, summary, builtin)
    else:
        raise InputError(f"A scope is a subclass of Scope or a function of the state; {thing!r} is neither.")
    return thing


def available_scopes() -> list[str]:
    """Names of all registered scopes, the package's and your own."""
    return sorted(_ENTRIES)


def scope_entry(name: str) -> Entry:
    """The registered scope of that name, or an error with the nearest one."""
    if name not in _ENTRIES:
        raise InputError(
            f"There is no scope {name!r}.{nearest(name, _ENTRIES)} Known: {', '.join(available_scopes())}."
        )
    return _ENTRIES[name]


def get_scope(name: str) -> Callable[..., Scope]:
    """What makes the scope of that name: ``get_scope("fisher")(rank=8)`` is ``FisherScope(rank=8)``."""
    return partial(_make, name, scope_entry(name))


def _make(name: str, entry: Entry, **options: Any) -> Scope:
    for option in options:
        if option not in entry.options:
            takes = ", ".join(entry.options) or "no options"
            raise InputError(
                f"Scope {name!r} has no option {option!r}.{nearest(option, entry.options)} It takes {takes}."
            )
    return entry.make(**options)


def resolve_scope(scope: Any, options: dict[str, Any]) -> Scope:
    """The scope meant by a registered name, a scope object, or a bare function from the state to cotangents."""
    if isinstance(scope, str):
        return get_scope(scope)(**options)
    if isinstance(scope, Scope):
        if options:
            raise InputError(f"Options go into the scope object itself, or beside a name; got both: {sorted(options)}.")
        return scope
    if inspect.isclass(scope) and issubclass(scope, Scope):
        return scope(**options)
    if callable(scope) and not inspect.isclass(scope):
        return FunctionScope(scope, options)
    raise InputError(
        f"scope is a registered name, a scope object or a function of the state, not {type(scope).__name__}. "
        f"Known names: {', '.join(available_scopes())}."
    )
