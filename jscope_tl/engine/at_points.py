"""Gradients and tangents at arbitrary tensors of a forward pass, not only at its cuts."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.memory import is_out_of_memory
from jscope_tl.engine.precision import power_of_two
from jscope_tl.engine.run import Run
from jscope_tl.errors import InputError


def rows_at(
    forward: Run, points: Sequence[Float[Tensor, "1 ..."]], cotangent: Float[Tensor, "d_model"]
) -> list[Float[Tensor, "1 ..."]]:
    """``c ∂y/∂h`` for every tensor ``h`` of a run with one explained position, in the dtype of the cotangent; 0 if ``y`` does not
    depend on ``h``. It takes one backward pass, and the graph is kept."""
    scale = power_of_two(cotangent.unsqueeze(0))
    scaled = (cotangent / scale).to(forward.y)
    rows = torch.autograd.grad(
        forward.y, points, scaled.unsqueeze(0), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    forward.passes.n_backward += 1
    return [row.to(cotangent.dtype) * scale.to(row.device) for row in rows]


def tangents_at(
    forward: Run, points: Sequence[Float[Tensor, "1 ..."]], tangent: Float[Tensor, "1 pos d_in"]
) -> list[Float[Tensor, "1 ..."]]:
    """``∂h/∂x δ`` for every tensor ``h`` of a run and a tangent ``δ`` of its first hook point, in the dtype of the tangent.

    It is the derivative of a backward pass with respect to its cotangents. There is no second forward pass, so the user's hooks do not
    run again. It costs about three backward passes.

    Raises:
        InputError: the model cannot be differentiated twice.
    """
    x, scale = forward.xs[0], power_of_two(tangent)
    cotangents = [torch.zeros_like(point).requires_grad_() for point in points]
    try:
        (row,) = torch.autograd.grad(points, x, cotangents, create_graph=True)
        found = torch.autograd.grad(
            row, cotangents, (tangent / scale).to(x), retain_graph=True, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise InputError(
            f"{forward.view.name} cannot be differentiated twice, which is needed for Jacobian-vector products ({reason})."
        ) from error
    forward.passes.n_backward += 3
    return [moved.to(tangent.dtype) * scale.to(moved.device) for moved in found]
