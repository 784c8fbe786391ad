"""Hooks for the package's runs: active on this thread only, in addition to the user's hooks, whose return values are checked."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from itertools import count
from threading import get_ident
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn

from jscope_tl.errors import InputError
from jscope_tl.model.view import OWN_LEVEL, ModelView

LEVELS = count(OWN_LEVEL)


@contextmanager
def hooked(view: ModelView, given: Sequence[Any], own: Sequence[Any] = ()) -> Iterator[None]:
    """Add hooks for the runs of this thread: the user's (``given``), then our ``own``; hooks on the model stay active.

    TransformerLens' contexts are not used, because they count levels on the model, and one thread could remove the hooks of
    another.

    Raises:
        InputError: a user's hook cannot be called, returns an unsuitable value, or never ran.
    """
    mismatches, ran = list[str](), set[int]()
    with ExitStack() as stack:
        for point in {id(point): point for point in view.points.values() if view.has_hooks(point)}.values():
            _watch(stack, point, mismatches)
        for i, (name, function) in enumerate(given):
            _place(stack, view, name, partial(_checked, _callable(name, function), partial(ran.add, i), mismatches))
        for name, function in own:
            _place(stack, view, name, function)
        try:
            yield
        except Exception as error:
            if mismatches and not isinstance(error, InputError):
                raise InputError(mismatches[-1]) from error
            raise
    for i, hook in enumerate(given):
        if i not in ran:
            _refuse_idle(view, *hook)


def on_this_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that is ignored in other threads, which may run the same model."""
    thread = get_ident()

    @wraps(function)
    def hook(*args: Any, **how: Any) -> Any:
        return function(*args, **how) if get_ident() == thread else None

    return hook


def _refuse_idle(view: ModelView, name: Any, function: Any) -> None:
    raise InputError(
        f"The hook {described(function)} at {name if isinstance(name, str) else described(name)!r} never ran: {view.name} "
        "does not compute that point with its current settings. Some points are enabled by model.set_use_attn_result(True), "
        "set_use_split_qkv_input, set_use_hook_mlp_in or set_use_attn_in."
    )


def described(function: Any) -> str:
    """The name of a function; the repr of a ``partial`` may contain large tensors and be slow."""
    inner = function.func if isinstance(function, partial) else function
    return str(getattr(inner, "__qualname__", type(inner).__name__))


def _place(stack: ExitStack, view: ModelView, name: Any, function: Callable[..., Any]) -> None:
    """Add a hook at a point, or at each point whose name passes a filter; a reset of hooks by another thread does not remove it."""
    points: dict[str, Any] = view.points
    names = [name] if isinstance(name, str) else [known for known in points if name(known)]
    for point in {id(points[known]): points[known] for known in names}.values():
        level = next(LEVELS)
        point.add_hook(on_this_thread(function), is_permanent=True, level=level)
        handle = next(h for h in reversed(point.fwd_hooks) if h.context_level == level)
        stack.callback(_remove, point, handle)


def _remove(point: Any, handle: Any) -> None:
    handle.hook.remove()
    point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]


def _callable(name: Any, function: Any) -> Callable[..., Any]:
    try:
        inspect.signature(function).bind(None, hook=None)
    except TypeError as error:
        raise InputError(
            f"The hook {described(function)} at {name!r} cannot be called with an activation and hook=... ({error}). "
            "TransformerLens' hooks are functions of (activation, hook)."
        ) from error
    except ValueError:  # no signature, as of some built-in functions
        pass
    return function


def _checked(
    function: Callable[..., Any],
    runs: Callable[[], None],
    mismatches: list[str],
    activation: Shaped[Tensor, "*shape"],
    hook: Any,
) -> Any:
    """The return value of the user's hook, if it is suitable."""
    kind = _kind(activation)
    runs()
    returned = function(activation, hook=hook)
    if returned is not None:
        _check(kind, returned, f"The hook {described(function)} at {hook.name!r}", mismatches)
    return returned


def _watch(stack: ExitStack, point: Any, mismatches: list[str]) -> None:
    """Check the activation after the user's hooks on the model at a point, before the hooks of this run."""
    before: list[Any] = []
    names = [described(found) for h in point.fwd_hooks if (found := getattr(h, "user_hook", None)) is not None]
    what = f"A hook on the model at {point.name!r} ({' or '.join(names) or 'by add_hook'})"

    def enter(module: nn.Module, args: Any, output: Shaped[Tensor, "*shape"]) -> None:
        before[:] = [_kind(output)]

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        _check(before[0], output, what, mismatches)

    for function, first in ((enter, True), (leave, False)):
        stack.callback(point.register_forward_hook(on_this_thread(function), prepend=first).remove)


def _kind(tensor: Shaped[Tensor, "*shape"]) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _check(kind: tuple[Any, ...], returned: Any, what: str, mismatches: list[str]) -> None:
    """Refuse another shape. Another dtype or device, which some models accept, is only reported if the run fails later."""
    found = _kind(returned) if isinstance(returned, Tensor) else None
    if found == kind:
        return
    says = type(returned).__name__ if found is None else _said(found)
    message = f"{what} returned {says}; it must return {_said(kind)}, like its input, or None to leave the activation unchanged."
    if found is None or found[0] != kind[0]:
        raise InputError(message)
    mismatches.append(message)


def _said(kind: tuple[Any, ...]) -> str:
    shape, dtype, device = kind
    return f"a tensor {list(shape)} of {dtype} on {device}"
