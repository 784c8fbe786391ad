"""Rules for MLPs, an activation as a constant factor, and for products of two activations, wherever they are."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from jscope_tl.engine.ruled_pass import RuledPass


def activated(ruled: RuledPass, func: Callable[..., Tensor], x: Float[Tensor, "*shape"], value: Any) -> Any:
    """``func(x)`` as ``x ⊙ c`` with ``c = func(x) / x`` held constant: the same value, the slope of the secant through 0."""
    same_shape = isinstance(value, Tensor) and value.shape == x.shape
    if not same_shape or func(torch.zeros_like(x[..., :1])).any():
        ruled.miss("mlp")
        return value
    ruled.count("mlp")
    return _secant(func, x, value) if x.requires_grad else value


def _secant(func: Callable[..., Tensor], x: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"]) -> Tensor:
    there, at_zero = x.detach(), x.detach() == 0
    slope = torch.where(at_zero, 1, value.detach()) / torch.where(at_zero, 1, there)
    if at_zero.any():
        slope = torch.where(at_zero, _derivative_at_zero(func, there), slope)
    return value.detach() + slope * (x - there)


def _derivative_at_zero(func: Callable[..., Tensor], like: Tensor) -> Tensor:
    with torch.enable_grad():
        zero = like.new_zeros(1, requires_grad=True)
        return torch.autograd.grad(func(zero).sum(), zero)[0]


def _activation(ruled: RuledPass, func: Callable[..., Tensor], x: Any, *args: Any, **kwargs: Any) -> Tensor:
    """One of torch's own, where a model calls it in an MLP or by itself."""
    value = func(x, *args, **kwargs)
    if ruled.inside in ("norm", "attn", "act") or not isinstance(x, Tensor):
        return value
    return activated(ruled, lambda at: func(at, *args, **kwargs), x, value)


def _within_mlp(ruled: RuledPass, func: Callable[..., Tensor], x: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Functions that are an activation in an MLP and something else elsewhere."""
    if ruled.inside == "mlp" and isinstance(x, Tensor) and x.requires_grad:
        return _activation(ruled, func, x, *args, **kwargs)
    return func(x, *args, **kwargs)


def _power(ruled: RuledPass, func: Callable[..., Tensor], x: Any, exponent: Any) -> Tensor:
    return _within_mlp(ruled, func, x, exponent)


SECANT: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys(
        (
            functional.silu, functional.gelu, functional.relu, torch.relu, Tensor.relu, functional.relu6,
            functional.leaky_relu, functional.elu, functional.selu, functional.mish, functional.hardswish,
        ),
        _activation,
    ),
    **dict.fromkeys(
        (
            torch.tanh, Tensor.tanh, functional.tanh, torch.sigmoid, Tensor.sigmoid, functional.sigmoid, torch.square,
            Tensor.square, torch.exp, Tensor.exp, functional.softplus, torch.pow, Tensor.pow, Tensor.__pow__, torch.clamp,
            Tensor.clamp,
        ),
        _within_mlp,
    ),
}  # fmt: skip
"""Activations; those that are not 0 at 0 have no secant through it and are named as not covered."""


def _factors(args: Any) -> list[Tensor]:
    """The tensors among the arguments (also in a list, as einsum takes them) that a gradient goes to."""
    flat = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else [arg])]
    return [x for x in flat if isinstance(x, Tensor) and x.requires_grad]


def _contraction(ruled: RuledPass, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """A matrix product; of two activations it belongs to attention."""
    product = func(*args, **kwargs)
    if len(_factors(args)) < 2 or ruled.inside in ("norm", "act"):
        return product
    if ruled.inside != "attn":
        ruled.miss("product")
        return product
    return ruled.product(product) if ruled.rules.attn in ("halved", "tempered") else product


def _sum_and_contraction(
    ruled: RuledPass, func: Callable[..., Tensor], added: Any, *args: Any, **kwargs: Any
) -> Tensor:
    """``baddbmm`` and its like: what is added to the product, a bias by position, keeps its own gradient (it has none)."""
    if len(_factors(args)) > 1 and _factors([added]):
        ruled.miss("product")
        return func(added, *args, **kwargs)
    return _contraction(ruled, lambda *factors, **how: func(added, *factors, **how), *args, **kwargs)


def _elementwise(ruled: RuledPass, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Of two activations it is a gated MLP's."""
    product = func(*args, **kwargs)
    if len(_factors(args)) < 2 or ruled.inside in ("norm", "act"):
        return product
    if ruled.inside == "mlp":
        return ruled.product(product) if ruled.rules.mlp == "secant" else product
    ruled.miss("product")
    return product


def _refused(ruled: RuledPass, func: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Quotients, and products that overwrite a factor, have no rule."""
    if len(_factors([x, *args])) > 1 and ruled.inside not in ("norm", "act"):
        ruled.miss("product")
    return func(x, *args, **kwargs)


PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.einsum), _contraction
    ),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), _sum_and_contraction),
    **dict.fromkeys(
        (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply), _elementwise
    ),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__, torch.true_divide, Tensor.true_divide), _refused),
    **dict.fromkeys((Tensor.mul_, Tensor.__imul__, Tensor.div_, Tensor.__itruediv__, Tensor.baddbmm_), _refused),
}  # fmt: skip
"""Products (and quotients) of two activations, which are all known or refused."""
