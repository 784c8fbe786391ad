"""TransformerLens' attribution patching (3.x and 4.x), with its results in the shape of `ComponentEffects`."""

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.model.running import full_precision
from jscope_tl.model.view import ModelView
from jscope_tl.results.cost import Cost

MODULE = "transformer_lens.tools.analysis.attribution_patching"
KINDS = {"heads": "attn_head_out", "mlps": "mlp_out"}
"""TransformerLens' names of the kinds of nodes."""


def why_not(view: ModelView, of: str, axes: tuple[str, ...], by_prompt: bool, direction: str) -> str:
    """The reason why TransformerLens' attribution patching does not support a question, or an empty string if it does."""
    if "TransformerBridge" not in {base.__name__ for base in type(view.model).__mro__}:
        return "it needs a TransformerBridge"
    try:
        import_module(MODULE)
    except ImportError:
        return "this version of TransformerLens does not have it"
    if of not in KINDS or "pos" in axes:
        return "it is compared only for heads and MLPs, at all positions together"
    if not by_prompt or direction != "denoising":
        return "it needs another prompt as source, and direction='denoising'"
    return ""


def transformer_lens_effects(
    view: ModelView,
    clean: Int[Tensor, "pos"],
    corrupted: Int[Tensor, "pos"],
    of: str,
    quantity: Callable[[Float[Tensor, "d_vocab"]], Float[Tensor, ""]],
    position: int,
    like: Float[Tensor, "*axes"],
) -> tuple[Float[Tensor, "*axes"], Cost]:
    """The predicted effects of patching clean activations into the corrupted run; the scores of nodes are summed over positions.

    Raises:
        ValueError: from TransformerLens, if this model has no such nodes.
    """
    lens: Any = import_module(MODULE)
    start = time.perf_counter()

    def metric(logits: Float[Tensor, "1 pos d_vocab"]) -> Float[Tensor, ""]:
        return quantity(logits[0, position])

    with torch.inference_mode(False), torch.enable_grad(), full_precision(view):
        found = lens.attribution_patch(view.model, clean.clone()[None], corrupted.clone()[None], metric)
    values = torch.zeros_like(like, dtype=torch.float64)
    for node, score in found.node_scores.items():
        if node.kind == KINDS[of]:
            values[(node.layer, node.head) if of == "heads" else node.layer] += score
    return values.float(), Cost(2, 1, time.perf_counter() - start)
