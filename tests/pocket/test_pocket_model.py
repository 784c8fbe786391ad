"""The pocket model: small, offline, the same on every class, and good at what it was trained for."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import jscope_tl as js
from jscope_tl.pocket import pocket_folder
from jscope_tl.pocket.tokenizer import build_tokenizer

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "train_pocket_model.py"


@pytest.fixture(scope="module")
def hf() -> Any:
    return LlamaForCausalLM.from_pretrained(pocket_folder()).eval()


@pytest.fixture(scope="module")
def training() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_pocket_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ids() -> dict[str, int]:
    return PreTrainedTokenizerFast.from_pretrained(pocket_folder()).get_vocab()


def test_is_small(hf: Any) -> None:
    assert 1e6 < sum(p.numel() for p in hf.parameters()) < 3e6
    assert (pocket_folder() / "model.safetensors").stat().st_size < 6e6


def test_both_transformers_can_read_the_tokenizer() -> None:
    config = json.loads((pocket_folder() / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # version 5 writes a name that version 4 lacks
    assert config["bos_token"] == "<bos>"


def test_shipped_tokenizer_is_the_one_that_is_built() -> None:
    shipped = Tokenizer.from_file(str(pocket_folder() / "tokenizer.json"))
    built = build_tokenizer()
    assert shipped.get_vocab() == built.get_vocab()
    for text in ("The Keys, to the cabinet.", "29,30 ,31 , 32", "<bos> English: the dog", "könig  schläft\n"):
        assert shipped.encode(text).tokens == built.encode(text).tokens


def test_tokenizer_is_forgiving() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.encode("29,30").tokens == tokenizer.encode(" 29 , 30 ").tokens == ["<bos>", " 29", " ,", " 30"]
    assert tokenizer.encode("Tom").ids == tokenizer.encode("tom").ids
    assert tokenizer.encode("zebra").tokens == ["<bos>", "<unk>"]


def test_every_class_computes_the_same(kind: str, hf: Any) -> None:
    model = js.load_pocket_model(kind)
    tokens = model.to_tokens("the keys to the cabinet near the doors")
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, return_type="logits"), hf(tokens).logits, rtol=1e-4, atol=1e-4)
    assert model.cfg.model_name == "jscope-pocket"
    assert not any(module.training for module in model.modules())


def test_double_precision(kind: str) -> None:
    result = js.attribute(js.load_pocket_model(kind, dtype=torch.float64), "the keys", "temperature")
    assert result.provenance.dtype == "float64"


def test_classes_that_are_not_there() -> None:
    with pytest.raises(js.InputError, match="'auto', 'bridge' or 'hooked'"):
        js.load_pocket_model.__wrapped__("brige")


@pytest.mark.newest_line
@pytest.mark.parametrize("task", [task for task in js.pocket_tasks() if task != "series"])
def test_held_out_accuracy(hf: Any, training: ModuleType, ids: dict[str, int], task: str) -> None:
    assert training.accuracy(hf, ids, task, 200) >= 0.95


@pytest.mark.newest_line
def test_series_beat_repeating_the_last_value(hf: Any, training: ModuleType, ids: dict[str, int]) -> None:
    errors = training.series_errors(hf, ids, 40)
    for kind in ("lorenz", "logistic", "sine"):
        assert errors[kind]["model"] < 0.7 * errors[kind]["last_value"], kind
    # The steps of a Brownian motion have no direction: nobody beats its last value by much.
    assert errors["brownian"]["model"] < 1.2 * errors["brownian"]["last_value"]


@pytest.mark.newest_line
def test_the_training_script_runs(tmp_path: Path) -> None:
    options = "--steps 2 --eval-documents 8 --threads 1 --out".split()
    command = [sys.executable, str(SCRIPT), *options, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])})
    card = json.loads((tmp_path / "card.json").read_text())
    assert set(card["accuracy"]) == set(js.pocket_tasks()) - {"series"}
    assert (tmp_path / "model.safetensors").is_file()


def test_first_run_needs_no_network() -> None:
    code = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError(f"network: {args}")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import jscope_tl as js
js.attribute(js.load_pocket_model(), "the keys to the cabinet near the doors", "fisher")
"""
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_longer_prompts(kind: str) -> None:
    """For measuring costs; shorter prompts say what they always said."""
    model, longer = js.load_pocket_model(kind), js.load_pocket_model(kind, n_ctx=700)
    prompt = "the keys to the cabinet near the doors"
    with torch.no_grad():
        torch.testing.assert_close(longer(prompt), model(prompt))
    assert js.attribute(longer, [0] + [3, 4] * 300, "temperature").scores.isfinite().all()
    with pytest.raises(js.InputError, match="at most 512"):
        js.attribute(model, [0] + [3, 4] * 300, "temperature")
    with pytest.raises(js.InputError, match="n_ctx is the maximum length"):
        js.load_pocket_model(kind, n_ctx=0)
