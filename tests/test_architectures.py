"""`python examples/benchmarks architectures`: what its table says, and that it would say so if something were wrong."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import jscope_tl as js
from jscope_tl.model.loading import has_bridge
from jscope_tl.model.patterns import to_heads
from tests import models, oracles

pytestmark = [
    pytest.mark.skipif(not has_bridge(), reason="no TransformerBridge before 3.0"),
    pytest.mark.skipif(models.has_hooked(), reason="adapters of 3.x fail on some"),
]


@pytest.fixture
def table(architectures: Any) -> Any:
    return importlib.import_module("architecture_table")


def cells(text: str, name: str) -> dict[str, str]:
    """One row of the table, by the column."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return dict(zip(rows[0], next(row for row in rows if row[0] == name), strict=True))


@pytest.mark.slow
def test_two_architectures(table: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One with everything, one without attention."""
    path = tmp_path / "guide" / "table.md"
    table.main(["LlamaForCausalLM", "MambaForCausalLM", f"--write={path}"])
    text = path.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in text
    llama, mamba = (cells(text, name) for name in ("LlamaForCausalLM", "MambaForCausalLM"))
    assert list(llama) == ["architecture", *table.CHECKS]
    assert all(0 < float(llama[check]) < 1e-5 for check in table.CHECKS)
    without = {check: cell for check, cell in mamba.items() if "refused" in cell}
    rules = {"attnlrp", "relp", "gim", "attnlrp at pattern"}
    assert without.keys() == {"attention pattern", "frozen attn", "frozen both", *rules}
    assert without["frozen attn"] == without["frozen both"]
    assert all(0 < float(mamba[check]) < 1e-5 for check in table.CHECKS if check not in without)
    assert "- 2 of 2 load and run." in text
    assert "computes no attention patterns" in text
    assert "tiny-" not in text


def test_what_is_wrong_fails_or_does_not_load_is_said(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = table.CHECKS["logits"]

    def twice(case: Any) -> Any:
        found, expected = logits(case)
        return 2 * found, expected

    def no_oracle(case: Any) -> Any:
        return case.bridge.W_E, lambda: {}["nothing"]

    def other_shape(case: Any) -> Any:
        return case.bridge.W_E, lambda: case.bridge.W_U

    def fails(case: Any) -> Any:
        raise ValueError("broken. With more to say.")

    checks = {"logits": twice, "a": no_oracle, "b": other_shape, "c": fails}
    monkeypatch.setattr(table, "CHECKS", checks)
    text = table.checked(["LlamaForCausalLM", "CodeGenForCausalLM"]).markdown()
    row = cells(text, "LlamaForCausalLM")
    assert row["logits"] == "**wrong** 1e+00"
    assert [row[name].partition(" [")[0] for name in "abc"] == ["no oracle", "**wrong**", "**fails**"]
    assert cells(text, "CodeGenForCausalLM")["logits"].startswith("not loaded")
    assert "differ from HuggingFace's: LlamaForCausalLM, by 1e+00 of the largest." in text
    assert "- 1 of 2 load and run." in text
    assert "broken." in text
    assert "With more" not in text


@pytest.mark.slow
def test_unknown_names_are_refused(table: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        table.main(["LlamaForCausalLMs"])
    assert "no decoder classes: LlamaForCausalLMs; known are AfmoeForCausalLM" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["BloomForCausalLM", "GptOssForCausalLM"])
def test_patterns_behind_a_normed_embedding_and_beside_sinks(architectures: Any, name: str) -> None:
    """The prompt's own are taken, those of another prompt are refused as everywhere."""
    from tiny_models import bridge_of, tiny

    hf = tiny(name)
    case = architectures.Case(bridge_of(hf), architectures.oracle.in_float64(hf))
    found, expected = architectures.CHECKS["attention pattern"](case)
    assert oracles.relative_difference(found, expected()) < 1e-5
    _, cache = case.bridge.run_with_cache(architectures.OTHER.unsqueeze(0))
    with pytest.raises(js.InputError, match="another prompt"):
        to_heads(cache, architectures.TOKENS)


def test_loading_a_model_with_images_installs_nothing(architectures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """TransformerLens would install torchvision, which may bring another torch."""
    import subprocess

    from tiny_models import bridge_of, tiny

    asked: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delenv("PIP_DRY_RUN")
    monkeypatch.setattr(
        subprocess, "check_call", lambda command, **how: asked.append((command, os.environ.get("PIP_DRY_RUN")))
    )
    bridge_of(tiny("Gemma3ForConditionalGeneration"))
    assert asked
    assert all("torchvision" in command and dry == "1" for command, dry in asked)
    assert "PIP_DRY_RUN" not in os.environ
