"""What the circuitsvis views say and refuse; how they look is tested in a browser."""

import dataclasses
import inspect
import sys
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.views import circuits
from tests.views.results import NASTY, PROMPT, attention_of, pattern_of, with_tokens

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
    assert repr(view).startswith("View: semantic, semantic beside 2 attention heads")
    for part in ("fraction of the highest of its row", "BOS left out", result.unit, "Spearman", "L1H0", "L1H1"):
        assert part in view.body
    assert "L0H0" not in view.body
    assert "Shown:" not in view.body


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
    for labels in (["a", "b"], [], "semantic"):
        with pytest.raises(js.InputError, match="one name for each"):
            tokens(result, labels)


def test_without_circuitsvis(result: js.Attribution, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "circuitsvis", None)
    circuits.bundle.cache_clear()
    for draw in (lambda: js.views.tokens(result), lambda: js.views.attention(pattern_of(result))):
        with pytest.raises(ImportError, match="pip install circuitsvis"):
            draw()
    assert "columbia" in result._repr_html_()


def test_saving(result: js.Attribution, tmp_path: Any) -> None:
    page = js.views.tokens(result).save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    with pytest.raises(js.InputError, match="no folder"):
        js.views.tokens(result).save(tmp_path / "none" / "page.html")
