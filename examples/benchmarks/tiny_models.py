"""Tiny random models of every decoder class that TransformerLens' bridge lists, from their own configurations."""

import copy
from typing import Any

import torch
import transformers
from torch import nn

from jscope_tl.model.loading import no_installs, quiet
from jscope_tl.pocket.load import pocket_folder

D_VOCAB = 96
N_LAYERS = 4
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "lru_width"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth"), N_LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_local_experts", "num_experts"), 4),
    **dict.fromkeys(("n_routed_experts", "linear_num_value_heads", "mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "linear_num_key_heads", "n_mamba_heads"), 2),
    **dict.fromkeys(("head_dim", "linear_key_head_dim", "linear_value_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "num_position_embeddings"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim", "sliding_window", "attention_window", "patch_size"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "image_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("n_positions", "n_ctx", "max_position_embeddings", "mamba_d_ssm"), 64),
    "vocab_size": D_VOCAB, "vocab_size_per_layer_input": D_VOCAB, "hidden_size_per_layer_input": 8,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "time_step_rank": 4,
}  # fmt: skip
"""What a configuration knows of these is set; the rest stays as the class has it."""
MLA = {"head_dim": 4, "num_key_value_heads": 4}
ROUTED = {"n_group": 1, "topk_group": 1}
MROPE = {"text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}}
OWN: dict[str, dict[str, Any]] = {
    "BambaForCausalLM": {"attn_layer_indices": [1, 3]},
    "DeepseekV2ForCausalLM": MLA,
    "DeepseekV3ForCausalLM": MLA | ROUTED,
    "YoutuForCausalLM": MLA,
    "Glm4MoeLiteForCausalLM": MLA,
    "GlmMoeDsaForCausalLM": MLA,
    "Emu3ForConditionalGeneration": {"vocabulary_map": {"<image>": 95}, "vq_config": {"base_channels": 32}},
    "FalconForCausalLM, new decoder": {"new_decoder_architecture": True, "num_kv_heads": 2, "multi_query": False},
    "Glm4vForConditionalGeneration": MROPE,
    "Qwen2_5_VLForConditionalGeneration": MROPE,
    "Qwen2AudioForConditionalGeneration": {"audio_config": {"encoder_attention_heads": 4}},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], N_LAYERS // 2]], "window_size": 4},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["linear_attention", "full_attention"] * (N_LAYERS // 2), "position_embedding_type": "rope"},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"] * (N_LAYERS // 2), "num_dense_layers": 1},
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"] * (N_LAYERS // 2)},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "NemotronHForCausalLM": {"n_groups": 2, "moe_shared_expert_intermediate_size": 16},
    "Zamba2ForCausalLM": {
        "layers_block_type": ["linear_attention", "hybrid"] * (N_LAYERS // 2), "hybrid_layer_ids": [1, 3], "mamba_headdim": 32,
        "attention_head_dim": 16, "attention_hidden_size": 64, "num_key_value_heads": 4, "adapter_rank": 4,
    },
}  # fmt: skip
"""What a class needs besides; a name with a comma is a variant of the class before it."""


def decoders() -> list[str]:
    """Classes of transformers that predict the next token and for which TransformerLens has an adapter."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    predicts = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    listed = [name for name in SUPPORTED_ARCHITECTURES if name.endswith(predicts) and hasattr(transformers, name)]
    variants = [name for name in OWN if "," in name]
    return sorted(variants + [name for name in listed if not _class(name).config_class().is_encoder_decoder])


def tiny(name: str) -> Any:
    """A random HuggingFace model of that class, in float32."""
    kind = _class(name)
    config = _config(kind.config_class, OWN.get(name, {}))
    config.architectures = [kind.__name__]
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = kind(config).eval()
    _spread(model)
    return model


def bridge_of(hf: Any) -> Any:
    """TransformerLens' bridge of a copy of the model."""
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(pocket_folder())
    with quiet(), no_installs():
        return TransformerBridge.boot_transformers(
            f"tiny-{type(hf).__name__}",
            hf_model=copy.deepcopy(hf),
            tokenizer=tokenizer,
            dtype=torch.float32,
            device="cpu",
        ).eval()


def _class(name: str) -> Any:
    return getattr(transformers, name.partition(",")[0])


def _config(kind: Any, own: dict[str, Any]) -> Any:
    default = kind()
    known = default.to_dict()
    parts = {part: _config(type(getattr(default, part)), own.get(part, {})) for part in _parts(default)}
    return kind(**{size: value for size, value in SIZES.items() if size in known} | own | parts)


def _parts(config: Any) -> list[str]:
    """A model that also sees or hears has a configuration for each part."""
    return [
        part for part in config.sub_configs if isinstance(getattr(config, part, None), transformers.PretrainedConfig)
    ]


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """As initialised, models are all but linear: larger matrices, gains that differ, and biases."""
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        if parameter.ndim >= 2 and not last.startswith("A_log"):
            parameter.copy_(0.15 * torch.randn_like(parameter))
        elif last in ("weight", "bias"):
            parameter.add_(0.2 * torch.randn_like(parameter))
