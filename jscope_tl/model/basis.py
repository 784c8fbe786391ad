"""Detection of TransformerLens' weight processing from the weights themselves."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CENTERED = 0.05
"""``W_U`` counts as centred if the norm of its mean over the vocabulary, relative to that of random columns, is below this."""
SAMPLE, NOT_BY_CHANCE = 1024, 8.0
"""Number of columns that are read first, and the largest norm of their mean relative to random columns with which ``W_U`` may be
centred: the mean of a few columns of a centred ``W_U`` is like that of random ones, about 1."""


@dataclass(frozen=True)
class Basis:
    """TransformerLens' weight processing of a model, which changes the meaning of some scopes.

    Attributes:
        ln_folded: the final norm has no gain of its own (folded into ``W_U``), so ``‖y‖`` is the same for all inputs.
        unembed_centered: the mean over the vocabulary has been subtracted from ``W_U``.
    """

    ln_folded: bool
    unembed_centered: bool


def basis_of(model: Any) -> Basis:
    """The basis of a model's weights, determined from the weights, because configurations do not record it."""
    return Basis(ln_folded=_norm_without_gain(model), unembed_centered=_is_centered(model.W_U.detach()))


def _norm_without_gain(model: Any) -> bool:
    # In a model of several stacks, the final norm is that of the last stack.
    finals = [module for name, module in model.named_children() if name.endswith("ln_final")]
    norm = getattr(model, "ln_final", finals[-1] if finals else None)
    if norm is None or getattr(model.cfg, "normalization_type", "LN") is None:
        return False  # without a final norm, the norm of y can vary
    # A bridge keeps the tensors from before folding in .w and .b; the current ones are in .weight and .bias.
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
    """Whether ``W_U`` is centred; a few columns decide for most models, because reading all of ``W_U`` costs as much as a layer."""
    some = W_U[:16, :: max(1, W_U.shape[1] // SAMPLE)]
    return _mean_beside_random(some) < NOT_BY_CHANCE and all(
        _mean_beside_random(rows) < CENTERED for rows in (W_U[:16], W_U)
    )


def _mean_beside_random(columns: Float[Tensor, "some_d some_vocab"]) -> float:
    """The norm of the mean over the vocabulary, relative to that of random columns of the same size."""
    precise = torch.promote_types(columns.dtype, torch.float32)
    if_random = torch.linalg.vector_norm(columns, dtype=precise) / columns.shape[1]
    return float(columns.mean(1, dtype=precise).norm() / if_random)
