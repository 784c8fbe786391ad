"""Load the pocket model from the files in the package, as one of TransformerLens' two classes."""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch

from jscope_tl.errors import InputError, whole
from jscope_tl.model.devices import to_device, to_dtype
from jscope_tl.model.loading import has_bridge, quiet

NAME = "jscope-pocket"
N_CTX = 512


def pocket_folder() -> Path:
    """The folder of the pocket model's files: a HuggingFace model folder, readable by `transformers` 4 and 5."""
    return Path(str(files("jscope_tl.pocket") / "weights"))


def load_pocket_model(
    kind: Literal["auto", "bridge", "hooked"] = "auto",
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
    n_ctx: int = N_CTX,
) -> Any:
    """Load a small trained language model that needs no network: 1.2 million parameters, with known causes of its predictions.

    Its weights are unprocessed (nothing folded or centred), so every scope works on it. For the tasks that it was trained on see
    `pocket_tasks` and `pocket_prompts`.

    Args:
        kind: ``"bridge"`` (from TransformerLens 3), ``"hooked"`` (before 4), or ``"auto"``: a bridge if it is available.
        device, dtype: the device and the precision of the weights.
        n_ctx: the maximum length of a prompt. The model was trained on 512 tokens; a larger number is for measuring costs only,
            because predictions are not meaningful there.

    Raises:
        InputError: the installed TransformerLens does not have that class, or the device or dtype is not available.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> model.cfg.n_layers, model.cfg.d_model
        (4, 128)
    """
    if kind not in ("auto", "bridge", "hooked"):
        raise InputError(f"kind must be 'auto', 'bridge' or 'hooked', not {kind!r}.")
    if kind == "bridge" and not has_bridge():
        raise InputError(
            "The installed TransformerLens has no TransformerBridge (available from 3.0); use kind='hooked'."
        )
    if (whole(n_ctx) or 0) < 1:
        raise InputError(f"n_ctx is the maximum length of a prompt, 1 or more tokens; got {n_ctx!r}.")
    where, precision = to_device(device), to_dtype(dtype)
    with torch.inference_mode(False), quiet():
        load = _bridge if kind != "hooked" and has_bridge() else _hooked
        model = load(precision, n_ctx)
        return model.to(where).eval()


def _pieces(dtype: torch.dtype, n_ctx: int) -> tuple[Any, Any]:
    """The HuggingFace model and its tokenizer."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    folder = pocket_folder()
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"The pocket model's weights are missing from {folder}; install the package again.")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    hf_model: Any = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager", max_position_embeddings=n_ctx)
    return hf_model.to(dtype), tokenizer


def _bridge(dtype: torch.dtype, n_ctx: int) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    hf_model, tokenizer = _pieces(dtype, n_ctx)
    return TransformerBridge.boot_transformers(NAME, hf_model=hf_model, tokenizer=tokenizer, dtype=dtype, device="cpu")


def _hooked(dtype: torch.dtype, n_ctx: int) -> Any:
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    except ImportError as error:
        raise InputError(
            "The installed TransformerLens has no HookedTransformer (4.0 removed it); use kind='bridge'."
        ) from error

    hf_model, tokenizer = _pieces(dtype, n_ctx)
    config = hf_model.config
    cfg = HookedTransformerConfig(
        model_name=NAME, original_architecture="LlamaForCausalLM", init_weights=False, device="cpu", dtype=dtype,
        n_layers=config.num_hidden_layers, d_model=config.hidden_size, n_heads=config.num_attention_heads,
        d_head=config.hidden_size // config.num_attention_heads, d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size, n_ctx=config.max_position_embeddings, act_fn=config.hidden_act,
        eps=config.rms_norm_eps, normalization_type="RMS", final_rms=True, gated_mlp=True,
        positional_embedding_type="rotary", rotary_adjacent_pairs=False, rotary_base=10000,
        rotary_dim=config.hidden_size // config.num_attention_heads, default_prepend_bos=True,
    )  # fmt: skip
    model = HookedTransformer(cfg, tokenizer=tokenizer, move_to_device=False)
    weights = {name: w.detach().clone().to(dtype) for name, w in convert_llama_weights(hf_model, cfg).items()}
    model.load_state_dict(weights, strict=False)
    return model
