"""What notebooks show of results that are no score of one prompt: text and pictures, escaped, without script or network."""

import dataclasses
import io
import re
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.results.rows import JacobianRows
from tests.views.results import NASTY
from tests.views.test_views import EVIL, Text

pytestmark = pytest.mark.newest_line

PAIR = ("the keys near the door", "the key near the door")


@pytest.fixture(scope="module")
def shown(pocket: Any) -> dict[str, Any]:
    contrast = {"target": " are", "baseline": " is"}
    evaluate = js.faithfulness.evaluate(
        pocket, js.pocket_prompts("assistant", 2), ["log_prob", "random"], "known_cause"
    )
    return {
        "rows": js.jacobian(pocket, PAIR[0], torch.eye(128)[:2]),
        "comparison": js.patching.compare(pocket, *PAIR, "contrastive", **contrast),
        "ablation": js.patching.ablate(pocket, PAIR[0], "contrastive", **contrast),
        "side by side": js.patching.side_by_side(
            pocket, *PAIR, "blocks.2.hook_resid_pre", [5], "contrastive", **contrast
        ),
        "linearity": js.diagnostics.linearity(pocket, PAIR[0], "log_prob", n_random=2, sizes=[0.1, 1.0]),
        "faithfulness": evaluate["known_cause"],
        "sink": js.diagnostics.sink(js.attribute(pocket, PAIR[0])),
    }


NAMES = ["rows", "comparison", "ablation", "side by side", "linearity", "faithfulness", "sink"]


@pytest.mark.parametrize("name", NAMES)
def test_offline_and_without_script(shown: dict[str, Any], name: str) -> None:
    html = shown[name]._repr_html_()
    page = Text(html)
    assert "script" not in page.tags
    assert "http" not in html
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    pictures = {"comparison": 1, "linearity": 1, "faithfulness": 1}
    assert len(page.sources) == pictures.get(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["comparison", "ablation", "side by side"])
def test_what_was_asked_is_said(shown: dict[str, Any], name: str) -> None:
    text = " ".join(Text(shown[name]._repr_html_()).text)
    assert "target ' are' against ' is'" in text


def test_jacobian_rows_are_a_tensor(pocket: Any, shown: dict[str, Any]) -> None:
    rows = shown["rows"]
    assert isinstance(rows, JacobianRows)
    for computed in (rows + 1, rows.norm(dim=-1), rows[0], rows.clone(), rows.plain, torch.einsum("kpd->p", rows)):
        assert type(computed) is torch.Tensor
    buffer = io.BytesIO()
    torch.save(rows, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer), rows.plain)


def test_jacobian_rows_show_the_norm_of_every_position(shown: dict[str, Any]) -> None:
    rows = shown["rows"]
    page = Text(rows._repr_html_())
    assert page.titles == [f"{i}: {norm:.4g}" for i, norm in enumerate(rows.plain.norm(dim=(0, 2)).tolist())]
    assert page.text[0] == rows.headline()
    assert "[k, pos, d] = [2, 6, 128] of y at position 5 (' door'), at hook_embed" in rows.headline()
    assert "'<bos>' was prepended" in rows.headline()


def test_ablations_show_every_token_with_its_effects(shown: dict[str, Any]) -> None:
    result = shown["ablation"]
    text = Text(result._repr_html_()).text
    for t, token in enumerate(result.scope.str_tokens):
        at = text.index(repr(token), text.index("KL (nat)"))
        if token == " the":
            continue  # twice
        assert text[at - 1] == str(t)
        assert [float(cell) for cell in text[at + 1 : at + 5]] == pytest.approx(
            [float(values[t]) for values in (result.scope.scores, result.logit, result.log_prob, result.kl)], rel=0.01
        )


def test_three_runs_are_on_one_scale(shown: dict[str, Any]) -> None:
    runs = shown["side by side"]
    page = Text(runs._repr_html_())
    highest = max(float(run.scores[1:].max()) for run in (runs.clean, runs.corrupted, runs.patched))
    assert any(f"the highest score, {highest:.4g}" in text for text in page.text)
    assert len(page.titles) == 3 * len(runs.clean.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows", "comparison", "ablation", "side by side", "linearity"])
def test_everything_is_escaped(shown: dict[str, Any], name: str) -> None:
    given = shown[name]
    if name == "rows":
        result = given.clone().as_subclass(JacobianRows)
        result.str_tokens, result.position, result.at, result.prepended = [*NASTY[:5], EVIL], 5, EVIL, EVIL
    elif name == "linearity":
        result = dataclasses.replace(given, str_token=EVIL, unit=EVIL, scope=EVIL)
    else:

        def evil(one: js.Attribution) -> js.Attribution:
            return dataclasses.replace(one, str_tokens=[EVIL] * 6, unit=EVIL, scope=EVIL, baseline=EVIL)

        parts = {"comparison": ["scope"], "ablation": ["scope"], "side by side": ["clean", "corrupted", "patched"]}[
            name
        ]
        result = dataclasses.replace(given, **{part: evil(getattr(given, part)) for part in parts})
    html = result._repr_html_()
    tags = [tag for tag in Text(html).tags if tag == "img"]
    assert len(tags) == len(Text(given._repr_html_()).sources)
    assert EVIL not in html


def test_pictures_and_tables_scroll_in_boxes_of_their_own(pocket: Any) -> None:
    html = js.attribute(pocket, PAIR[0], at="resid_pre")._repr_html_()
    for element in ("<img", "<table"):
        assert re.search(rf'<div style="overflow-x:auto">{element}', html)
