"""Tiny random models of four families, from real configurations, as HuggingFace models, bridges and HookedTransformers."""

import contextlib
import copy
import functools
import io
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from jscope_tl.model.loading import has_bridge
from jscope_tl.pocket.load import pocket_folder

D_MODEL, D_VOCAB, N_CTX = 32, 530, 48
FAMILIES = ("gpt2", "llama", "pythia", "gemma2")
TOKENS = torch.tensor([0, 17, 301, 44, 17, 208, 99, 431])


def has_hooked() -> bool:
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


KINDS = [
    pytest.param("bridge", marks=pytest.mark.skipif(not has_bridge(), reason="no TransformerBridge before 3.0")),
    pytest.param("hooked", marks=pytest.mark.skipif(not has_hooked(), reason="no HookedTransformer from 4.0 on")),
]
ANY_KIND = "bridge" if has_bridge() else "hooked"


def hf_config(family: str) -> Any:
    common = dict(vocab_size=D_VOCAB, bos_token_id=0, eos_token_id=1)
    sizes = dict(hidden_size=D_MODEL, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=N_CTX)
    if family == "gpt2":
        return GPT2Config(n_positions=N_CTX, n_embd=D_MODEL, n_layer=3, n_head=4, tie_word_embeddings=False, **common)
    if family == "llama":
        return LlamaConfig(intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=False, **sizes, **common)
    if family == "pythia":
        return GPTNeoXConfig(intermediate_size=64, use_parallel_residual=True, **sizes, **common)
    return Gemma2Config(
        intermediate_size=48, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=4,
        final_logit_softcapping=3.0, attn_logit_softcapping=5.0, **sizes, **common,
    )  # fmt: skip


def hf_model(family: str, dtype: torch.dtype = torch.float32, spread: float = 0.15) -> Any:
    """Random weights, norm gains and biases, so that nothing is 0 or 1 by initialisation. Shared: not to be changed."""
    return _hf_model(family, dtype, spread)


@functools.cache
def _hf_model(family: str, dtype: torch.dtype, spread: float) -> Any:
    classes = {
        "gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM, "pythia": GPTNeoXForCausalLM, "gemma2": Gemma2ForCausalLM
    }  # fmt: skip
    config = hf_config(family)
    config._attn_implementation = "eager"
    with torch.random.fork_rng():  # whichever test comes first finds the random state as it was
        model = classes[family](config)
    generator = torch.Generator().manual_seed(FAMILIES.index(family))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(spread * noise)
            elif "norm" in name or "ln_" in name:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(0.1 * noise)
    return model.to(dtype).eval()


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """The pocket model's tokenizer: word-level, BOS id 0."""
    return PreTrainedTokenizerFast.from_pretrained(pocket_folder())


def bridge_of(hf: Any, name: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    dtype = next(hf.parameters()).dtype
    return TransformerBridge.boot_transformers(name, hf_model=hf, tokenizer=tokenizer(), dtype=dtype, device="cpu")


HOOKED: dict[str, dict[str, Any]] = {
    "gpt2": dict(act_fn="gelu_new", normalization_type="LN", positional_embedding_type="standard", d_mlp=128),
    "llama": dict(act_fn="silu", normalization_type="RMS", final_rms=True, gated_mlp=True, n_key_value_heads=2, d_mlp=48,
                  positional_embedding_type="rotary", rotary_adjacent_pairs=False, rotary_dim=8, eps=1e-6),
    "pythia": dict(act_fn="gelu", normalization_type="LN", positional_embedding_type="rotary", d_mlp=64, rotary_dim=2,
                   rotary_adjacent_pairs=False, parallel_attn_mlp=True),
    "gemma2": dict(act_fn="gelu_pytorch_tanh", normalization_type="RMS", final_rms=True, gated_mlp=True, d_mlp=48,
                   n_key_value_heads=2, positional_embedding_type="rotary", rotary_dim=8, attn_scale=8**0.5, eps=1e-6,
                   use_local_attn=True, window_size=4, attn_types=["local", "global", "local"],
                   attn_scores_soft_cap=5.0, output_logits_soft_cap=3.0, use_normalization_before_and_after=True),
}  # fmt: skip


def hooked_of(hf: Any, family: str, pre: bool = False, **processing: bool) -> Any:
    """``pre``: norms without gain from the start, as from_pretrained makes them before it folds."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions as convert

    conversions = {
        "gpt2": convert.convert_gpt2_weights, "llama": convert.convert_llama_weights,
        "pythia": convert.convert_neox_weights, "gemma2": convert.convert_gemma_weights,
    }  # fmt: skip
    dtype = next(hf.parameters()).dtype
    settings: dict[str, Any] = dict(eps=1e-5, d_head=8) | HOOKED[family]
    if pre:
        settings["normalization_type"] += "Pre"
    cfg = HookedTransformerConfig(
        n_layers=3, d_model=D_MODEL, n_heads=4, d_vocab=D_VOCAB, n_ctx=N_CTX, model_name=f"tiny-{family}", device="cpu",
        dtype=dtype, init_weights=False, original_architecture=type(hf).__name__, default_prepend_bos=True, **settings,
    )  # fmt: skip
    model = HookedTransformer(cfg, tokenizer=tokenizer(), move_to_device=False)
    weights = {name: w.detach().clone().to(dtype) for name, w in conversions[family](hf, cfg).items()}
    off = dict(fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False)
    model.load_and_process_state_dict(weights, **(off | processing))
    return model.eval()


@dataclass(frozen=True)
class Tiny:
    """A tiny model as TransformerLens sees it, and the HuggingFace model that it was made from."""

    family: str
    model: Any
    hf: Any


def tiny(kind: str, family: str, dtype: torch.dtype = torch.float32, **processing: bool) -> Tiny:
    """A fresh model; ``processing`` are TransformerLens' weight processings, all off unless asked for."""
    hf = copy.deepcopy(hf_model(family, dtype))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if kind == "hooked":
            return Tiny(family, hooked_of(hf, family, **processing), hf_model(family, dtype))
        bridge = bridge_of(hf, f"tiny-{family}")
        if processing:
            off = dict(fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False)
            bridge.process_weights(**(off | processing))
        return Tiny(family, bridge.eval(), hf_model(family, dtype))


def snapshot(model: Any) -> dict[str, Any]:
    """Everything of the user's that a run must leave as it was."""
    hooks = {
        name: [list(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
        for name, module in model.named_modules()
    }
    return {
        "hooks": hooks,
        "lens_hooks": {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grads": {name: p.grad is None for name, p in model.named_parameters()},
        "weights": {name: p._version for name, p in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "context_level": getattr(model, "context_level", 0),
        "grad_mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "rng": torch.get_rng_state().tolist(),
    }
