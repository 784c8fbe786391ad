"""Views of effects of components: what they show where, what they say, what they refuse; how they look is tested in a browser."""

import dataclasses
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.views import circuitsvis_views as circuits
from jscope_tl.views.component_map import MOST_ROWS
from jscope_tl.views.effect_scale import SCALES, EffectScale, effect_scale
from tests.views.effects import effects_of, marked, noise, streamed
from tests.views.results import NASTY, PROMPT, attention_of, with_tokens
from tests.views.test_circuits import EVIL
from tests.views.test_views import Text

pytestmark = pytest.mark.newest_line


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, PROMPT, "semantic", target=" liberal")


@pytest.fixture(scope="module")
def heads(result: js.Attribution) -> js.patching.ComponentEffects:
    return effects_of(result, "layer head", noise(4, 3))


@pytest.fixture(scope="module")
def edges(result: js.Attribution) -> js.patching.ComponentEffects:
    n = len(result.tokens)
    return effects_of(result, "layer head dest src", noise(2, 2, n, n).tril(), of="edges")


def rows_of(view: js.views.View) -> list[list[str]]:
    """The titles of a picture's cells, row by row."""
    body = view.body.partition("<tbody>")[2].partition("</tbody>")[0]
    rows = [re.findall(r'title="([^"]*)"', row) for row in body.split("<tr>")[1:]]
    return [[unescape(title) for title in row] for row in rows]


def test_each_cell_reads_as_its_head(heads: js.patching.ComponentEffects) -> None:
    shown = marked(heads)
    rows = rows_of(js.views.heads(shown))
    assert [len(row) for row in rows] == [3] * 4
    for layer, row in enumerate(rows):
        for head, title in enumerate(row):
            cell = 3 * layer + head
            how = "measured" if cell < 2 else "refined" if cell < 5 else "predicted"
            effect = float(heads.predicted[layer, head]) * (1.5 if cell < 2 else 1)
            error = "" if cell < 2 else f" ± {0.1 * effect:.2g}"
            assert (
                title == f"L{layer}H{head} blocks.{layer}.attn.hook_z head {head}: {effect:.4g}{error} nat (KL), {how}"
            )


def test_what_was_measured_or_refined_is_marked(heads: js.patching.ComponentEffects) -> None:
    body = js.views.heads(marked(heads)).body
    assert "● measured (2 of 12); ○ refined (3 of 12)" in body
    cells = body.partition("</tbody>")[0]
    assert (cells.count("●"), cells.count("○")) == (2, 3)
    plain = js.views.heads(heads).body
    assert "●" not in plain
    assert "○" not in plain
    none = dataclasses.replace(heads, measured=torch.full_like(heads.predicted, torch.nan))
    assert "●" not in js.views.heads(none).body


def test_caption_says_what_when_and_why(heads: js.patching.ComponentEffects) -> None:
    text = " ".join(
        Text(js.views.heads(dataclasses.replace(heads, source="mean over positions", warnings=["a doubt"])).body).text
    )
    for part in ("semantic scope", "position 16", "' liberal'", "mean over positions", "noising", "nat (KL)", "⚠ a doubt", PROMPT,
                 heads.provenance.model_name):  # fmt: skip
        assert part in text
    assert "⚠" not in js.views.heads(heads).body


def test_the_table_is_of_the_strongest(heads: js.patching.ComponentEffects) -> None:
    text = Text(js.views.heads(marked(heads)).body).text
    names = [text[i + 1] for i, cell in enumerate(text) if cell in map(str, range(1, 11))]
    assert names == [f"L{found.layer}H{found.head}" for found in marked(heads).top(10)]


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("signed", [False, True])
def test_colours_grow_with_the_effect_on_either_side(kind: str, signed: bool) -> None:
    """Intensities rise with the effect, are odd, end at 1, and `at` is their inverse where they are on the scale."""
    scale = EffectScale(kind, 2.5, signed)
    effects = [2.5 * 10**-power for power in (2.5, 2, 1, 0.3, 0)]
    intensities = [scale(effect) for effect in effects]
    assert intensities == sorted(intensities)
    assert len(set(intensities)) == 5
    assert intensities[-1] == 1
    assert [scale(-effect) for effect in effects] == [-intensity for intensity in intensities]
    assert [scale.at(i) for i in intensities] == pytest.approx(effects)
    assert [scale.at(-i) for i in intensities] == pytest.approx([-effect for effect in effects])
    assert scale(0.0) == 0
    assert scale.colours(2.5) != scale.colours(-2.5)


