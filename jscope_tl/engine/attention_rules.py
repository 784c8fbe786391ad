"""Rules for attention: a constant pattern, products with half the gradient, a softmax at a higher temperature; and the pattern as an input.

``halved(f)`` is ``f`` with half its gradient. For a product ``f = a b`` of two activations this is the uniform rule: each
factor gets half of its derivative, so that the relevances of both factors add up to that of ``f``.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from jscope_tl.engine.ruled_pass import RuledPass, halved

TEMPERATURE = 2.0
"""The temperature of the softmax in the backward pass under the rule ``"tempered"``."""


def _softmax(ruled: RuledPass, func: Callable[..., Tensor], scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The rule for softmax. It counts as an attention pattern if the first position attends to no later one, unlike those of routers."""
    shares = func(scores, *args, **kwargs)
    causal = shares.ndim > 2 and shares.shape[-2] == ruled.pos and not shares[..., 0, 1 : ruled.pos].any()
    if not causal:
        return shares
    tempered = ruled.rules.attn == "tempered"
    return _pattern(ruled, shares, func(scores / TEMPERATURE, *args, **kwargs) if tempered else None)


def _pattern(
    ruled: RuledPass, pattern: Float[Tensor, "*heads q k"], tempered: Float[Tensor, "*heads q k"] | None
) -> Float[Tensor, "*heads q k"]:
    """The pattern under its rule, to be multiplied with values."""
    if ruled.rules.attn == "constant":
        return ruled.pattern_input(ruled.constant("attn", pattern))
    ruled.count("attn")
    if tempered is not None:  # d softmax(s/T)/ds has a factor 1/T, which the rule does not have
        pattern = pattern.detach() + TEMPERATURE * (tempered - tempered.detach())
    return ruled.pattern_input(pattern)


def _fused_attention(
    ruled: RuledPass,
    func: Callable[..., Tensor],
    query: Float[Tensor, "*heads q d"],
    key: Float[Tensor, "*kv_heads k d"],
    value: Float[Tensor, "*kv_heads k d_v"],
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Float[Tensor, "*heads q d_v"]:
    """The rule for fused attention, whose pattern is its output for unit vectors as values."""
    unit = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device).expand(*key.shape[:-1], key.shape[-2])
    split = ruled.rules.attn in ("halved", "tempered")
    found = func(query, key, unit, attn_mask, *args, **kwargs)
    tempered = None
    if ruled.rules.attn == "tempered":
        added = attn_mask is not None and attn_mask.is_floating_point()
        mask = attn_mask / TEMPERATURE if added and attn_mask is not None else attn_mask
        tempered = halved(func(query / TEMPERATURE, key, unit, mask, *args, **kwargs))
    pattern = _pattern(ruled, halved(found) if split else found, tempered)
    z = pattern @ value.repeat_interleave(pattern.shape[-3] // value.shape[-3], -3)
    ruled.count("product", 2 * split)
    return halved(z) if split else z


PATTERN: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys((functional.softmax, torch.softmax, Tensor.softmax), _softmax),
    functional.scaled_dot_product_attention: _fused_attention,
}
"""The functions that compute a pattern, and their replacements."""
