"""What the circuitsvis views say and refuse; how they look is tested in a browser."""

import dataclasses
import inspect
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.views import circuitsvis_views as circuits
from tests.views.results import NASTY, PROMPT, attention_of, pattern_of, with_tokens

pytestmark = pytest.mark.newest_line

tokens, attention = inspect.unwrap(js.views.tokens), inspect.unwrap(js.views.attention)


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, PROMPT, "semantic", target=" liberal")


def test_says_scope_unit_position_and_scale(result: js.Attribution) -> None:
    html = js.views.tokens(result)._repr_html_()
    for part in ("semantic scope", result.unit, f"position {result.position}", "BOS is left out", "linear", "outlined"):
        assert part in html
    assert "logarithmic" in js.views.tokens(result, log=True)._repr_html_()


def test_several_with_labels_on_one_scale(result: js.Attribution) -> None:
    double = dataclasses.replace(result, scores=2 * result.scores)
    view = js.views.tokens([result, double], labels=["once", "twice"])
    assert len(view.calls) == 2
    assert "<b>once</b>" in view.body
    assert "<b>twice</b>" in view.body
    assert "to the highest score, " + f"{2 * result.top(1)[0].score:.4g}" in view.body


def test_warnings_are_shown(result: js.Attribution) -> None:
    doubtful = dataclasses.replace(result, warnings=["of <b> doubtful worth"])
    assert "of &lt;b&gt; doubtful worth" in js.views.tokens(doubtful).body


def test_nothing_from_elsewhere(result: js.Attribution) -> None:
    for view in (js.views.tokens(result), js.views.attention(pattern_of(result), attention_of(len(result.tokens)))):
        html = view._repr_html_()
        assert "src=" not in html.replace(circuits.bundle(), "")
        assert "unpkg" not in html
        assert html.count("</script>") == 1


def test_tokens_cannot_end_the_script(result: js.Attribution) -> None:
    nasty = with_tokens(result, NASTY)
    for view in (js.views.tokens(nasty), js.views.attention(pattern_of(nasty))):
        calls = "".join(view.calls)
        assert "<" not in calls
        assert "\u2028" not in calls


def test_views_change_nothing(result: js.Attribution) -> None:
    pattern = pattern_of(result)
    before, matrix = result.scores.clone(), pattern.scores.clone()
    js.views.tokens(result, log=True), js.views.attention([pattern, result])
    assert torch.equal(result.scores, before)
    assert torch.equal(pattern.scores, matrix)


def test_attention_says_what_is_shown(result: js.Attribution) -> None:
    view = js.views.attention([pattern_of(result), result], attention_of(len(result.tokens)), layers=1)
    assert repr(view).startswith("View: semantic (17 positions), semantic (position 16) beside 2 attention heads")
    for part in ("at position 16", "target ' liberal'", "17 of 17 positions", result.provenance.model_name):
        assert escape(part) in view.body
    for part in ("fraction of the highest of its row", "BOS is left out", result.unit, "Spearman", "L1H0", "L1H1"):
        assert part in view.body
    assert "L0H0" not in view.body
    assert "Shown:" not in view.body


def test_labels_of_scopes(result: js.Attribution) -> None:
    view = js.views.attention([result, result], labels=["one", "two"])
    assert '["one","two"]' in view.calls[0]
    with pytest.raises(js.InputError, match="one name for each"):
        attention([result], labels=7)


def test_explained_positions_are_kept(result: js.Attribution) -> None:
    """The strongest sources are not all: a row that is not shown shows nothing."""
    long = with_tokens(result, [" a"] * 600)
    long.scores[599] = 0.01
    assert "@599" in js.views.attention(long, max_cells=1000).calls[0]
    some = dataclasses.replace(pattern_of(long), position=300, positions=(300, 17), scores=torch.ones(2, 600).tril(), targets=(
        long.prediction.target, long.prediction.target))  # fmt: skip
    call = js.views.attention(some, max_cells=1000).calls[0]
    assert "@300" in call
    assert "@17" in call


def test_heads_that_cannot_be_ranked(pocket: Any) -> None:
    short = js.influence_pattern(pocket, "tom grew")
    view = js.views.attention(short, attention_of(3, 12, 12))
    assert "too short to rank" in view.body
    assert "agree most" not in view.body


@pytest.mark.parametrize("max_cells", [0, -1, "a", None, 1.5])
def test_bad_max_cells(result: js.Attribution, max_cells: Any) -> None:
    with pytest.raises(js.InputError, match="max_cells"):
        attention(result, max_cells=max_cells)


