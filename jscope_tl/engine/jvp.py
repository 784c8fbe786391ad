"""Jacobian-vector products: what a change of the input does to ``y``, by differentiating a backward pass."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.memory import available_bytes, graph_bytes, is_out_of_memory
from jscope_tl.engine.precision import beside, power_of_two
from jscope_tl.engine.vjp import Backward

PRODUCTS = 4
"""Memory of products with ``J``, in graphs of the forward pass; 3.9 as measured on a Llama at 256 tokens."""


def jvp(
    backward: Backward, tangents: Float[Tensor, "m pos d_in"], of: int | slice = 0
) -> Float[Tensor, "m *n d_model"] | None:
    """``Σ_t J_t δ_t`` for each tangent ``δ``, at one explained position or several; None where the model cannot be differentiated twice.

    Tangents are of the first hook point; with attention patterns of all layers together, or of none.

    The derivative of a backward pass by its cotangent: no second forward pass, so no hook of the user's runs again.
    One product costs about as much as one row, and the pass that they all share as much as two; they are not taken where they
    need more than half of the memory that is there.
    """
    if backward.graph_freed:
        raise RuntimeError("The graph of this run is freed: take products with J before the last rows.")
    if tangents.shape[-1] not in (backward.xs[0].shape[-1], sum(x.shape[-1] for x in backward.xs)):
        return None
    if (reason := _too_large(backward)) is not None:
        backward.notes.append(f"Products with J were not taken{reason}. Probes alone did the work.")
        return None
    scale = power_of_two(tangents)
    scaled = rearrange((tangents / beside(scale, tangents)).to(backward.xs[0]), "m pos d -> m 1 pos d")
    try:
        products = _products(backward, scaled, of)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        backward.notes.append(f"Products with J were not available ({reason}); probes alone did the work.")
        return None
    backward.passes.n_backward += len(tangents) + 2
    backward.bar.update(len(tangents) + 2)
    moved = torch.cat(products).to(backward.dtype)
    return (moved * beside(scale, moved)).detach()


def _too_large(backward: Backward) -> str | None:
    """Why the graph of a second derivative has no room; a system that runs out of memory may end the process without a word."""
    if backward.recomputed:
        return ", as layers are computed again to save memory"
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
