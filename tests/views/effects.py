"""Effects of components without a model's run: shapes, names and provenance of a real prompt, numbers of our own."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import jscope_tl as js
from jscope_tl.results.cost import Cost

HOOK = {"heads": "attn.hook_z", "edges": "attn.hook_pattern", "attn": "hook_attn_out", "mlps": "hook_mlp_out",
        "neurons": "mlp.hook_post", "features": "hook_resid_pre"}  # fmt: skip


def noise(*shape: int) -> Float[Tensor, "..."]:
    """Positive numbers of very different sizes, as KL divergences are."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).mul(2).exp()


def effects_of(
    result: js.Attribution, axes: str, predicted: Tensor, of: str = "heads", **changes: Any
) -> js.patching.ComponentEffects:
    """Effects of the prompt of a result."""
    names = tuple(axes.split())
    layers = predicted.shape[0] if names[0] == "layer" else 1
    settings: dict[str, Any] = dict(
        of=of, axes=names, predicted=predicted, stderr=None, refined=torch.zeros(predicted.shape, dtype=torch.bool), measured=None,
        index=None, hook_points=tuple(f"blocks.{layer}.{HOOK[of]}" for layer in range(layers)), source="zero",
        direction="noising", scope=result.scope, asked=result.asked, options={}, unit="nat (KL)", tokens=result.tokens,
        str_tokens=result.str_tokens, position=result.position, bos_positions=result.bos_positions, source_str_tokens=None,
        prediction=result.prediction, provenance=result.provenance, costs={"prediction": Cost(1, 32, 0.5)},
    )  # fmt: skip
    return js.patching.ComponentEffects(**settings | changes)


def marked(effects: js.patching.ComponentEffects, measured: int = 2, refined: int = 3) -> js.patching.ComponentEffects:
    """The first cells measured, the next refined, the rest with a standard error."""
    size = effects.predicted.shape
    values = torch.full(size, torch.nan)
    values.view(-1)[:measured] = effects.predicted.flatten()[:measured] * 1.5
    better = torch.zeros(size, dtype=torch.bool)
    better.view(-1)[measured : measured + refined] = True
    return dataclasses.replace(effects, measured=values, refined=better, stderr=0.1 * effects.predicted.abs())


def streamed(effects: js.patching.ComponentEffects, k: int) -> js.patching.ComponentEffects:
    """Edges as long prompts have them: the strongest of each head."""
    pos = len(effects.tokens)
    flat = effects.predicted.flatten(2)
    index = flat.abs().topk(k).indices
    kept = flat.gather(2, index)
    return dataclasses.replace(
        effects, axes=("layer", "head", "entry"), predicted=kept, refined=torch.zeros(kept.shape, dtype=torch.bool),
        index=index // effects.predicted.shape[-1] * pos + index % effects.predicted.shape[-1],
    )  # fmt: skip
