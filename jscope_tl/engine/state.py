"""`State`, the input of a scope: the model's output at the explained position, and the dependence of the logits on it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.model.basis import Basis

LINEARITY = (1e-3, 0.03)
"""Relative tolerance between ``D`` from its formula and from autograd, in full and in half precision."""
BLOCK = 512
"""Number of tokens whose unembedding is converted at once; a direction with at most this many entries counts as sparse."""
PARTS = 8
"""Number of rows that a dense direction in logit space is split into for autograd."""


@dataclass(frozen=True)
class State:
    """One forward pass, cut at the hook point and at the input of the unembedding.

    Attributes:
        tokens: the prompt, ``[pos]``.
        position: the explained position, not negative.
        x: the activation at the hook point, ``[pos, d_in]``; for the default reduction (row norms) it is the variable of the Jacobians.
        y: the post-layer-norm final hidden state at ``position``, ``[d_model]``, still attached to ``x``.
        logits: the model's logits at ``position``, ``[d_vocab]``, including bias, scale and soft-cap; in float64, as a separate
            leaf of the graph.
        W_U: the unembedding, ``[d_model, d_vocab]``.
        slope: the derivative of each logit with respect to its value before soft-cap and scale, ``[d_vocab]``.
        basis: the weight processing of the model.
        to_id: a function that converts a target (string or id) into an id, or raises; None becomes the prompt's own next token if
            there is one, else the most probable token.
    """

    tokens: Int[Tensor, "pos"]
    position: int
    x: Float[Tensor, "pos d_in"]
    y: Float[Tensor, "d_model"]
    logits: Float[Tensor, "d_vocab"]
    W_U: Float[Tensor, "d_model d_vocab"]
    slope: Float[Tensor, "d_vocab"]
    basis: Basis
    to_id: Callable[[Any], int]
    _y_cut: Float[Tensor, "d_model"] = field(repr=False)
    _output: Float[Tensor, "d_vocab"] = field(repr=False)
    _by_product: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of cotangents and scores: float32, or float64 for float64 models."""
        return torch.promote_types(self.y.dtype, torch.float32)

    @property
    def log_probs(self) -> Float[Tensor, "d_vocab"]:
        """The logarithm of the next-token distribution ``p``, in float64, as a function of ``logits``."""
        return self.logits.log_softmax(-1)

    def gradient(self, quantity: Callable[[Float[Tensor, "d_vocab"]], Float[Tensor, ""]]) -> Float[Tensor, "d_model"]:
        """The gradient with respect to ``y`` of a scalar function of the logits, including soft-cap and logit scale.

        Example:
            >>> def margin(state):  # a custom scope: the highest logit minus the second highest
            ...     return state.gradient(lambda logits: logits.topk(2).values @ logits.new_tensor([1.0, -1.0]))
        """
        value = quantity(self.logits)
        if not (isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad):
            raise InputError(
                "state.gradient needs a function that returns one number computed from the logits that it receives, "
                f"with torch operations; it returned {value!r}."
            )
        (along,) = torch.autograd.grad(value.sum(), self.logits, retain_graph=True)
        return self.pull_logits(along)

    def is_linear(self) -> bool:
        """Whether ``D`` is ``W_U`` with each logit scaled by its slope: nothing after the unembedding mixes logits."""
        signs = torch.randint(0, 2, self.slope.shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        direction = (2.0 * signs - 1).to(self.slope)
        seen = self.pull_logits(direction)
        allowed = LINEARITY[self.y.dtype in (torch.float16, torch.bfloat16)]
        return bool((seen - self._product(direction).to(seen)).norm() <= allowed * seen.norm())

    def _product(self, u: Float[Tensor, "d_vocab"]) -> Float[Tensor, "d_model"]:
        return product(self.W_U, u * self.slope.to(u))

    def pull_logits(self, u: Float[Tensor, "d_vocab"]) -> Float[Tensor, "d_model"]:
        """``D^T u`` with ``D = ∂z/∂y``: the direction of ``y`` that belongs to a direction in logit space."""
        scale = u.abs().max().clamp_min(torch.finfo(u.dtype).tiny)  # a small u underflows in half precision
        pulled = self._product(u / scale) if self._by_product else self._through_graph(u / scale)
        return (pulled * scale).to(self.dtype)

    def _through_graph(self, u: Float[Tensor, "d_vocab"]) -> Float[Tensor, "d_model"]:
        """``D^T u`` by autograd; a dense ``u`` is split into several rows, because matrix products are summed more precisely."""
        if self._output.dtype != torch.float32 or u.count_nonzero() <= BLOCK:
            return self._pulled(u)
        own = torch.arange(len(u), device=u.device) % PARTS
        rows = u * (own == rearrange(torch.arange(PARTS, device=u.device), "row -> row 1"))
        try:
            return self._pulled(rows, is_grads_batched=True).sum(0)
        except RuntimeError:  # it cannot be batched, or does not fit into memory
            return sum((self._pulled(row) for row in rows), torch.zeros(()).to(u))

    def _pulled(self, u: Float[Tensor, "*row d_vocab"], **how: bool) -> Float[Tensor, "*row d_model"]:
        (pulled,) = torch.autograd.grad(self._output, self._y_cut, u.to(self._output), retain_graph=True, **how)
        return pulled.to(u)


def product(W: Float[Tensor, "d_model tokens"], u: Float[Tensor, "tokens"]) -> Float[Tensor, "d_model"]:
    """``W u`` in the dtype of ``u``, computed in blocks of tokens, so that there is no second copy of ``W``.

    A float32 matrix-vector product sums token by token, and loses three digits over a vocabulary of 50,000.
    """
    blocks = zip(W.split(BLOCK, 1), u.split(BLOCK), strict=True)
    return sum((of_W.to(u) @ of_u for of_W, of_u in blocks), u.new_zeros(()))


def divergence(log_p: Float[Tensor, "*n d_vocab"], log_q: Float[Tensor, "*m d_vocab"]) -> Float[Tensor, "*nm"]:
    """``KL(p ‖ q)`` in nats, from logarithms of the probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)
