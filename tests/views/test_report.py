"""The report: complete, small, self-contained; how it behaves is tested in a browser."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from tests.views.results import NASTY, PROMPT, attention_of, pattern_of, with_tokens

report = inspect.unwrap(js.report)


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, PROMPT, "semantic", target=" liberal")


def test_everything_is_in_it(pocket: Any, result: js.Attribution, tmp_path: Path) -> None:
    fisher = js.attribute(pocket, PROMPT, "fisher", method="sampled")
    series = js.attribute(pocket, "29 , 35 , 41 , 47 ,", "temperature")
    layers = [js.attribute(pocket, PROMPT, "semantic", at=f"blocks.{i}.hook_resid_pre") for i in (0, 1)]
    pattern = js.influence_pattern(pocket, PROMPT, "semantic")
    _, cache = pocket.run_with_cache(PROMPT)
    path = js.report([result, fisher, series, *layers, pattern], tmp_path / "r.html", cache, title="All & more")
    page = path.read_text(encoding="utf-8")
    assert "<title>All &amp; more</title>" in page
    assert page.count("<h2>") == 2  # prompts
    assert page.count("data:image/svg+xml") == 2  # the series and the map over layers
    for part in (result.unit, "2 nats (KL)", "±", "Spearman", "AttentionHeads", result.provenance.model_name, "L3H3"):
        assert part in page
    assert page.count("<tr>") > 2 * len(result.tokens)
    assert "CircuitsVis.render" not in js.report(result, tmp_path / "small.html").read_text(encoding="utf-8")


def test_nothing_from_elsewhere(result: js.Attribution, tmp_path: Path) -> None:
    page = js.report(result, tmp_path / "r.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "http" not in page


def test_size_of_a_long_prompt(result: js.Attribution, tmp_path: Path) -> None:
    texts = [f" {n % 71 + 14}" if n % 2 else " ," for n in range(200)]
    long = with_tokens(result, texts)
    several = [long, dataclasses.replace(long, unit="nat per unit of x", scope="entropy")]
    patterns = [pattern_of(long), dataclasses.replace(pattern_of(long), scope="fisher")]
    size = js.report([*several, *patterns], tmp_path / "r.html", attention_of(200, 6, 6)).stat().st_size
    assert 1_500_000 < size < 3_000_000
    assert js.report(several, tmp_path / "r.html").stat().st_size < 400_000


def test_text_is_escaped(result: js.Attribution, tmp_path: Path) -> None:
    nasty = with_tokens(result, NASTY)
    page = js.report([nasty, pattern_of(nasty)], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;/script&gt;" in page


def test_changes_nothing(result: js.Attribution, tmp_path: Path) -> None:
    before = result.scores.clone()
    js.report([result, pattern_of(result)], tmp_path / "r.html")
    assert torch.equal(result.scores, before)


def test_bad_input(result: js.Attribution, tmp_path: Path) -> None:
    with pytest.raises(js.InputError, match="takes one Attribution or InfluencePattern"):
        report([], tmp_path / "r.html")
    with pytest.raises(js.InputError, match="no folder"):
        report(result, tmp_path / "none" / "r.html")
    with pytest.raises(js.InputError, match="influence pattern"):
        report(result, tmp_path / "r.html", attention_of(3))
    with pytest.raises(js.InputError, match="run_with_cache"):
        report(pattern_of(result), tmp_path / "r.html", attention_of(3))
    assert not list(tmp_path.iterdir())
