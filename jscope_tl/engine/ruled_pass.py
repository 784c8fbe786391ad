"""A forward pass under gradient rules: same values, other gradients.

Rules act where norms, patterns and products are computed, among torch's functions: hook points show only some of them, some models
compute beside those that they have, and TransformerLens computes a norm in another way once its scale is changed by a hook.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from jscope_tl.engine.rules import Rules
from jscope_tl.errors import InputError

WHAT = {"norm": "norm scales", "attn": "attention patterns", "mlp": "activations", "product": "products"}
"""What rules are for."""


ChangePattern = Callable[[int, Float[Tensor, "batch head dest src"]], Float[Tensor, "batch head dest src"]]


def halved(f: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same value with half of the gradient."""
    return f / 2 + f.detach() / 2


@dataclass
class HeldConstant:
    """Each pattern or scale at its value in the first run, in the order of computation.

    Later runs, elsewhere on a path, get the same values.
    """

    values: list[Float[Tensor, "*shape"]] = field(default_factory=list)


class RuledPass(TorchFunctionMode):
    """Between torch's functions and their callers, in one forward pass over ``batch`` prompts of ``pos`` tokens.

    Attributes:
        functions: by torch function what is called in its place, with this pass and the function before its arguments.
        check: what is called after each of the others, with its arguments and what it returned; or None.
        found: how often something of each kind (`WHAT`) was found.
        missed: for each kind the modules that compute it in a way that has no rule.
        last_activated: what the last activation with a rule returned, by which gated products are known.
        patterns: by layer the entries of its pattern as factors of 1, ``[1, (batch src), (head dest)]``, where gradients with respect
            to them are asked for; else None.
        entries: by layer the entries themselves, laid out alike.
        change: from a layer's number and its pattern to the one to go on with, in runs without gradients; or None.
    """

    def __init__(
        self,
        rules: Rules,
        functions: Mapping[Any, Callable[..., Any]],
        check: Callable[..., None] | None,
        held: HeldConstant,
        pos: int,
        batch: int,
        with_patterns: bool,
        change: "ChangePattern | None" = None,
    ) -> None:
        super().__init__()
        self.rules, self.functions, self.check, self.held = rules, functions, check, held
        self.pos, self.batch, self.change = pos, batch, change
        self.patterns: dict[int, Float[Tensor, "1 all_src head_dest"]] | None = {} if with_patterns else None
        self.entries: dict[int, Float[Tensor, "1 all_src head_dest"]] = {}
        self.found: Counter[str] = Counter()
        self.missed: dict[str, list[str]] = {}
        self.last_activated: Tensor | None = None
        self._running: list[tuple[str, str]] = []
        self._taken = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.functions:
            return self.functions[func](self, func, *args, **kwargs)
        found = func(*args, **kwargs)
        if self.check is not None:
            self.check(self, func, [*args, *kwargs.values()], found)
        return found

    @contextmanager
    def running(self, kind: str, name: str) -> Iterator[None]:
        """While a module of the kind runs."""
        self.enter(kind, name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, kind: str, name: str) -> None:
        """A module of the kind begins."""
        self._running.append((kind, name))

    def leave(self) -> None:
        """The innermost module has ended."""
        self._running.pop()

    @property
    def inside(self) -> str:
        """The kind of the innermost module that runs: ``norm``, ``attn``, ``mlp``, ``act``, or empty."""
        return self._running[-1][0] if self._running else ""

    def count(self, kind: str, n: int = 1) -> None:
        """Something of the kind was found; without gradients it is computed to be shown, beside what is used."""
        self.found[kind] += n * torch.is_grad_enabled()

    def miss(self, kind: str) -> None:
        """The module that runs computes something of the kind in a way that has no rule."""
        name = next((name for _, name in reversed(self._running) if name), "the model itself")
        self.missed.setdefault(kind, []).append(name)

    def product(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """A product of two activations: half of its gradient for each."""
        self.count("product")
        return halved(value)

    def constant(self, kind: str, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The value that the first run had here; what does not depend on the hook points stays as it is."""
        self.count(kind)
        if not value.requires_grad:
            return value
        self._taken += 1
        if self._taken > len(self.held.values):
            self.held.values.append(value.detach())
        kept = self.held.values[self._taken - 1]
        if len(value) > len(kept) > 0:  # the prompt several times side by side
            kept = kept.repeat(len(value) // len(kept), *[1] * (kept.ndim - 1))
        if kept.shape != value.shape:
            raise InputError(
                f"{WHAT[kind].capitalize()} cannot be held constant along this path: the model computes one of shape "
                f"{list(value.shape)} where the prompt has {list(kept.shape)}."
            )
        return kept

    def pattern_input(self, pattern: Float[Tensor, "*heads dest src"]) -> Float[Tensor, "*heads dest src"]:
        """The pattern, each entry times a factor of 1 with respect to which gradients are asked for; or as ``change`` makes it."""
        if self.change is None and (self.patterns is None or not torch.is_grad_enabled()):
            return pattern
        if pattern.ndim == 3 and len(pattern) % self.batch == 0:
            return self.pattern_input(pattern.unflatten(0, (self.batch, -1))).flatten(0, 1)
        beside = pattern[..., self.pos :].shape[-1]  # a sink takes a share of its own at every position
        if pattern.ndim != 4 or beside > 1 or (beside and not pattern[..., 0, self.pos].all()):
            raise InputError(
                f"Gradients with respect to attention patterns need patterns [batch, head, dest, src]; this model computes "
                f"{list(pattern.shape)} for {self.pos} tokens. Use at='hook_embed'."
            )
        if self.change is not None:
            return self.change(self._layer(), pattern)
        factors = rearrange(self._factors(pattern), "1 (b src) (h dest) -> b h dest src", b=self.batch, dest=self.pos)
        return pattern * (functional.pad(factors, (0, beside), value=1.0) if beside else factors)

    def _factors(self, pattern: Float[Tensor, "batch head dest src"]) -> Float[Tensor, "1 all_src head_dest"]:
        layer = self._layer()
        if self.patterns is None or layer in self.patterns:
            raise InputError(
                f"Layer {layer} computes several attention patterns, where one is needed. Use at='hook_embed'."
            )
        batch, head, dest, _ = pattern.shape
        one = pattern.new_ones(1, 1, 1)  # one number in memory, for as many entries as there are
        self.patterns[layer] = one.expand(1, batch * self.pos, head * dest).requires_grad_()
        self.entries[layer] = rearrange(pattern.detach()[..., : self.pos], "b h dest src -> 1 (b src) (h dest)")
        return self.patterns[layer]

    def _layer(self) -> int:
        """Of the module that runs, by the first number in its name; else patterns are counted."""
        numbers = [int(part) for _, name in self._running for part in name.split(".") if part.isdecimal()]
        return numbers[0] if numbers else len(self.patterns or ())
