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

pytestmark = pytest.mark.newest_line

report = inspect.unwrap(js.report)


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, PROMPT, "semantic", target=" liberal")


@pytest.mark.slow
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
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert set(re.findall(r"https?://[\w./]*", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page


@pytest.mark.slow
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


def test_tables_hold_ranks_sources_and_warnings(result: js.Attribution, tmp_path: Path) -> None:
    pattern = dataclasses.replace(pattern_of(result), warnings=["a doubt about the pattern"])
    pattern.scores[:, 0] = 1e6
    page = js.report([dataclasses.replace(result, warnings=["a doubt"]), pattern], tmp_path / "r.html").read_text(
        "utf-8"
    )
    assert "⚠ a doubt<" in page
    assert "⚠ a doubt about the pattern" in page
    best = result.top(1, include_bos=True)[0]
    assert f"<td>{best.position}</td><td>&#x27;{best.str_token}&#x27;</td><td>{best.score:.4g}</td><td>1</td>" in page
    sources = page[page.index("strongest sources") :]
    assert "&lt;bos&gt;&#x27; at 0: " not in sources


@pytest.mark.slow
def test_many_results_stay_small(pocket: Any, tmp_path: Path) -> None:
    texts = [f" {n % 71 + 14}" if n % 2 else " ," for n in range(200)]
    result = js.attribute(pocket, "29 , 35 , 41 ,", "temperature")
    layers = [with_tokens(result, texts) for _ in range(24)]
    layers = [dataclasses.replace(r, provenance=dataclasses.replace(r.provenance, hook_point=f"blocks.{i}.hook_resid_pre"))
              for i, r in enumerate(layers)]  # fmt: skip
    page = js.report(layers, tmp_path / "r.html")
    assert page.stat().st_size < 2_500_000
    assert page.read_text(encoding="utf-8").count("image/svg+xml") == 1  # the map; no series for each layer
    stack = [dataclasses.replace(layers[0], position=150 + i) for i in range(6)]
    assert "first 4 of 6" in js.report(stack, tmp_path / "r.html").read_text(encoding="utf-8")
