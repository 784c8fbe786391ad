"""The registry of scopes: look up names, list them, and register your own."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

from jscope_tl.errors import InputError, nearest
from jscope_tl.scopes.base import FunctionScope, Scope


@dataclass(frozen=True)
class Entry:
    """A registered scope: its constructor, its options, and the first line of its documentation."""

    make: Callable[..., Scope]
    options: tuple[str, ...]
    summary: str
    builtin: bool
    takes_any: bool = False


_ENTRIES: dict[str, Entry] = {}
RESERVED = {
    "model", "prompt", "prompts", "scope", "position", "at", "prepend_bos", "fwd_hooks", "reduction", "path", "gradient", "frozen",
    "chunk_size", "batch_size", "matmul_precision", "progress",
}  # fmt: skip


def register_scope(name: Any, *, unit: str = Scope.unit, moves_along: bool = True) -> Any:
    """Decorator that makes a scope available by name: a `Scope` subclass, or a function from `State` to cotangents.

    The function's further parameters become the scope's options. Registering one of your names again replaces the scope (for
    example when a notebook cell is run again); a scope of the package cannot be replaced.

    Args:
        name: the name to register; without it the function's own name is used.
        unit: the unit of a function's score, shown with every result. A class has an attribute ``unit`` instead.
        moves_along: whether the function is called at each point of a path, which is right for gradients; False: the cotangents of
            the prompt are used at all points, which is right for eigenvectors. A class has an attribute ``moves_along`` instead,
            which is False by default.

    Raises:
        InputError: the name belongs to a scope of the package, or the decorated object is neither a class nor a function.

    Example:
        >>> import jscope_tl as js
        >>> @js.register_scope("margin", unit="logit per unit of x")
        ... def margin(state):
        ...     return state.gradient(lambda logits: logits.topk(2).values @ logits.new_tensor([1.0, -1.0]))
        >>> "margin" in js.available_scopes()
        True
    """
    if not isinstance(name, str):
        return _register(getattr(name, "__name__", ""), unit, moves_along, name)
    return partial(_register, name, unit, moves_along)


def _register(name: str, unit: str, moves_along: bool, thing: Any) -> Any:
    builtin = str(getattr(thing, "__module__", "")).startswith("jscope_tl.")
    if not name:
        raise InputError("A scope needs a name to be registered; pass one: register_scope('name').")
    if not isinstance(unit, str):
        raise InputError(
            f"unit must be a string that is shown with scores, such as 'logit per unit of x'; got {unit!r}."
        )
    if name in _ENTRIES and _ENTRIES[name].builtin and not builtin:
        raise InputError(f"{name!r} is a scope of jscope_tl; register yours under another name.")
    if name == "explain":
        raise InputError("'explain' is the name of js.explain in runs and commands; register yours under another name.")
    if inspect.isclass(thing) and issubclass(thing, Scope):
        thing.name = name
        make: Callable[..., Scope] = thing
        takes_any = False
        options = [f.name for f in fields(thing)] if is_dataclass(thing) else []
    elif callable(thing) and not inspect.isclass(thing):
        make = partial(_function_scope, thing, name, unit, moves_along)
        parameters = list(_signature(thing).parameters.values())[1:]
        options = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        takes_any = len(options) < len(parameters)
    else:
        raise InputError(f"A scope must be a subclass of Scope or a function of the state; {thing!r} is neither.")
    taken = sorted(RESERVED & set(options))
    if taken:
        raise InputError(f"Scope {name!r} has an option {taken[0]!r}, which is a keyword of attribute; rename it.")
    summary = (inspect.getdoc(thing) or "").partition("\n")[0]
    _ENTRIES[name] = Entry(make, tuple(options), summary, builtin, takes_any)
    return thing


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError as error:
        raise InputError(
            f"The parameters of {function!r} cannot be inspected; wrap it in a function of the state."
        ) from error


def _function_scope(function: Callable[..., Any], name: str, unit: str, moves_along: bool, /, **options: Any) -> Scope:
    return FunctionScope(function, options, name, unit, moves_along)


def available_scopes() -> list[str]:
    """The names of all registered scopes, including your own."""
    return sorted(_ENTRIES)


def scope_entry(name: Any) -> Entry:
    """The registered scope of that name, or an error with the nearest one."""
    if not isinstance(name, str) or name not in _ENTRIES:
        near = nearest(name, [*_ENTRIES, "explain"])
        if "'explain'" in near:
            near = " Did you mean js.explain(model, prompt)? It is a function; on the command line: jscope PROMPT --scope explain."
        raise InputError(f"There is no scope {name!r}.{near} Known: {', '.join(available_scopes())}.")
    return _ENTRIES[name]


def get_scope(name: str) -> Callable[..., Scope]:
    """The constructor of the scope of that name: ``get_scope("fisher")(rank=8)`` is ``FisherScope(rank=8)``.

    Args:
        name: the name of a registered scope.

    Raises:
        InputError: there is no such scope.
    """
    return partial(_make, name, scope_entry(name))


def _make(name: str, entry: Entry, /, **options: Any) -> Scope:
    _check_options(name, None if entry.takes_any else entry.options, options)
    return entry.make(**options)


def _check_options(name: str, takes: tuple[str, ...] | None, options: dict[str, Any]) -> None:
    for option in options:
        if option in RESERVED:
            raise InputError(
                f"{option!r} is a keyword of js.attribute and similar functions, not an option of a scope."
            )
        if takes is not None and option not in takes:
            known = ", ".join(takes) or "no options"
            having = [other for other in available_scopes() if option in _ENTRIES[other].options]
            cure = (
                f" Leave it out, or use a scope that has it: {', '.join(having)}." if having else nearest(option, takes)
            )
            raise InputError(f"Scope {name!r} has no option {option!r}.{cure} It takes {known}.")


def resolve_scope(scope: Any, options: dict[str, Any]) -> Scope:
    """The scope for a registered name, a scope object, or a function from the state to cotangents."""
    if isinstance(scope, str):
        return get_scope(scope)(**options)
    if isinstance(scope, Scope):
        if options:
            raise InputError(
                f"Pass options to the constructor of the scope object, or pass the scope by name; got an object and {sorted(options)}."
            )
        return scope
    if inspect.isclass(scope) and issubclass(scope, Scope) and not inspect.isabstract(scope):
        _check_options(scope.__name__, tuple(inspect.signature(scope).parameters), options)
        return scope(**options)
    if callable(scope) and not inspect.isclass(scope):
        return FunctionScope(scope, options)
    raise InputError(
        f"scope must be a registered name, a scope object or a function of the state, not {type(scope).__name__}. "
        f"Known names: {', '.join(available_scopes())}."
    )
