"""Rules for products of two activations: matrix products of attention and elementwise products of gated MLPs; others are refused."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from jscope_tl.engine.ruled_pass import RuledPass
from jscope_tl.engine.rules import PLAIN


def _several(ruled: RuledPass, given: Iterable[Any]) -> bool:
    """Whether two of the arguments (or of the tensors in lists) require gradients, so that their product needs a rule.

    Activations and norms have their own rules: products inside them do not count, except the product with a norm's gate.
    """
    flat = [x for one in given for x in (one if isinstance(one, list | tuple) else [one])]
    found = [x for x in flat if isinstance(x, Tensor) and x.requires_grad]
    if ruled.inside == "norm" and (ruled.rules.norm == PLAIN or all(x is found[0] for x in found)):
        return False
    return len(found) > 1 and ruled.inside != "act"


def _contraction(ruled: RuledPass, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """The rule for matrix products; those of two activations must belong to attention."""
    product = func(*args, **kwargs)
    if not _several(ruled, [*args, *kwargs.values()]):
        return product
    if ruled.inside != "attn":
        ruled.miss("product")
        return product
    return ruled.product(product) if ruled.rules.attn in ("halved", "tempered") else product


def _sum_and_contraction(
    ruled: RuledPass, func: Callable[..., Tensor], added: Any, *args: Any, **kwargs: Any
) -> Tensor:
    """The rule for ``baddbmm`` and similar functions; the added tensor must not require gradients (such as a position bias)."""
    if added.requires_grad and _several(ruled, [added, *args, *kwargs.values()]):
        ruled.miss("product")
        return func(added, *args, **kwargs)
    return _contraction(ruled, lambda *given, **how: func(added, *given, **how), *args, **kwargs)


def _elementwise(ruled: RuledPass, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """The rule for elementwise products; that of an activation's output and another factor is a gated MLP's."""
    product, given = func(*args, **kwargs), [*args, *kwargs.values()]
    if not _several(ruled, given) or (ruled.inside == "mlp" and ruled.rules.mlp == PLAIN):
        return product
    if ruled.inside == "mlp" and any(factor is ruled.last_activated for factor in given):
        return ruled.product(product)
    ruled.miss("product")
    return product


PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.einsum), _contraction
    ),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), _sum_and_contraction),
    **dict.fromkeys(
        (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply), _elementwise
    ),
}
"""Functions that compute products, and their rules."""
LINEAR = {
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__,
    torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__, torch.rsub, Tensor.sub_, Tensor.__isub__,
    torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack, torch.broadcast_tensors,
    torch.where, Tensor.where, Tensor.copy_, Tensor.__setitem__, Tensor.type_as, Tensor.expand_as, Tensor.view_as,
    Tensor.reshape_as, Tensor.to, torch.index_add, Tensor.index_add, Tensor.index_add_, Tensor.index_copy,
    Tensor.index_copy_, Tensor.index_put, Tensor.index_put_, torch.scatter, Tensor.scatter, Tensor.scatter_,
    torch.scatter_add, Tensor.scatter_add, Tensor.scatter_add_, Tensor.masked_scatter, Tensor.masked_scatter_,
}  # fmt: skip
"""Functions that are linear in all their tensors together, so that they need no rule."""


def check_unknown(ruled: RuledPass, func: Any, given: Iterable[Any], found: Any) -> None:
    """Report other functions of several activations, which have no rule unless they are linear."""
    if func in LINEAR or not (isinstance(found, Tensor) and found.requires_grad and _several(ruled, given)):
        return
    if ruled.inside != "mlp" or ruled.rules.mlp != PLAIN:
        ruled.miss("product")