def test_letters_stand_out_from_their_background() -> None:
    """A contrast of at least 4.5 to 1 (WCAG AA) over the whole scale."""

    def luminance(rgb: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for signed in (False, True):
        scale = EffectScale("linear", 1.0, signed)
        for effect in torch.linspace(-1 if signed else 0, 1, 101).tolist():
            background, ink = scale.colours(effect)
            own = luminance([int(c) / 255 for c in re.findall(r"\d+", background)])
            letters = 1.0 if ink == "#fff" else 0.0
            assert (max(own, letters) + 0.05) / (min(own, letters) + 0.05) > 4.5


def test_a_scale_is_as_steep_as_its_effects() -> None:
    assert effect_scale(torch.linspace(0.1, 1, 50)).kind == "linear"
    assert effect_scale(torch.cat([torch.tensor([1.0]), torch.full((49,), 0.02)])).kind == "sqrt"
    assert effect_scale(torch.cat([torch.tensor([1.0]), torch.full((49,), 0.001)])).kind == "log"
    assert effect_scale(torch.linspace(0.1, 1, 50), "log").kind == "log"
    assert effect_scale(torch.zeros(3))(0.0) == 0
    for kind, said in (("linear", "linear"), ("sqrt", "square root"), ("log", "logarithmic")):
        assert said in EffectScale(kind, 1.0, False).note


def test_signs_have_colours_of_their_own(heads: js.patching.ComponentEffects) -> None:
    signed = dataclasses.replace(heads, predicted=torch.tensor([[1.0, -1, 0]] * 4))
    body = js.views.heads(signed).body
    assert "orange: the change raises what is explained, purple: it lowers it" in body
    colours = [re.search(r"rgb\(([\d,]+)\)", cell)[1] for cell in body.split("<td ")[1:4]]  # type: ignore[index]
    assert colours == ["191,84,0", "84,39,136", "247,247,247"]
    assert "purple" not in js.views.heads(heads).body


def test_each_head_shows_its_strongest_edge(edges: js.patching.ComponentEffects) -> None:
    for shown in (edges, streamed(edges, 3)):
        view = js.views.heads(shown)
        assert "strongest edge" in view.body
        for layer, row in enumerate(rows_of(view)):
            for head, title in enumerate(row):
                dest, src = divmod(int(edges.predicted[layer, head].argmax()), len(edges.tokens))
                assert title.startswith(f"L{layer}H{head} ")
                texts = [f"{edges.str_tokens[t]!r} {t}" for t in (dest, src)]
                assert f"({' ← '.join(texts)}): {float(edges.predicted[layer, head].max()):.4g} " in title


def test_positions_after_the_explained_one_are_left_out(result: js.Attribution) -> None:
    earlier = dataclasses.replace(result, position=7)
    view = js.views.heads(effects_of(earlier, "layer pos", noise(3, 17), of="mlps"))
    assert [len(row) for row in rows_of(view)] == [8] * 3


def test_of_many_rows_the_strongest_are_shown(result: js.Attribution) -> None:
    effects = effects_of(result, "layer head pos", noise(12, 4, 17))
    view = js.views.heads(effects)
    assert f"the {MOST_ROWS} strongest of 48 rows" in view.body
    order = effects.predicted.amax(-1).flatten().argsort(descending=True)[:MOST_ROWS].tolist()
    assert [row[0].split()[0] for row in rows_of(view)] == [f"L{i // 4}H{i % 4}" for i in order]
    assert "' columbia' 10" in rows_of(view)[0][10]


@pytest.mark.slow
def test_of_a_long_prompt_the_strongest_positions_are_shown(result: js.Attribution) -> None:
    long = with_tokens(result, [f" w{i}" for i in range(900)])
    effects = effects_of(long, "layer head pos", noise(10, 4, 900))
    view = js.views.heads(effects)
    assert "the 200 of 900 positions" in view.body
    places = [int(title.split(" pos ")[1].split()[0]) for title in rows_of(view)[0]]
    assert places == sorted(places)
    best = effects.top(1)[0]
    assert best.pos in places


def test_units_and_layers_are_bars(result: js.Attribution) -> None:
    neurons = js.views.heads(effects_of(result, "layer neuron", noise(4, 500), of="neurons"))
    found = effects_of(result, "layer neuron", noise(4, 500), of="neurons").top(MOST_ROWS)
    assert [row[0].split(":")[0] for row in rows_of(neurons)] == [f"L{f.layer} unit {f.unit} {f.name}" for f in found]
    assert f"the {MOST_ROWS} strongest of 2000" in neurons.body
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", neurons.body)]
    assert widths[0] == 100
    assert widths == pytest.approx([100 * f.effect / found[0].effect for f in found], abs=0.06)
    layers = js.views.heads(effects_of(result, "layer", torch.tensor([1.0, -2, 0.5]), of="mlps"))
    assert [row[0][:2] for row in rows_of(layers)] == ["L0", "L1", "L2"]
    assert [float(width) for width in re.findall(r"width:([\d.]+)%", layers.body)] == [0, 50, 100, 0, 0, 25]


def test_the_error_of_an_autoencoder_is_named(result: js.Attribution) -> None:
    index = torch.tensor([-1, 7, 4000])
    view = js.views.heads(effects_of(result, "feature", torch.tensor([3.0, 2, 1]), of="features", index=index))
    assert [row[0].split(" blocks")[0] for row in rows_of(view)] == ["L0 error", "L0 unit 7", "L0 unit 4000"]


def test_effects_that_are_all_zero(heads: js.patching.ComponentEffects, result: js.Attribution) -> None:
    js.views.heads(dataclasses.replace(heads, predicted=torch.zeros(4, 3)))
    js.views.heads(effects_of(result, "layer", torch.zeros(3), of="mlps"))


@pytest.mark.parametrize("given", [7, None, "text", []])
def test_what_is_no_effects(given: Any) -> None:
    with pytest.raises(js.InputError, match=r"js\.patching\.components"):
        js.views.heads(given)


def test_no_such_scale(heads: js.patching.ComponentEffects) -> None:
    with pytest.raises(js.InputError, match=r"scale is one of linear, sqrt, log.*Did you mean 'log'"):
        js.views.heads(heads, scale="logs")


def test_heads_need_nothing_from_elsewhere(heads: js.patching.ComponentEffects, tmp_path: Path) -> None:
    page = js.views.heads(heads).save(tmp_path / "heads.html").read_text(encoding="utf-8")
    assert "http" not in page
    assert "src=" not in page
    assert len(page) < 30_000


def test_a_notebook_shows_the_map_without_a_script(
    heads: js.patching.ComponentEffects, edges: js.patching.ComponentEffects
) -> None:
    for effects in (heads, edges):
        page = Text(effects._repr_html_())
        assert "script" not in page.tags
        assert page.titles == [title for row in rows_of(js.views.heads(effects)) for title in row]


def test_nothing_that_a_user_names_is_markup(edges: js.patching.ComponentEffects, tmp_path: Path) -> None:
    at = dataclasses.replace(edges.provenance, model_name=EVIL)
    evil = dataclasses.replace(
        edges, scope=EVIL, asked=EVIL, unit=EVIL, source=EVIL, direction=EVIL, warnings=[EVIL], str_tokens=[EVIL] * 17,
        provenance=at, hook_points=(f"{EVIL}.0", f"{EVIL}.1"),
    )  # fmt: skip
    by_position = dataclasses.replace(evil, of="heads", axes=("layer", "head", "pos"), predicted=noise(2, 2, 17),
                                      refined=torch.zeros(2, 2, 17, dtype=torch.bool))  # fmt: skip
    patterns = attention_of(17)
    view = js.views.attention(evil, patterns)
    report = js.report([evil, by_position], tmp_path / "r.html", patterns, title=EVIL).read_text(encoding="utf-8")
    pages = [js.views.heads(evil).body, evil._repr_html_(), view.body, by_position._repr_html_()]
    for page in [*pages, report.replace(circuits.bundle(), "")]:
        assert "<img" not in page
        assert EVIL not in page
    assert "<" not in "".join(view.calls).replace("=>", "")


def names_of(view: js.views.View) -> list[str]:
    return re.findall(r"<h4[^>]*>(L\d+H\d+)</h4>", view.body)


def test_edges_lie_beside_patterns_sorted_by_effect(edges: js.patching.ComponentEffects) -> None:
    view = js.views.attention(edges, attention_of(17))
    order = edges.predicted.flatten(2).amax(-1).flatten().argsort(descending=True).tolist()
    assert names_of(view) == [f"L{i // 2}H{i % 2}" for i in order]
    assert len(view.calls) == 8
    assert "all 4 heads" in view.body


def test_heads_of_a_choice_are_shown(edges: js.patching.ComponentEffects) -> None:
    assert sorted(names_of(js.views.attention(edges, attention_of(17), layers=1))) == ["L1H0", "L1H1"]
    assert names_of(js.views.attention(edges, attention_of(17), layers=0, heads=[1])) == ["L0H1"]
    one_layer = attention_of(17)[0]
    assert sorted(names_of(js.views.attention(edges, one_layer, layers=1))) == ["L1H0", "L1H1"]


def test_budgets_of_heads_and_cells(result: js.Attribution) -> None:
    n = len(result.tokens)
    many = effects_of(result, "layer head dest src", noise(6, 5, n, n).tril(), of="edges")
    view = js.views.attention(many, attention_of(n, 6, 5))
    assert "8 of 30 heads" in view.body
    small = js.views.attention(many, attention_of(n, 6, 5), max_cells=100)
    assert "1 of 30 heads" in small.body
    assert "10 of 17 positions" in small.body
    best = many.top(1)[0]
    for position in (best.dest, best.src, 16):
        assert f'@{position}"' in small.calls[0]


@pytest.mark.parametrize("max_cells", [0, "a", None])
def test_bad_max_cells(edges: js.patching.ComponentEffects, max_cells: Any) -> None:
    with pytest.raises(js.InputError, match="max_cells"):
        js.views.attention(edges, attention_of(17), max_cells=max_cells)


def test_what_cannot_lie_beside_patterns(
    heads: js.patching.ComponentEffects, edges: js.patching.ComponentEffects
) -> None:
    with pytest.raises(js.InputError, match=r"of heads, which js\.views\.heads shows.*of=\"edges\""):
        js.views.attention(heads, attention_of(17))
    with pytest.raises(js.InputError, match="run_with_cache"):
        js.views.attention(edges)
    with pytest.raises(js.InputError, match="and no L2H0"):
        js.views.attention(edges, attention_of(17, layers=3))
    with pytest.raises(js.InputError, match="and no L0H2"):
        js.views.attention(edges, attention_of(17, heads=3))
    with pytest.raises(js.InputError, match="give its number as layers="):
        js.views.attention(edges, attention_of(17)[0])
    with pytest.raises(js.InputError, match="a prompt of 5 tokens"):
        js.views.attention(edges, attention_of(5))


def test_hook_points_name_the_layers(edges: js.patching.ComponentEffects) -> None:
    """Where only some layers have attention, rows are not layers."""
    some = dataclasses.replace(edges, hook_points=("blocks.1.attn.hook_pattern", "blocks.3.attn.hook_pattern"))
    assert "L3H1" in js.views.heads(some).body
    patterns = attention_of(17, layers=4)
    cache = {f"blocks.{layer}.attn.hook_pattern": patterns[layer] for layer in (1, 3)}
    order = edges.predicted.flatten(2).amax(-1).flatten().argsort(descending=True).tolist()
    assert names_of(js.views.attention(some, cache)) == [f"L{2 * (i // 2) + 1}H{i % 2}" for i in order]


def test_a_report_shows_effects_and_edges(
    result: js.Attribution, heads: js.patching.ComponentEffects, edges: js.patching.ComponentEffects, tmp_path: Path
) -> None:
    page = js.report([result, heads, edges], tmp_path / "r.html", attention_of(17)).read_text(encoding="utf-8")
    assert page.count('class="jscope-map"') == 2
    assert page.count('"AttentionPattern"') + page.count("CircuitsVis.AttentionPattern") >= 8
    assert "The 12 strongest as a table" in page
    alone = js.report(edges, tmp_path / "e.html").read_text(encoding="utf-8")
    assert "circuitsvis" not in alone.lower()
    with pytest.raises(js.InputError, match="effects of edges"):
        js.report(heads, tmp_path / "h.html", attention_of(17))


def test_broken_characters_do_no_harm(result: js.Attribution, tmp_path: Path) -> None:
    nasty = with_tokens(result, [*NASTY, "\ud800", "\uffff"])
    n = len(nasty.tokens)
    effects = effects_of(nasty, "layer head dest src", noise(1, 2, n, n).tril(), of="edges")
    page = js.report(effects, tmp_path / "r.html", attention_of(n, 1, 2), layers=0).read_text(encoding="utf-8")
    assert "\\ud800" in page
