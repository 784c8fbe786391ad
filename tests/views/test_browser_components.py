"""What a reader sees of effects of components: pages opened in Chromium with the network cut."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.results.text import visible
from tests.views.effects import effects_of, marked, noise, streamed
from tests.views.results import NASTY, PROMPT, attention_of, with_tokens

pytestmark = [pytest.mark.slow, pytest.mark.newest_line]

CELL = ".jscope-map tbody td[title]"


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, PROMPT, "semantic", target=" liberal")


@pytest.fixture(scope="module")
def heads(result: js.Attribution) -> js.patching.ComponentEffects:
    return marked(effects_of(result, "layer head", noise(30, 9)), 20, 28)


def test_hovering_reads_a_head(heads: js.patching.ComponentEffects, browse: Any, tmp_path: Path) -> None:
    opened = browse(js.views.heads(heads).save(tmp_path / "h.html"))
    cell = opened.page.locator(CELL).nth(9 * 6 + 5)
    cell.hover()
    said = opened.page.locator(".said").inner_text()
    assert said == cell.get_attribute("title")
    assert said.startswith("L6H5 blocks.6.attn.hook_z head 5: ")
    assert opened.errors == []
    assert opened.foreign == []
    opened.keep("heads")


def test_arrows_go_from_head_to_head(heads: js.patching.ComponentEffects, browse: Any, tmp_path: Path) -> None:
    page = browse(js.views.heads(heads).save(tmp_path / "h.html")).page
    said = page.locator(".said")
    page.keyboard.press("Tab")
    assert said.inner_text().startswith("L0H0 ")
    for key, at in (("ArrowDown", "L1H0"), ("ArrowRight", "L1H1"), ("ArrowUp", "L0H1"), ("ArrowLeft", "L0H0"),
                    ("ArrowLeft", "L0H0"), ("End", "L0H8"), ("Home", "L0H0")):  # fmt: skip
        page.keyboard.press(key)
        assert said.inner_text().startswith(f"{at} ")
        focused = page.evaluate("[document.activeElement.ariaLabel, document.activeElement.tabIndex]")
        assert focused == [said.inner_text(), 0]
    assert page.locator(f"{CELL}[tabindex='0']").count() == 1


def test_bars_read_by_keyboard(result: js.Attribution, browse: Any, tmp_path: Path) -> None:
    effects = effects_of(result, "layer", torch.tensor([1.0, -2, 0.5]), of="mlps")
    page = browse(js.views.heads(effects).save(tmp_path / "b.html")).page
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert page.locator(".said").inner_text() == "L1 blocks.1.hook_mlp_out: -2 nat (KL), predicted"
    boxes = [half.bounding_box() for half in page.locator(".half i").all()]
    bars = [(box["x"], box["x"] + box["width"]) for box in boxes if box["width"] > 1]
    zero = bars[0][0]  # the bar of 1 begins where that of -2 ends, but for the border between the cells
    assert [abs(bars[1][1] - zero) < 3, bars[2][0] == zero] == [True, True]
    assert (bars[1][1] - bars[1][0]) == pytest.approx(2 * (bars[0][1] - bars[0][0]), rel=0.02)


def test_two_views_do_not_mix(heads: js.patching.ComponentEffects, browse: Any, tmp_path: Path) -> None:
    opened = browse(js.report([heads, dataclasses.replace(heads, of="heads", source="mean")], tmp_path / "r.html"))
    opened.page.locator(CELL).nth(270 + 3).hover()
    first, second = (opened.page.locator(".said").nth(i).inner_text() for i in (0, 1))
    assert first.startswith("Hover")
    assert second.startswith("L0H3 ")


@pytest.mark.parametrize("axes", ["layer head", "layer head pos", "layer neuron", "layer"])
def test_fits_a_phone(result: js.Attribution, browse: Any, tmp_path: Path, axes: str) -> None:
    sizes = {"layer": 30, "head": 9, "pos": len(result.tokens), "neuron": 100}
    of = {"layer neuron": "neurons", "layer": "mlps"}.get(axes, "heads")
    effects = effects_of(result, axes, noise(*(sizes[axis] for axis in axes.split())), of=of)
    signed = dataclasses.replace(effects, predicted=effects.predicted - effects.predicted.median())
    for name, shown in (("kl", effects), ("signed", signed)):
        opened = browse(js.views.heads(shown).save(tmp_path / "p.html"), 375)
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        opened.keep(f"effects_{axes.replace(' ', '_')}_{name}_375")


def test_every_token_appears_as_it_is(result: js.Attribution, browse: Any, tmp_path: Path) -> None:
    nasty = with_tokens(result, NASTY)
    effects = effects_of(nasty, "layer pos", noise(3, len(NASTY)), of="mlps")
    opened = browse(js.views.heads(effects).save(tmp_path / "n.html"))
    names = opened.page.locator(".jscope-map thead span").all_text_contents()
    assert names == [f"{visible(token).strip()} {i}" for i, token in enumerate(NASTY)]
    assert opened.errors == []


@pytest.mark.parametrize("width", [1000, 375])
@pytest.mark.parametrize("kind", ["all", "streamed", "signed"])
def test_edges_beside_patterns(result: js.Attribution, browse: Any, tmp_path: Path, kind: str, width: int) -> None:
    nasty = with_tokens(result, NASTY)
    n = len(NASTY)
    effects = effects_of(nasty, "layer head dest src", noise(2, 2, n, n).tril(), of="edges")
    if kind == "signed":
        effects = dataclasses.replace(effects, predicted=torch.randn(2, 2, n, n).tril())
    shown = streamed(effects, 10) if kind == "streamed" else effects
    opened = browse(js.views.attention(shown, attention_of(n)).save(tmp_path / "e.html"), width)
    opened.page.wait_for_selector("canvas")
    opened.page.wait_for_timeout(500)
    boxes = [canvas.bounding_box() for canvas in opened.page.locator("canvas").all()]
    assert len(boxes) == 8
    for left, right in zip(boxes[::2], boxes[1::2], strict=True):
        assert (left["y"] == right["y"]) == (width > 900)  # side by side where there is room
        assert left["width"] == right["width"] > 300
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.errors == []
    assert opened.foreign == []
    opened.keep(f"edges_{kind}_{width}")


def test_what_circuitsvis_is_handed(result: js.Attribution, chromium: Any) -> None:
    """Patterns are as they were; edges read as their effects, and count as the caption's scale says."""
    n = len(result.tokens)
    signs = torch.randn(2, 2, n, n, generator=torch.Generator().manual_seed(5)).sign()
    for power, shape in ((0.2, lambda s: s), (1.0, lambda s: s**0.5), (4.0, lambda s: max(0.0, 1 + torch.tensor(s).log10().item() / 3))):  # fmt: skip
        dense = effects_of(result, "layer head dest src", (noise(2, 2, n, n) ** power * signs).tril(), of="edges")
        for effects in (dense, streamed(dense, 30)):
            patterns = attention_of(n)
            view = js.views.attention(effects, patterns)
            best = dense.predicted.flatten(2).abs().amax(-1).argmax().item()
            layer, head = divmod(int(best), 2)
            handed = [props(chromium, call) for call in view.calls[:2]]
            kept = effects.predicted[layer, head].abs().min() if effects.index is not None else 0.0
            top = float(dense.predicted[layer, head].abs().max())
            for dest in range(n):
                for src in range(dest + 1):
                    assert handed[0]["counts"][dest][src] == pytest.approx(
                        float(patterns[layer, head, dest, src]), abs=1e-4
                    )
                    value = float(dense.predicted[layer, head, dest, src])
                    if abs(value) < kept:
                        assert handed[1]["reads"][dest][src] == "not kept"
                        assert handed[1]["counts"][dest][src] == 0
                        continue
                    number, unit = handed[1]["reads"][dest][src].split(" ", 1)
                    assert (float(number), unit) == (pytest.approx(value, rel=1e-3), "nat (KL)")
                    assert abs(handed[1]["counts"][dest][src]) == pytest.approx(
                        shape(abs(value) / top), rel=0.01, abs=1e-3
                    )
                    assert handed[1]["counts"][dest][src] * value >= 0


def props(chromium: Any, call: str) -> Any:
    """What a call hands to circuitsvis, cells as numbers and as text."""
    from jscope_tl.views.circuitsvis_views import HELPERS

    page = chromium.new_page()
    name = call.partition('"')[2].partition('"')[0]
    page.set_content(f'<div id="{name}"></div>')
    code = (
        f"(() => {{ let p; const CircuitsVis = {{render: (name, component, given) => {{ p = given }}}}; {HELPERS} {call} "
        "return {counts: p.attention.map(r => r.map(Number)), reads: p.attention.map(r => r.map(String))} })()"
    )
    found = page.evaluate(code)
    page.close()
    return found
