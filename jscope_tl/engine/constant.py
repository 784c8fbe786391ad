"""Attention patterns and normalisation scales held constant, so that Jacobians go through values and directions only.

They are taken where they are computed, among torch's functions: hook points show only some of them, some models compute
beside those that they have, and TransformerLens computes a norm in another way once its scale is changed by a hook.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from jscope_tl.errors import InputError
from jscope_tl.model.hooks import on_this_thread
from jscope_tl.model.view import ModelView

KINDS = {"attn": "attention patterns", "norm": "norm scales"}
CALLED = {"attn": "attention", "norm": "norm"}
"""What classes of modules that compute them have in their names, on TransformerLens and transformers."""
NAMED = 6
"""Modules named in a refusal."""


def check_frozen(frozen: Any) -> tuple[str, ...]:
    """What to hold constant, in one order and each once, or a refusal."""
    given = (frozen,) if isinstance(frozen, str) else tuple(frozen) if isinstance(frozen, tuple | list | set) else None
    if given is None or any(not isinstance(kind, str) or kind not in KINDS for kind in given):
        raise InputError(
            f"frozen is 'attn' (attention patterns), 'norm' (norm scales), or both, ('attn', 'norm'); got {frozen!r}."
        )
    return tuple(kind for kind in KINDS if kind in given)


@dataclass
class HeldConstant:
    """Each pattern or scale at its value in the first run, in the order of computation.

    Later runs, elsewhere on a path, get the same values.
    """

    kinds: tuple[str, ...] = ()
    values: list[Float[Tensor, "*shape"]] = field(default_factory=list)

    @contextmanager
    def during(self, view: ModelView, pos: int) -> Iterator[None]:
        """One forward pass over ``pos`` tokens, in which they are held.

        Raises:
            InputError: there is nothing of a kind to hold, or a module computes it in a way that is not known here.
        """
        if not self.kinds:
            yield
            return
        holding = _Holding(self, pos)
        with ExitStack() as stack:
            for kind in self.kinds:
                for name, module in _modules(view.model, CALLED[kind]):
                    stack.enter_context(holding.watched(kind, name, module))
            stack.enter_context(holding)
            yield
        for kind in self.kinds:
            _need_all(view, kind, holding.missed[kind], holding.found[kind])


class _Holding(TorchFunctionMode):
    """Between torch's functions and their callers, in one forward pass.

    Attributes:
        found: for each kind how many were computed, held or before all that the Jacobian refers to.
        missed: for each kind the modules that compute it in another way.
    """

    def __init__(self, held: HeldConstant, pos: int) -> None:
        super().__init__()
        self.held, self.pos, self.taken = held, pos, 0
        self.rules = {func: rule for kind in held.kinds for func, rule in RULES[kind].items()}
        self.found = dict.fromkeys(held.kinds, 0)
        self.missed: dict[str, list[str]] = {kind: [] for kind in held.kinds}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = self.rules.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(self, func, *args, **(kwargs or {}))

    def constant(self, kind: str, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The value that the first run had here; what does not depend on the hook points stays as it is."""
        self.found[kind] += torch.is_grad_enabled()  # without, it is computed to be shown, beside the one that is used
        if not value.requires_grad:
            return value
        self.taken += 1
        if self.taken > len(self.held.values):
            self.held.values.append(value.detach())
        kept = self.held.values[self.taken - 1]
        if len(value) > len(kept) > 0:  # the prompt several times side by side
            kept = kept.repeat(len(value) // len(kept), *[1] * (kept.ndim - 1))
        if kept.shape != value.shape:
            raise InputError(
                f"{KINDS[kind].capitalize()} cannot be held constant along this path: the model computes one of shape "
                f"{list(value.shape)} where the prompt has {list(kept.shape)}."
            )
        return kept

    @contextmanager
    def watched(self, kind: str, name: str, module: nn.Module) -> Iterator[None]:
        """See that something was found in the module each time it ran, unless it passes its input on."""
        before: list[tuple[int, int]] = []

        def enter(module: nn.Module, args: Any) -> None:
            before.append((self.found[kind], len(self.missed[kind])))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            nothing = before.pop() == (self.found[kind], len(self.missed[kind]))
            first = output[0] if isinstance(output, tuple) else output
            changes = isinstance(first, Tensor) and first.requires_grad and not any(first is given for given in args)
            if nothing and changes:
                self.missed[kind].append(name)

        handles = [
            module.register_forward_pre_hook(on_this_thread(enter)),
            module.register_forward_hook(on_this_thread(leave)),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _modules(model: nn.Module, called: str) -> Iterator[tuple[str, nn.Module]]:
    """Those whose class is called so, a bridge's wrappers and what they wrap each; linear attention has no pattern."""
    for name, module in model.named_modules():
        kind = type(module).__name__.lower()
        if called in kind and "linear" not in kind:
            yield name.replace("._original_component", ""), module


def _need_all(view: ModelView, kind: str, missed: list[str], found: int) -> None:
    what = KINDS[kind]
    if missed:
        names = list(dict.fromkeys(missed))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise InputError(
            f"frozen={kind!r} is not possible on {view.name}: {', '.join(names[:NAMED])}{more} compute no {what} that could "
            f"be held constant. Leave {kind!r} out of frozen."
        )
    if not found:
        raise InputError(f"{view.name} computes no {what}, so frozen={kind!r} would change nothing. Leave it out.")


def _softmax(holding: _Holding, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """A pattern is a softmax in which the first position sees no later one; those of routers and samplers are none."""
    shares = func(*args, **kwargs)
    causal = shares.ndim > 2 and shares.shape[-2] == holding.pos and not shares[..., 0, 1 : holding.pos].any()
    return holding.constant("attn", shares) if causal else shares


def _fused_attention(
    holding: _Holding,
    func: Callable[..., Tensor],
    query: Float[Tensor, "*heads q d"],
    key: Float[Tensor, "*kv_heads k d"],
    value: Float[Tensor, "*kv_heads k d_v"],
    *args: Any,
    **kwargs: Any,
) -> Float[Tensor, "*heads q d_v"]:
    """Its pattern is what it makes of the unit vectors as values."""
    unit = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device).expand(*key.shape[:-1], key.shape[-2])
    pattern = holding.constant("attn", func(query, key, unit, *args, **kwargs))
    heads = pattern.shape[-3] // value.shape[-3]
    return pattern @ value.repeat_interleave(heads, -3)


def _root(holding: _Holding, func: Callable[..., Tensor], x: Any, *args: Any, **kwargs: Any) -> Tensor:
    """One number for each vector, such as ``rsqrt(mean(x²) + ε)``."""
    scale = func(x, *args, **kwargs)
    return holding.constant("norm", scale) if scale.ndim > 1 and scale.shape[-1] == 1 else scale


def _power(holding: _Holding, func: Callable[..., Tensor], x: Any, exponent: Any) -> Tensor:
    is_root = isinstance(exponent, float) and abs(exponent) == 0.5
    return _root(holding, func, x, exponent) if is_root else func(x, exponent)


def _layer_norm(
    holding: _Holding,
    func: Callable[..., Tensor],
    x: Float[Tensor, "*shape"],
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "*shape"]:
    axes = tuple(range(-len(shape), 0))
    return _scaled(holding, x - x.mean(axes, keepdim=True), axes, weight, bias, eps)


def _rms_norm(
    holding: _Holding,
    func: Callable[..., Tensor],
    x: Float[Tensor, "*shape"],
    shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Float[Tensor, "*shape"]:
    smallest = torch.finfo(x.dtype).eps if eps is None else eps
    return _scaled(holding, x, tuple(range(-len(shape), 0)), weight, None, smallest)


def _scaled(
    holding: _Holding,
    x: Float[Tensor, "*shape"],
    axes: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Float[Tensor, "*shape"]:
    precise = x.to(torch.promote_types(x.dtype, torch.float32))  # as torch's own norms do
    scale = holding.constant("norm", (precise.square().mean(axes, keepdim=True) + eps).rsqrt())
    scaled = precise * scale
    scaled = scaled if weight is None else scaled * weight
    return (scaled if bias is None else scaled + bias).to(x.dtype)


def _normalize(
    holding: _Holding,
    func: Callable[..., Tensor],
    x: Tensor,
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: Any = None,
) -> Tensor:
    return x / holding.constant("norm", torch.linalg.vector_norm(x, p, dim, keepdim=True).clamp_min(eps))


RULES: dict[str, dict[Any, Callable[..., Tensor]]] = {
    "attn": {
        **dict.fromkeys((functional.softmax, torch.softmax, Tensor.softmax), _softmax),
        functional.scaled_dot_product_attention: _fused_attention,
    },
    "norm": {
        **dict.fromkeys((torch.rsqrt, Tensor.rsqrt, torch.sqrt, Tensor.sqrt), _root),
        **dict.fromkeys((torch.norm, Tensor.norm, torch.linalg.norm, torch.linalg.vector_norm), _root),
        **dict.fromkeys((torch.pow, Tensor.pow, Tensor.__pow__), _power),
        functional.layer_norm: _layer_norm,
        **({functional.rms_norm: _rms_norm} if hasattr(functional, "rms_norm") else {}),  # from torch 2.4 on
        functional.normalize: _normalize,
    },
}
"""For each kind the functions that compute it, and what is done in their place."""
