"""What a scope may look at: the model's output at the explained position, and how the logits depend on it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.model.basis import Basis

LINEARITY = (1e-3, 0.03)
"""Relative difference allowed between ``D`` as built and as autograd sees it, in full and in half precision."""


@dataclass(frozen=True)
class State:
    """One forward pass, cut at the hook point and at the input of the unembedding.

    Attributes:
        tokens: the prompt, ``[pos]``.
        position: the explained position, not negative.
        x: the activation at the hook point, ``[pos, d_in]``; where rows are norms the leaf that Jacobians are taken with respect to.
        y: the post-layer-norm final hidden state at ``position``, ``[d_model]``, still attached to ``x``.
        logits: the model's own logits at ``position``, ``[d_vocab]``, bias, scale and soft-cap included; in float64,
            a leaf of its own.
        W_U: the unembedding, ``[d_model, d_vocab]``.
        slope: derivative of each logit with respect to its own value before soft-cap and scale, ``[d_vocab]``.
        basis: weight processing of the model.
        to_id: turns a target (string or id) into an id, or refuses it; None is the prompt's own next token where there
            is one, else the most probable one.
    """

    tokens: Int[Tensor, "pos"]
    position: int
    x: Float[Tensor, "pos d_in"]
    y: Float[Tensor, "d_model"]
    logits: Float[Tensor, "d_vocab"]
    W_U: Float[Tensor, "d_model d_vocab"]
    slope: Float[Tensor, "d_vocab"]
    basis: Basis
    to_id: Callable[[str | int | None], int]
    _y_cut: Float[Tensor, "d_model"] = field(repr=False)
    _output: Float[Tensor, "d_vocab"] = field(repr=False)
    _by_product: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """What cotangents and scores are computed in: float32, or the model's float64."""
        return torch.promote_types(self.y.dtype, torch.float32)

    @property
    def log_probs(self) -> Float[Tensor, "d_vocab"]:
        """Log of the next-token distribution ``p``, in float64, attached to ``logits``."""
        return self.logits.log_softmax(-1)

    def gradient(self, quantity: Callable[[Float[Tensor, "d_vocab"]], Float[Tensor, ""]]) -> Float[Tensor, "d_model"]:
        """Gradient with respect to ``y`` of a scalar function of the logits, through everything the model does to them.

        Example:
            >>> def margin(state):  # a scope of one's own: best logit against the runner-up
            ...     return state.gradient(lambda logits: logits.topk(2).values @ logits.new_tensor([1.0, -1.0]))
        """
        value = quantity(self.logits)
        if not (isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad):
            raise InputError(
                "state.gradient needs a function that returns one number computed from the logits it is given, "
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
        return self.W_U @ (u.to(self.slope) * self.slope).to(self.W_U)

    def pull_logits(self, u: Float[Tensor, "d_vocab"]) -> Float[Tensor, "d_model"]:
        """``D^T u`` with ``D = ∂z/∂y``: a direction in logit space as a direction of ``y``."""
        scale = u.abs().max().clamp_min(torch.finfo(u.dtype).tiny)  # so that half precision loses nothing of a small u
        if self._by_product:
            return (self._product(u / scale).to(u) * scale).to(self.dtype)
        unit = (u / scale).to(self._output)
        (pulled,) = torch.autograd.grad(self._output, self._y_cut, unit, retain_graph=True)
        return (pulled.to(u) * scale).to(self.dtype)


def divergence(log_p: Float[Tensor, "*n d_vocab"], log_q: Float[Tensor, "*m d_vocab"]) -> Float[Tensor, "*nm"]:
    """``KL(p ‖ q)`` in nats, from logarithms of the probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)
