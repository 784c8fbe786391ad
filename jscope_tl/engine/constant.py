"""Attention patterns and normalisation scales held constant, so that Jacobians go through values and directions only."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.model.view import ModelView

POINTS = {"attn": "hook_pattern", "norm": "hook_scale"}


def check_frozen(frozen: Any) -> tuple[str, ...]:
    """What to hold constant, in one order and each once, or a refusal."""
    given = (frozen,) if isinstance(frozen, str) else tuple(frozen) if isinstance(frozen, tuple | list | set) else None
    if given is None or any(not isinstance(kind, str) or kind not in POINTS for kind in given):
        raise InputError(
            f"frozen is 'attn' (attention patterns), 'norm' (norm scales), or both, ('attn', 'norm'); got {frozen!r}."
        )
    return tuple(kind for kind in POINTS if kind in given)


@dataclass
class HeldConstant:
    """Hooks that hold each pattern or scale at the value of the first run; later runs, elsewhere on a path, get it too."""

    kinds: tuple[str, ...] = ()
    held: dict[str, Float[Tensor, "batch *rest"]] = field(default_factory=dict)
    _unchecked: list[str] = field(default_factory=list)

    def hooks(self, view: ModelView, begun: Callable[[], bool]) -> list[tuple[str, Callable[..., Any]]]:
        """One for each place of the kinds that are frozen (bridges know some by several names).

        ``begun`` tells whether the hook point that Jacobians refer to has run: what came before does not depend on it.
        """
        found = []
        for kind in self.kinds:
            names = view.points_showing(POINTS[kind])
            if not names:
                raise InputError(
                    f"{view.name} has no hook point {POINTS[kind]!r}, so frozen={kind!r} is not possible on it."
                )
            found += [(name, self._hold(name, begun)) for name in names]
        return found

    def _hold(self, name: str, begun: Callable[[], bool]) -> Callable[..., Float[Tensor, "batch *rest"]]:
        def hold(value: Float[Tensor, "batch *rest"], hook: Any) -> Float[Tensor, "batch *rest"]:
            if name not in self.held:
                self.held[name] = value.detach().requires_grad_()
                self._unchecked += [name] * begun()
            held = self.held[name]
            return held if len(held) == len(value) else held[:1].expand_as(value)

        return hold

    def check(self, view: ModelView, y: Float[Tensor, "n d_model"], hooked: bool) -> None:
        """Refuse where the model computes past its hook points: a bridge may show a pattern beside the one that it uses.

        Some may go unused where hooks of the user's cut parts of the model off, but not all.
        """
        names, self._unchecked = self._unchecked, []
        if not names:
            return
        held = [self.held[name] for name in names]
        used = torch.autograd.grad(y.sum(), held, retain_graph=True, allow_unused=True)
        beside = [name for name, gradient in zip(names, used, strict=True) if gradient is None]
        if beside and not (hooked and len(beside) < len(names)):
            raise InputError(
                f"On {view.name} ({type(view.model).__name__}) nothing that {beside[0]!r} shows is used by the model, so "
                "holding it would change nothing. Load it with attn_implementation='eager', or as another class."
            )


@contextmanager
def quiet_norms() -> Iterator[None]:
    """A bridge warns that a norm whose scale is held is computed by TransformerLens; that is what is wanted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*hook_scale.*")
        yield
