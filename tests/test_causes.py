"""`python examples/benchmarks causes` and `claims`: what their tables say."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from tests.models import TOKENS

pytestmark = pytest.mark.newest_line


@pytest.fixture
def benchmark(architectures: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Modules of the benchmark by name; the fixture ``architectures`` puts them on the path."""
    yield importlib.import_module
    for name in ("causes", "table_of_causes", "claims"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_table_and_what_it_is_made_of(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], pocket: Any
) -> None:
    written = tmp_path / "page.md"
    written.write_text("# Causes\n\n<!-- made by python examples/benchmarks causes -->\n\nold\n")
    causes, tables = benchmark("causes"), benchmark("table_of_causes")
    where = ["--truth", str(tmp_path), "--numbers", str(tmp_path), "--write", str(written)]
    causes.main(["pocket", *where, "--n", "2", "--most", "1", "--rules", "relp"])
    found = tables.Measured.load(tmp_path / "pocket.report.json")
    assert len(found.rows) == len(found.families) == 6
    assert "| explain |" in capsys.readouterr().out
    page = written.read_text()
    assert "old" not in page
    assert "| log_prob | " in page

    truth = js.GroundTruth.load(tmp_path / "pocket.json").report
    for prompt, row in zip([truth.family(name)[0] for name in truth.yields], found.rows, strict=True):
        tokens = torch.tensor(prompt.tokens)
        by = {
            "log_prob · relp · norm": {"scope": "log_prob", "gradient": "relp"},
            "log_prob · relp · dot": {"scope": "log_prob", "gradient": "relp", "reduction": "dot"},
            "log_prob · relp · pattern": {"scope": "log_prob", "gradient": "relp", "at": "pattern"},
        }
        for name, how in by.items():
            scores = js.attribute(pocket, tokens, target=prompt.target, **how).scores
            hit = scores[1:].argmax() + 1 in prompt.causes
            assert row["methods"][name]["known_cause.top_1"] == float(hit)


def test_words_are_found_across_tokens(benchmark: Any, llama: Any) -> None:
    """Tokens that make up a word, wherever the tokenizer cuts it."""
    claims = benchmark("claims")
    result = js.attribute(llama, TOKENS)
    text = "".join(result.str_tokens[len(result.bos_positions) :])
    third = result.str_tokens[2]
    places = claims.part_of(result, [third], text)
    assert 2 in places
    assert all(third in result.str_tokens[t] or result.str_tokens[t] in third for t in places)
