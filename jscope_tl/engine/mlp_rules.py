"""Rules for activations, which become a constant factor times their input."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from jscope_tl.engine.ruled_pass import RuledPass

AT_ZERO = 1e-5
"""An activation whose value at 0 is at most this counts as 0 there (xIELU has 1e-6)."""


def activated(ruled: RuledPass, func: Callable[..., Tensor], x: Float[Tensor, "*shape"], value: Any) -> Any:
    """``func(x)`` as ``x ⊙ c`` with ``c = func(x) / x`` held constant: the same value, with the slope of the line through the origin."""
    if not (isinstance(value, Tensor) and value.shape == x.shape and _has_secant(func, x, value)):
        ruled.miss("mlp")
        return value
    ruled.count("mlp")
    ruled.last_activated = _secant(func, x, value) if x.requires_grad else value
    return ruled.last_activated


def _has_secant(func: Callable[..., Tensor], x: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"]) -> bool:
    """Whether ``func`` is 0 at 0. If it overwrites ``x``, it must also be homogeneous, so that its own derivative is the slope."""
    twice = 2 * x.detach()
    homogeneous = value is not x or torch.equal(func(twice.clone()), twice)
    return homogeneous and bool(func(torch.zeros_like(x[..., :1])).abs().max() <= AT_ZERO)


def _secant(func: Callable[..., Tensor], x: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"]) -> Tensor:
    there, at_zero = x.detach(), x.detach() == 0
    slope = torch.where(at_zero, 1, value.detach()) / torch.where(at_zero, 1, there)
    if at_zero.any():
        slope = torch.where(at_zero, _derivative_at_zero(func, there), slope)
    return value.detach() + slope * (x - there)


def _derivative_at_zero(func: Callable[..., Tensor], like: Tensor) -> Tensor:
    with torch.enable_grad():
        zero = like.new_zeros(1, requires_grad=True)
        return torch.autograd.grad(func(1.0 * zero).sum(), zero)[0]


def _activation(ruled: RuledPass, func: Callable[..., Tensor], x: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The rule for torch's activation functions, in an MLP or outside of other modules."""
    value = func(x, *args, **kwargs)
    if ruled.inside in ("norm", "attn", "act") or not isinstance(x, Tensor):
        return value
    return activated(ruled, lambda at: func(at, *args, **kwargs), x, value)


def _within_mlp(ruled: RuledPass, func: Callable[..., Tensor], x: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The rule for functions that count as an activation only in an MLP."""
    if ruled.inside == "mlp" and isinstance(x, Tensor) and x.requires_grad:
        return _activation(ruled, func, x, *args, **kwargs)
    return func(x, *args, **kwargs)


def _named(names: str, *where: Any) -> list[Any]:
    """The functions of these names that exist."""
    return [getattr(module, name) for module in where for name in names.split() if hasattr(module, name)]


SECANT: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys(
        _named(
            "silu gelu relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu mish hardswish rrelu prelu glu",
            functional, torch, Tensor,
        ),
        _activation,
    ),
    **dict.fromkeys(
        _named(
            "tanh sigmoid softplus softsign hardtanh hardsigmoid logsigmoid tanhshrink hardshrink softshrink threshold softmax "
            "square exp exp2 expm1 erf sin cos log log2 log1p abs atan sinh asinh reciprocal pow __pow__ clamp clip "
            "tanh_ sigmoid_ square_ exp_ pow_ clamp_ abs_ __rpow__ __rdiv__ __rtruediv__",
            functional, torch, Tensor,
        ),
        _within_mlp,
    ),
}  # fmt: skip
"""Activation functions; those that are not 0 at 0, and most in-place ones, have no rule and are reported in an error."""
