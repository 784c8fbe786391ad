"""A forward pass under gradient rules: the same values with other gradients.

Rules replace the torch functions that compute norms, patterns and products. Hook points are not sufficient: they show only some of these
values, some models do not use the values at their hook points, and TransformerLens computes a norm differently if a hook changes its scale.
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
"""The kinds of values that have rules, as they are called in messages."""


ChangePattern = Callable[[int, Float[Tensor, "batch head dest src"]], Float[Tensor, "batch head dest src"]]


def halved(f: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same value with half the gradient."""
    return f / 2 + f.detach() / 2


@dataclass
class HeldConstant:
    """The patterns and scales of the first run, in the order of computation.

    Later runs, at other points of a path, use the same values.
    """

    values: list[Float[Tensor, "*shape"]] = field(default_factory=list)


class RuledPass(TorchFunctionMode):
    """A mode that intercepts torch functions in one forward pass over ``batch`` prompts of ``pos`` tokens.

    Attributes:
        functions: the replacement of each torch function, called with this pass and the function before its arguments.
        check: a function that is called after every other torch function, with its arguments and its result; or None.
        found: for each kind (`WHAT`), how often it was found.
        missed: for each kind, the modules that compute it in a way that has no rule.
        last_activated: the output of the last activation with a rule, which identifies gated products.
        patterns: for each layer, factors of 1 for the entries of its pattern, ``[1, (batch src), (head dest)]``, if gradients with
            respect to them are requested; else None.
        entries: for each layer, the entries themselves, in the same layout.
        change: a function from a layer's number and its pattern to the pattern to use instead, in runs without gradients; or None.
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
        """Mark a module of the kind as running inside the context."""
        self.enter(kind, name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, kind: str, name: str) -> None:
        """Record that a module of the kind begins."""
        self._running.append((kind, name))

    def leave(self) -> None:
        """Record that the innermost module has ended."""
        self._running.pop()

    @property
    def inside(self) -> str:
        """The kind of the innermost module that runs: ``norm``, ``attn``, ``mlp``, ``act``, or empty."""
        return self._running[-1][0] if self._running else ""

    def count(self, kind: str, n: int = 1) -> None:
        """Count a value of the kind; without gradients it is not counted, because it is computed only for display."""
        self.found[kind] += n * torch.is_grad_enabled()

    def miss(self, kind: str) -> None:
        """Record that the running module computes a value of the kind in a way that has no rule."""
        name = next((name for _, name in reversed(self._running) if name), "the model itself")
        self.missed.setdefault(kind, []).append(name)

    def product(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """A product of two activations, with half the gradient for each."""
        self.count("product")
        return halved(value)

    def constant(self, kind: str, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The value of the first run, as a constant; values that do not depend on the hook points are returned unchanged."""
        self.count(kind)
        if not value.requires_grad:
            return value
        self._taken += 1
        if self._taken > len(self.held.values):
            self.held.values.append(value.detach())
        kept = self.held.values[self._taken - 1]
        if len(value) > len(kept) > 0:  # a batch of several copies of the prompt
            kept = kept.repeat(len(value) // len(kept), *[1] * (kept.ndim - 1))
        if kept.shape != value.shape:
            raise InputError(
                f"{WHAT[kind].capitalize()} cannot be held constant along this path: the model computes one of shape "
                f"{list(value.shape)}, but at the prompt it has {list(kept.shape)}."
            )
        return kept

    def pattern_input(self, pattern: Float[Tensor, "*heads dest src"]) -> Float[Tensor, "*heads dest src"]:
        """The pattern with each entry multiplied by a factor of 1 that gradients refer to; or the pattern that ``change`` returns."""
        if self.change is None and (self.patterns is None or not torch.is_grad_enabled()):
            return pattern
        if pattern.ndim == 3 and len(pattern) % self.batch == 0:
            return self.pattern_input(pattern.unflatten(0, (self.batch, -1))).flatten(0, 1)
        beside = pattern[..., self.pos :].shape[-1]  # columns of attention sinks
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
                f"Layer {layer} computes several attention patterns, but one is needed. Use at='hook_embed'."
            )
        batch, head, dest, _ = pattern.shape
        one = pattern.new_ones(1, 1, 1)  # a single number in memory, expanded to all entries
        self.patterns[layer] = one.expand(1, batch * self.pos, head * dest).requires_grad_()
        self.entries[layer] = rearrange(pattern.detach()[..., : self.pos], "b h dest src -> 1 (b src) (h dest)")
        return self.patterns[layer]

    def _layer(self) -> int:
        """The layer of the running module, the first number in its name; without one, the number of patterns so far."""
        numbers = [int(part) for _, name in self._running for part in name.split(".") if part.isdecimal()]
        return numbers[0] if numbers else len(self.patterns or ())
