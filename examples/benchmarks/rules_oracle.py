"""Gradient rules written out from the papers' formulas, on HuggingFace models: attention and MLPs with other backward passes.

Nothing here imports the package or TransformerLens. Attention and gated MLPs are replaced by functions of their own, activations
are changed from outside; what the model computes stays the same, which whoever uses this has to check.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS = ("gelu", "silu", "relu", "activation", "mish")
Patterns = list[Float[Tensor, "1 head dest src"]]


def half(f: Tensor) -> Tensor:
    """The uniform rule for a product of two: the value, and half of its gradient for each factor."""
    return f / 2 + f.detach() / 2


class TemperedSoftmax(torch.autograd.Function):
    """``softmax(s)`` whose derivative is ``diag(P_T) - P_T P_T^T`` with ``P_T = softmax(s / 2)``."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        ctx.save_for_backward((scores / 2).softmax(-1))
        return scores.softmax(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (P,), (gradient,) = ctx.saved_tensors, gradients
        return P * gradient - P * (P * gradient).sum(-1, keepdim=True)


def attention(
    rule: str,
    patterns: Patterns,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention as in its formula, with grouped keys and values, a soft-cap and sinks; ``patterns`` gets its own."""
    halved = half if rule in ("halved", "tempered") else lambda f: f
    groups, pos = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = halved(torch.einsum("bhqd,bhkd->bhqk", query, key)) * _scaling(module, query, scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    later = torch.ones(pos, pos, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(later, -torch.inf)
    if attention_mask is not None:
        scores = scores + attention_mask[..., :pos].clamp_min(-1e30)
    sinks = getattr(module, "sinks", None)
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
    P = TemperedSoftmax.apply(scores) if rule == "tempered" else scores.softmax(-1)
    P = P[..., :pos].detach().requires_grad_() if rule == "constant" else P[..., :pos]
    patterns.append(P)
    return halved(torch.einsum("bhqk,bhkd->bqhd", P, value)).contiguous(), P


def _scaling(module: Any, query: Tensor, given: float | None) -> float:
    own = next((float(value) for value in (given, getattr(module, "scaling", None)) if value is not None), None)
    layered = getattr(module, "layer_idx", 0) + 1 if getattr(module, "scale_attn_by_inverse_layer_idx", False) else 1
    return (query.shape[-1] ** -0.5 if own is None else own) / layered


def secant(module: nn.Module, args: tuple[Tensor, ...], value: Tensor) -> Tensor:
    """``g · (act(g) / g)`` with the quotient as a constant."""
    return args[0] * (value / args[0]).detach()


def gated(module: Any, x: Tensor) -> Tensor:
    """``W_down (act(W_gate x) ⊙ W_up x)``, by the names that transformers has for them."""
    fused = [getattr(module, name) for name in ("gate_up_proj", "Wi") if hasattr(module, name)]
    gate, up = fused[0](x).chunk(2, -1) if fused else (module.gate_proj(x), module.up_proj(x))
    names = ("act_fn", "activation_fn", "act", "activation")
    act = next(getattr(module, name) for name in names if hasattr(module, name))
    product = half(act(gate) * up)
    product = module.ffn_sub_norm(product) if hasattr(module, "ffn_sub_norm") else product
    return module.Wo(product) if fused and hasattr(module, "Wo") else module.down_proj(product)


def _is_gated(module: nn.Module) -> bool:
    inside = {name for name, _ in module.named_children()}
    return {"down_proj", "gate_proj"} <= inside or {"down_proj", "gate_up_proj"} <= inside or {"Wi", "Wo"} <= inside


def _function(called: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function, which becomes a method where it is put into a class."""
    return lambda *args, **kwargs: called(*args, **kwargs)


@contextmanager
def _by_function(hf: nn.Module, rule: str, patterns: Patterns) -> Iterator[None]:
    """Attention that a model writes out itself: the functions that it is made of, while its modules run."""
    running: list[nn.Module] = []
    busy: list[str] = []

    def once(rule: Callable[..., Tensor], original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if not running or busy:  # torch's functions may call each other by the names that are replaced here
            return original(*args, **kwargs)
        busy.append("")
        try:
            value = original(*args, **kwargs)
        finally:
            busy.pop()
        return rule(value, *args, **kwargs)

    def product(value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        factors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad]
        return half(value) if len(factors) == 2 and rule in ("halved", "tempered") else value

    def softmax(P: Tensor, scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        P = TemperedSoftmax.apply(scores) if rule == "tempered" else P
        patterns.append(P.detach().requires_grad_() if rule == "constant" else P)
        return patterns[-1]

    with ExitStack() as stack:
        for module in hf.modules():
            if "Attention" in type(module).__name__:
                stack.callback(module.register_forward_pre_hook(lambda m, args: running.append(m)).remove)
                stack.callback(module.register_forward_hook(lambda m, args, out: running.pop() and None).remove)
        replaced = [(torch, "matmul"), (torch, "bmm"), (torch, "baddbmm"), (Tensor, "baddbmm"), (Tensor, "__matmul__")]
        for where, name, own in [*((*place, product) for place in replaced), (functional, "softmax", softmax)]:
            original = getattr(where, name)
            stack.enter_context(mock.patch.object(where, name, _function(partial(once, own, original))))
        yield


@contextmanager
def ruled(hf: nn.Module, attn: str, mlp: str) -> Iterator[Patterns]:
    """The model with attention and MLPs under the rules; what is yielded gets the pattern of each layer."""
    patterns: Patterns = []
    with ExitStack() as stack:
        names = {type(module).__module__ for module in hf.modules()}
        files = [sys.modules[name] for name in names if hasattr(sys.modules[name], "eager_attention_forward")]
        for file in files:
            own = partial(attention, attn, patterns)
            stack.enter_context(mock.patch.object(file, "eager_attention_forward", own))
        if not files:
            stack.enter_context(_by_function(hf, attn, patterns))
        if mlp == "secant":
            for module in hf.modules():
                if any(word in type(module).__name__.lower() for word in ACTIVATIONS):
                    stack.callback(module.register_forward_hook(secant).remove)
                elif _is_gated(module):
                    stack.enter_context(mock.patch.object(module, "forward", partial(gated, module)))
        yield patterns