def test_too_many_heads_are_selected_and_it_is_said(result: js.Attribution) -> None:
    pattern = pattern_of(result)
    patterns = attention_of(len(result.tokens), layers=12, heads=12)
    view = js.views.attention(pattern, patterns)
    assert "32 of 144 heads" in view.body
    best = js.head_agreement(pattern, patterns)[0].name
    assert f'"{best}"' in view.calls[0]


def test_too_long_prompts_are_cut_to_the_strongest_and_it_is_said(result: js.Attribution) -> None:
    pattern = pattern_of(with_tokens(result, [" a"] * 100))
    pattern.scores[:, 41] += 100
    pattern = dataclasses.replace(pattern, scores=pattern.scores.tril())
    view = js.views.attention(pattern, attention_of(100), max_cells=400)
    assert "20 of 100 positions" in view.body
    assert "1 of 4 heads" in view.body
    assert '" a @41"' in view.calls[0]
    assert len(view.calls[0]) < 10_000


def test_a_rows_colours_end_at_its_highest_score_outside_bos(result: js.Attribution) -> None:
    pattern = pattern_of(result)
    pattern.scores[:, 0] = 1e6
    tops = pattern.scores[:, 1:].amax(1)
    call = js.views.attention(pattern).calls[0]
    assert circuits.literal([float(f"{top:.4g}") for top in tops.tolist()]) in call


@pytest.mark.parametrize("view", [tokens, js.views.series, js.views.heatmap])
def test_units_and_prompts_do_not_mix(result: js.Attribution, pocket: Any, view: Any) -> None:
    nats = js.attribute(pocket, PROMPT, "entropy")
    with pytest.raises(js.InputError, match=r"different units \(logit.*; nat"):
        view([result, nats])
    other = js.attribute(pocket, "the keys to the cabinet", "semantic")
    with pytest.raises(js.InputError, match="different prompts"):
        view([result, other])


@pytest.mark.parametrize("given", [7, "text", [], [1], None, {}])
@pytest.mark.parametrize("view", [tokens, attention, js.views.series, js.views.heatmap, js.views.prediction])
def test_what_is_no_result(given: Any, view: Any) -> None:
    with pytest.raises(js.InputError, match=r"takes one .*Attribution"):
        inspect.unwrap(view)(given)


def test_attention_of_different_prompts(result: js.Attribution) -> None:
    with pytest.raises(js.InputError, match="different prompts"):
        js.views.attention([pattern_of(result), pattern_of(with_tokens(result, NASTY))])
    with pytest.raises(js.InputError, match="run_with_cache"):
        js.views.attention(pattern_of(result), attention_of(5))


def test_labels_are_one_for_each(result: js.Attribution) -> None:
    for labels in (["a", "b"], [], "semantic", 7, iter([])):
        with pytest.raises(js.InputError, match="one name for each"):
            tokens(result, labels)


def test_saving(result: js.Attribution, tmp_path: Any) -> None:
    page = js.views.tokens(result).save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    with pytest.raises(js.InputError, match="no folder"):
        js.views.tokens(result).save(tmp_path / "none" / "page.html")


EVIL = "<b>&\"'</script><img src=x onerror=alert(1)>"


def test_nothing_that_a_user_names_is_markup(result: js.Attribution, tmp_path: Path) -> None:
    """Scope, unit, label, warning, hook point, model and title are text, in every view."""
    at = dataclasses.replace(result.provenance, hook_point=EVIL, model_name=EVIL)
    evil = dataclasses.replace(result, scope=EVIL, unit=EVIL, warnings=[EVIL], provenance=at)
    pattern = dataclasses.replace(pattern_of(evil), warnings=[EVIL])
    report = js.report([evil, pattern], tmp_path / "r.html", attention_of(len(result.tokens)), title=EVIL)
    pages = [
        js.views.tokens(evil, labels=[EVIL]).body,
        js.views.attention(pattern, attention_of(len(result.tokens)), labels=[EVIL]).body,
        evil._repr_html_(),
        report.read_text(encoding="utf-8").replace(circuits.bundle(), ""),
    ]
    for page in pages:
        assert "<img src=x" not in page
        assert EVIL not in page
        assert escape(EVIL) in page
    for view in (js.views.tokens(evil), js.views.attention(pattern)):
        assert "<img" not in "".join(view.calls)


def test_broken_characters_do_no_harm(pocket: Any, tmp_path: Path) -> None:
    broken = dataclasses.replace(
        js.attribute(pocket, PROMPT, at="resid_pre"), str_tokens=["\ud800", "\ufffe", "\uffff"] + [" a"] * 14
    )
    page = js.report(broken, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "\\ud800" in page
    assert "\\ufffe" in page
