"""The graph of a flow: what is drawn, where it is, and that it is safe and needs nothing from elsewhere."""

import dataclasses
import inspect
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.components.token_flow import FlowEdge, TokenFlow
from jscope_tl.views.flow_graph import bundles
from tests.views.results import NASTY

pytestmark = pytest.mark.newest_line

PROMPT = "the keys to the cabinet near the doors"


@pytest.fixture(scope="module")
def result(pocket: Any) -> TokenFlow:
    return js.patching.flow(pocket, PROMPT, 2, "contrastive", target=" are", baseline=" is")


def made(result: TokenFlow, edges: list[FlowEdge], layers: int, str_tokens: list[str]) -> TokenFlow:
    """A flow of any size, with influence 1 at the source below and at the explained position above."""
    pos = len(str_tokens)
    levels = torch.zeros(layers + 1, pos)
    levels[: layers // 2 + 1, 1] = levels[layers // 2 + 1 :, -1] = 1
    return dataclasses.replace(
        result, edges=tuple(edges), heads=torch.zeros(layers, 8), levels=levels, staying=torch.zeros(layers, pos), mlps=torch.zeros(layers, pos),
        sizes=torch.ones(layers), total=1.0, source_position=1, position=pos - 1, tokens=torch.arange(pos), str_tokens=str_tokens,
    )  # fmt: skip


def svg(result: TokenFlow, **how: Any) -> ET.Element:
    """Parsed strictly: text that is not escaped would break it."""
    body = js.views.flow(result, **how).body
    return ET.fromstring(body[body.index("<svg") : body.index("</svg>") + 6])


def drawn_lines(picture: ET.Element) -> list[tuple[ET.Element, ET.Element, str]]:
    """Line, label and what hovering says of each bundle."""
    found = [(g.find("path"), g.find("text"), g.findtext("title") or "") for g in picture.iter("g")]
    return [(path, text, said) for path, text, said in found if path is not None and text is not None]


def test_every_drawn_edge_is_said_once(result: TokenFlow) -> None:
    lines = drawn_lines(svg(result, n=200))
    size = max(abs(result.total), float(result.levels.abs().max()))
    drawn = [edge for edge in result.edges if abs(edge.influence) >= 0.02 * size]
    said = [line for _, _, text in lines for line in text.split("\n")]
    assert sorted(said) == sorted(result.said(edge) for edge in drawn)
    share = sum(abs(edge.influence) for edge in drawn) / float(result.sizes.sum())
    assert (
        f"{len(drawn)} strongest entries of attention patterns are drawn, with {share:.1%}"
        in js.views.flow(result, n=200).body
    )


def test_lines_start_at_what_is_read_and_end_at_what_is_written(result: TokenFlow) -> None:
    picture = svg(result)
    names = [text for text in picture.iter("text") if "rotate" in text.get("transform", "")]
    column = {
        i: float(re.findall(r"translate\(([\d.]+)", text.get("transform", ""))[0]) - 4 for i, text in enumerate(names)
    }
    assert list(column.values()) == sorted(column.values())
    heights: dict[int, list[float]] = {}
    for path, label, said in drawn_lines(picture):
        found = re.findall(r"^(L(\d+)H\d+): .* (\d+) -> .* (\d+)  ([+-])", said.split("\n")[0])[0]
        layer, src, dest = int(found[1]), int(found[2]), int(found[3])
        points = path.get("d", "")
        assert path.get("stroke") == ("#bf5400" if found[4] == "+" else "#5e3c99") == label.get("fill")
        if src == dest:
            assert float(re.findall(r"^M([\d.]+)", points)[0]) < column[src]
            continue
        assert float(re.findall(r"^M([\d.]+)", points)[0]) == column[src]
        x, y = re.findall(r"([\d.]+) [\d.]+ V([\d.]+)$", points)[0]
        assert float(x) == column[dest]
        heights.setdefault(layer, []).append(float(y))
    tops = [set(heights[layer]) for layer in sorted(heights)]
    assert all(len(top) == 1 for top in tops)  # all of a layer end at its upper border
    assert [max(top) for top in tops] == sorted((max(top) for top in tops), reverse=True)  # layers from the bottom up


def test_thickness_is_a_share(result: TokenFlow) -> None:
    edges = [FlowEdge(3, 0, 6, 1, 0.8), FlowEdge(5, 1, 6, 1, -0.4)]
    lines = drawn_lines(svg(made(result, edges, 8, [f" {i}" for i in range(7)])))
    wide = [float(path.get("stroke-width", "0")) for path, _, _ in lines]
    assert wide == pytest.approx([0.8 * 15, 0.4 * 15], abs=0.06)


def test_no_line_is_wider_than_the_widest(result: TokenFlow) -> None:
    """Heads that work against each other carry more than what is left of both."""
    edges = [FlowEdge(3, 0, 6, 1, 8.0), FlowEdge(3, 1, 6, 1, -4.0), FlowEdge(3, 2, 6, 1, -3.0)]
    lines = drawn_lines(svg(made(result, edges, 8, [f" {i}" for i in range(7)])))
    wide = [float(path.get("stroke-width", "0")) for path, _, _ in lines]
    assert wide == pytest.approx([15, 15 * 7 / 8], abs=0.06)


def test_layers_without_edges_are_drawn_together(result: TokenFlow) -> None:
    picture = svg(made(result, [FlowEdge(23, 0, 6, 1, 0.9)], 30, [f" {i}" for i in range(7)]))
    texts = [text.text or "" for text in picture.iter("text")]
    assert [text for text in texts if text.startswith("layer")] == ["layers 0–22", "layer 23", "layers 24–29"]
    assert float(picture.get("height", "0")) < 300


def test_of_a_long_prompt_only_tokens_that_an_edge_touches(result: TokenFlow) -> None:
    edges = [FlowEdge(1, 0, 150, 1, 0.9), FlowEdge(2, 0, 199, 150, 0.9)]
    picture = svg(made(result, edges, 4, [f" t{i}" for i in range(200)]))
    names = [text.text for text in picture.iter("text") if "rotate" in text.get("transform", "")]
    assert names == ["t1 1", "t150 150", "t199 199"]


def test_heads_that_go_the_same_way_are_one_line(result: TokenFlow) -> None:
    edges = [
        FlowEdge(2, 5, 6, 1, 0.4),
        FlowEdge(2, 3, 6, 1, -0.3),
        FlowEdge(2, 7, 6, 1, 0.1),
        FlowEdge(2, 1, 5, 1, 0.2),
    ]
    assert [bundle.label for bundle in bundles(edges)] == ["L2 H5 H7", "L2H3", "L2H1"]


def test_text_is_escaped_and_nothing_is_loaded(result: TokenFlow, tmp_path: Path) -> None:
    edges = [FlowEdge(1, 0, t, 1, 0.5) for t in range(1, len(NASTY))]
    nasty = made(result, edges, 4, NASTY)
    svg(nasty)
    page = js.views.flow(nasty).save(tmp_path / "flow.html").read_text(encoding="utf-8")
    page += js.report([nasty, result], tmp_path / "report.html").read_text(encoding="utf-8") + nasty._repr_html_()
    assert "<img src=x" not in page
    assert "http" not in page
    assert "CircuitsVis" not in page


def test_report_and_notebook_hold_the_graph(result: TokenFlow, pocket: Any, tmp_path: Path) -> None:
    beside = js.attribute(pocket, PROMPT, "semantic", target=" are")
    page = js.report([beside, result], tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert page.count("<h2>") == 1  # one prompt
    for edge in result.top(20):
        assert f"{edge.influence:+.4g}" in page
    assert "<svg" in result._repr_html_()
    assert "linear picture" in page


def test_what_is_no_flow() -> None:
    with pytest.raises(js.InputError, match="takes the TokenFlow"):
        inspect.unwrap(js.views.flow)("flow")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1000, 390])
def test_in_a_browser(result: TokenFlow, browse: Any, tmp_path: Path, width: int) -> None:
    opened = browse(js.report([result], tmp_path / "page.html"), width)
    assert opened.page.locator("svg path").count() == len(drawn_lines(svg(result)))
    assert opened.errors == []
    assert opened.foreign == []
    beyond = opened.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert beyond <= 0  # a wide graph scrolls in its own box
    opened.keep(f"flow_{width}")
