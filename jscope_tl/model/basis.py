"""Which of TransformerLens' weight processings a model has been through, read off the weights themselves."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CENTERED = 0.05
"""Mean of ``W_U`` over the vocabulary, in units of what random columns would have (1): below this it was centred."""
SAMPLE, NOT_BY_CHANCE = 1024, 8.0
"""So many columns of a centred ``W_U`` have a mean like random ones, about 1; above this it was not centred."""


@dataclass(frozen=True)
class Basis:
    """Which of TransformerLens' weight processings the model has been through; some scopes change their meaning.

    Attributes:
        ln_folded: the final norm has no gain of its own (folded into ``W_U``), so ``‖y‖`` is the same for all inputs.
        unembed_centered: the mean over the vocabulary has been taken out of ``W_U``.
    """

    ln_folded: bool
    unembed_centered: bool


def basis_of(model: Any) -> Basis:
    """The basis of a model's weights: configurations forget what was done to them."""
    return Basis(ln_folded=_norm_without_gain(model), unembed_centered=_is_centered(model.W_U.detach()))


def _norm_without_gain(model: Any) -> bool:
    # A model of several stacks ends with the norm of its last one.
    finals = [module for name, module in model.named_children() if name.endswith("ln_final")]
    norm = getattr(model, "ln_final", finals[-1] if finals else None)
    if norm is None or getattr(model.cfg, "normalization_type", "LN") is None:
        return False  # no final norm at all: the norm of y is free
    # A bridge keeps the tensor from before folding in .w and .b: the current one is in .weight and .bias.
    gain, bias = (_first_tensor(norm, names) for names in (("weight", "w"), ("bias", "b")))
    uniform = gain is None or bool((gain == gain.flatten()[0]).all())
    return uniform and (bias is None or not bias.any())


def _first_tensor(module: Any, names: tuple[str, ...]) -> Tensor | None:
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, Tensor):
            return value.detach()
    return None


def _is_centered(W_U: Float[Tensor, "d_model d_vocab"]) -> bool:
    """A few numbers tell most models apart: reading all of ``W_U`` would cost as much as a layer."""
    some = W_U[:16, :: max(1, W_U.shape[1] // SAMPLE)]
    return _mean_beside_random(some) < NOT_BY_CHANCE and all(
        _mean_beside_random(rows) < CENTERED for rows in (W_U[:16], W_U)
    )


def _mean_beside_random(columns: Float[Tensor, "some_d some_vocab"]) -> float:
    """Length of the mean over the vocabulary, in units of what random columns of that size would have."""
    precise = torch.promote_types(columns.dtype, torch.float32)
    if_random = torch.linalg.vector_norm(columns, dtype=precise) / columns.shape[1]
    return float(columns.mean(1, dtype=precise).norm() / if_random)
