"""What is moved at the hook point: the whole vector of a token, or how much of it there is, token by token or number by number.

A reduction is a choice of coordinates ``s`` for the input, ``x_t = x0_t + s_t ⊙ (x_t - x0_t)`` at ``s = 1``. Rows with
respect to ``s_t`` are then already multiplied by the input, and everything that holds for rows holds for them: scores,
estimates with their errors, layer maps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError, nearest

REDUCTIONS = {
    "norm": "the vector itself: ‖C J_t‖",
    "dot": "one factor for the whole vector: |C J_t (x_t - x0_t)|",
    "elementwise": "one factor for each of its numbers: ‖C J_t ⊙ (x_t - x0_t)‖",
}


def check_reduction(reduction: Any) -> str:
    """The reduction's name, or a refusal with the nearest one."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        known = "; ".join(f"{name!r}, {says}" for name, says in REDUCTIONS.items())
        raise InputError(f"There is no reduction {reduction!r}.{nearest(str(reduction), REDUCTIONS)} Known: {known}.")
    return reduction


@dataclass(frozen=True)
class Inputs:
    """What Jacobians are taken with respect to at a hook point, and where the model is linearised.

    Attributes:
        reduction: one of `REDUCTIONS`.
        baseline: ``x0``, one vector for all positions or one for each; None is zero.
        place: from the activations that a forward pass brings to those that it goes on with; None leaves them.
    """

    reduction: str = "norm"
    baseline: Float[Tensor, "*pos d_in"] | None = None
    place: Callable[[Float[Tensor, "batch pos d_in"]], Float[Tensor, "batch pos d_in"]] | None = None

    def cut(
        self, activation: Float[Tensor, "batch pos d_in"]
    ) -> tuple[Float[Tensor, "1 all_pos d_s"], Float[Tensor, "batch pos d_in"]]:
        """The coordinates that rows refer to, and the activation to go on with, attached to them."""
        x = activation if self.place is None else self.place(activation)
        if self.reduction == "norm":
            flat = x.reshape(1, -1, x.shape[-1])
            leaf = flat.clone() if flat.requires_grad else flat.detach().clone().requires_grad_()
            # A copy, which later hooks may write to.
            return leaf, leaf.view_as(x).clone()
        there = activation.detach() if self.baseline is None else activation.detach() - self.baseline.to(activation)
        d_s = 1 if self.reduction == "dot" else x.shape[-1]
        leaf = torch.ones(1, x.shape[0] * x.shape[1], d_s, dtype=x.dtype, device=x.device, requires_grad=True)
        return leaf, x + (leaf.view(*x.shape[:2], d_s) - 1) * there
