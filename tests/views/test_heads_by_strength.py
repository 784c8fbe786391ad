"""Maps of more heads than a picture holds: the strongest are shown, and it is said that they are."""

from typing import Any

import pytest
import torch
from rich.console import Console

import jscope_tl as js
from jscope_tl.views import together
from jscope_tl.views.terminal import show
from tests.models import TOKENS

pytestmark = pytest.mark.newest_line


@pytest.fixture(scope="module")
def heads(llama: Any) -> js.Attribution:
    return js.attribute(llama, TOKENS, "log_prob", at="pattern", per="head")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """As many heads as are shown, fewer than the model has."""
    monkeypatch.setattr(together, "MOST_ROWS", 3)
    return 3


def test_the_strongest_rows_have_the_largest_sums_outside_bos(pocket: Any) -> None:
    result = js.attribute(pocket, "the keys to the cabinet", "log_prob", at="pattern", per="head")
    assert result.bos_positions == (0,)
    sums = result.scores.flatten(0, 1)[:, 1:].sum(1)
    best = result.strongest(4)
    order = [result.hook_points.index(name) for name in best.hook_points]
    assert torch.equal(sums[order], sums.sort(descending=True).values[:4])
    assert torch.equal(best.scores, result.scores.flatten(0, 1)[order])
    assert best.unit == result.unit
    said = repr(result)
    assert "the 12 strongest of 16 heads" in said
    assert all((f"{name}:" in said) == (name in result.strongest(12).hook_points) for name in result.hook_points)


def test_of_an_estimate_each_row_keeps_its_errors(pocket: Any) -> None:
    result = js.attribute(
        pocket, "the keys to the cabinet", "fisher", at="pattern", per="head", method="sampled", probes=4, seed=0
    )
    if result.stderr is None:
        pytest.fail("an estimate has errors")
    best = result.strongest(2)
    row = result.layer(best.hook_points[0])
    assert best.stderr is not None
    assert row.stderr is not None
    assert torch.equal(best.stderr[0], row.stderr)


def test_a_number_of_rows_is_one_or_more(heads: js.Attribution) -> None:
    with pytest.raises(js.InputError, match="n is"):
        heads.strongest(0)


def test_one_score_for_each_token_has_no_rows(llama: Any) -> None:
    with pytest.raises(js.InputError, match="not a layer map"):
        js.attribute(llama, TOKENS).strongest()


def test_every_view_shows_the_strongest_and_says_so(heads: js.Attribution, few: int, tmp_path: Any) -> None:
    n, best = len(heads.hook_points), heads.strongest(few)
    says = f"the {few} strongest of {n} heads"
    figure = js.views.heatmap(heads)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(best.hook_points)
    assert says in figure.axes[0].get_title(loc="left").replace("\n", " ")
    page = js.report(heads, tmp_path / "page.html").read_text()
    console = Console(record=True, width=200)
    show(heads, console)
    for text in (page, heads._repr_html_(), console.export_text()):
        assert says in text
        assert all((name in text) == (name in best.hook_points) for name in heads.hook_points)


def test_a_map_of_few_heads_is_whole_and_in_order(heads: js.Attribution) -> None:
    labels = [label.get_text() for label in js.views.heatmap(heads).axes[0].get_yticklabels()]
    assert labels == list(heads.hook_points)
    assert "strongest of" not in repr(heads) + heads._repr_html_()


def test_entries_of_patterns_share_one_scale(llama: Any, heads: js.Attribution) -> None:
    """They are in one unit in all layers, as the rows of a map of the residual stream are not."""
    assert js.views.heatmap(heads).axes[1].get_ylabel() == heads.unit
    layers = js.attribute(llama, TOKENS, "log_prob", at="resid_pre")
    assert js.views.heatmap(layers).axes[1].get_ylabel() == "share of the highest"
