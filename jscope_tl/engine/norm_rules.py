"""Rules for norms: the scale ``σ`` of ``x / σ(x)`` is held constant, in every function that computes one."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from jscope_tl.engine.ruled_pass import RuledPass


def _root(ruled: RuledPass, func: Callable[..., Tensor], x: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The rule for functions that return one number for each vector, such as ``rsqrt(mean(x²) + ε)``."""
    scale = func(x, *args, **kwargs)
    return ruled.constant("norm", scale) if scale.ndim > 1 and scale.shape[-1] == 1 else scale


def _power(ruled: RuledPass, func: Callable[..., Tensor], x: Any, exponent: Any) -> Tensor:
    is_root = isinstance(exponent, float) and abs(exponent) == 0.5
    return _root(ruled, func, x, exponent) if is_root else func(x, exponent)


def _layer_norm(
    ruled: RuledPass,
    func: Callable[..., Tensor],
    x: Float[Tensor, "*shape"],
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "*shape"]:
    axes = tuple(range(-len(shape), 0))
    return _scaled(ruled, x - x.mean(axes, keepdim=True), axes, weight, bias, eps)


def _rms_norm(
    ruled: RuledPass,
    func: Callable[..., Tensor],
    x: Float[Tensor, "*shape"],
    shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Float[Tensor, "*shape"]:
    smallest = torch.finfo(x.dtype).eps if eps is None else eps
    return _scaled(ruled, x, tuple(range(-len(shape), 0)), weight, None, smallest)


def _scaled(
    ruled: RuledPass,
    x: Float[Tensor, "*shape"],
    axes: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Float[Tensor, "*shape"]:
    precise = x.to(torch.promote_types(x.dtype, torch.float32))  # like torch's own norms
    scale = ruled.constant("norm", (precise.square().mean(axes, keepdim=True) + eps).rsqrt())
    scaled = precise * scale
    scaled = scaled if weight is None else scaled * weight
    return (scaled if bias is None else scaled + bias).to(x.dtype)


def _normalize(
    ruled: RuledPass,
    func: Callable[..., Tensor],
    x: Tensor,
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: Any = None,
) -> Tensor:
    return x / ruled.constant("norm", torch.linalg.vector_norm(x, p, dim, keepdim=True).clamp_min(eps))


CONSTANT: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys((torch.rsqrt, Tensor.rsqrt, torch.sqrt, Tensor.sqrt), _root),
    **dict.fromkeys((torch.norm, Tensor.norm, torch.linalg.norm, torch.linalg.vector_norm), _root),
    **dict.fromkeys((torch.pow, Tensor.pow, Tensor.__pow__), _power),
    functional.layer_norm: _layer_norm,
    **({functional.rms_norm: _rms_norm} if hasattr(functional, "rms_norm") else {}),  # from torch 2.4 on
    functional.normalize: _normalize,
}
"""The functions that compute a scale, and their replacements."""
