"""Models to measure: the pocket model, and random ones of known shapes whose spectra fall as those of trained models do."""

import contextlib
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jscope_tl.model.loading import has_bridge
from jscope_tl.pocket.load import load_pocket_model

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-small": dict(d_model=768, n_layers=12, n_heads=12, d_vocab=50257),
    "gpt2-small-flat": dict(d_model=768, n_layers=12, n_heads=12, d_vocab=50257, unembed_decay=0.0),
    "gpt2-medium": dict(d_model=1024, n_layers=24, n_heads=16, d_vocab=50257),
    "llama-1b-wide": dict(d_model=2048, n_layers=16, n_heads=32, d_vocab=128256),
}
WEIGHT_DECAY, UNEMBED_DECAY, SHARPNESS = 0.6, 0.7, 5.0
"""Singular values of weights and unembedding fall with these powers of their number; size of the logits. With them the leading
eigenvector of F_u holds about a third of its trace, as the paper reports."""


def build(name: str, device: str, seed: int) -> Any:
    """The pocket model, or a GPT-2 architecture of the named shape, as the class that this TransformerLens has."""
    if name == "pocket":
        return load_pocket_model(device=device)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        shape = dict(SHAPES[name])
        decay = shape.pop("unembed_decay", UNEMBED_DECAY)
        model = (_bridge if has_bridge() else _hooked)(fill=partial(_fill, decay, seed), **shape)
        return model.to(device).eval()


def _bridge(d_model: int, n_layers: int, n_heads: int, d_vocab: int, fill: Callable[[nn.Module], None]) -> Any:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from jscope_tl.pocket.load import pocket_folder

    config = GPT2Config(
        n_embd=d_model, n_layer=n_layers, n_head=n_heads, vocab_size=d_vocab, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    hf_model = GPT2LMHeadModel(config)
    fill(hf_model)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(pocket_folder())
    return TransformerBridge.boot_transformers("bench", hf_model=hf_model, tokenizer=tokenizer, device="cpu")


def _hooked(d_model: int, n_layers: int, n_heads: int, d_vocab: int, fill: Callable[[nn.Module], None]) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_head=d_model // n_heads, d_mlp=4 * d_model, n_ctx=1024,
        d_vocab=d_vocab, act_fn="gelu_new", normalization_type="LN", device="cpu", model_name="bench",
    )  # fmt: skip
    model = HookedTransformer(cfg, move_to_device=False)
    fill(model)
    return model


@torch.no_grad()
def _fill(unembed_decay: float, seed: int, model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        if any(part in name for part in ("wte", "wpe", "embed.W_E", "pos_embed")):
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
        elif "lm_head" in name or "W_U" in name:
            W = _unembedding(unembed_decay, max(parameter.shape), min(parameter.shape), generator)
            parameter.copy_(W if parameter.shape[0] > parameter.shape[1] else W.T)
        else:
            parameter.copy_(_matrix(parameter.shape, generator))


def _unembedding(
    decay: float, d_vocab: int, d_model: int, generator: torch.Generator
) -> Float[Tensor, "d_vocab d_model"]:
    sizes = torch.arange(1.0, d_model + 1) ** -decay
    turned = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator)).Q
    return SHARPNESS * (torch.randn(d_vocab, d_model, generator=generator) * sizes / sizes.norm()) @ turned


def _matrix(shape: torch.Size, generator: torch.Generator) -> Float[Tensor, "*head rows columns"]:
    """Orthogonal bases, singular values that fall with a power of their number, 0.6 in the root mean square."""
    n = min(shape[-2:])
    left, right = (
        torch.linalg.qr(torch.randn(*shape[:-2], size, n, generator=generator)).Q for size in (shape[-2], shape[-1])
    )
    sizes = torch.arange(1.0, n + 1) ** -WEIGHT_DECAY
    return (left * (0.6 * sizes / sizes.square().mean().sqrt())) @ right.mT
