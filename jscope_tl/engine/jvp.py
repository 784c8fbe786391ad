"""Jacobian-vector products: the change of ``y`` for a change of the input, computed by differentiating a backward pass."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.memory import available_bytes, graph_bytes, is_out_of_memory
from jscope_tl.engine.precision import beside, power_of_two
from jscope_tl.engine.vjp import Backward

PRODUCTS = 4
"""Memory of products with ``J``, as a multiple of the graph of the forward pass; measured: 3.9 on a Llama at 256 tokens."""


def jvp(
    backward: Backward, tangents: Float[Tensor, "m pos d_in"], of: int | slice = 0
) -> Float[Tensor, "m *n d_model"] | None:
    """``Σ_t J_t δ_t`` for each tangent ``δ``, at one explained position or several; None if the model cannot be differentiated twice.

    Tangents refer to the first hook point, or to the attention patterns of all layers together.

    A product is the derivative of a backward pass with respect to its cotangent. There is no second forward pass, so the user's hooks
    do not run again. One product costs about as much as one row, and the pass that they all share as much as two rows. They are not
    computed if they need more than half of the available memory.
    """
    if backward.graph_freed:
        raise RuntimeError("The graph of this run is freed: compute products with J before the last rows.")
    if tangents.shape[-1] not in (backward.xs[0].shape[-1], sum(x.shape[-1] for x in backward.xs)):
        return None
    if (reason := _too_large(backward)) is not None:
        backward.notes.append(f"Products with J were not computed{reason}. The estimate uses probes only.")
        return None
    scale = power_of_two(tangents)
    scaled = rearrange((tangents / beside(scale, tangents)).to(backward.xs[0]), "m pos d -> m 1 pos d")
    try:
        products = _products(backward, scaled, of)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        backward.notes.append(f"Products with J were not available ({reason}); the estimate uses probes only.")
        return None
    backward.passes.n_backward += len(tangents) + 2
    backward.bar.update(len(tangents) + 2)
    moved = torch.cat(products).to(backward.dtype)
    return (moved * beside(scale, moved)).detach()


def _too_large(backward: Backward) -> str | None:
    """The reason why second derivatives need too much memory, or None. If memory runs out, the system may kill the process."""
    if backward.recomputed:
        return ", because layers are recomputed to save memory"
    needed, there = PRODUCTS * graph_bytes(backward.y), available_bytes(backward.y.device)
    return (
        f": they need about {needed / 1e9:.1f} GB, and {there / 1e9:.1f} GB are there" if needed > there / 2 else None
    )


def _products(
    backward: Backward, tangents: Float[Tensor, "m 1 pos d_in"], of: int | slice
) -> list[Float[Tensor, "chunk *n d_model"]]:
    y = backward.y[of]
    cotangent = torch.zeros_like(y).requires_grad_()
    xs = backward.xs if tangents.shape[-1] > backward.xs[0].shape[-1] else backward.xs[:1]
    row = torch.cat(torch.autograd.grad(y, xs, cotangent, create_graph=True), -1)
    found: list[Tensor] = []
    while len(tangents):
        size = min(len(tangents), backward.rows_at_once())
        try:
            found += torch.autograd.grad(row, cotangent, tangents[:size], retain_graph=True, is_grads_batched=True)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            backward.fewer(size)
            continue
        tangents = tangents[size:]
    return found
