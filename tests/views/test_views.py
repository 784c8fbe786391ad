"""Text and HTML of results: what they say, what they escape, and that they change nothing."""

import dataclasses
import html.parser
from base64 import b64decode
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

import jscope_tl as js
from jscope_tl.results.text import percent, score_text
from jscope_tl.views.scale import scale_of
from jscope_tl.views.terminal import show

pytestmark = pytest.mark.newest_line

NASTY = ["<bos>", " <s>", " </script>", " \"quoted\" & 'single'", "\n", " 🙂", "\t", " [bold]rich[/bold]"]


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, "the keys to the cabinet near the doors", "fisher", method="sampled")


@pytest.fixture
def nasty(result: js.Attribution) -> js.Attribution:
    scores = torch.arange(len(NASTY), dtype=torch.float32) + 1
    scores[0] = 1000
    return dataclasses.replace(
        result, scores=scores, stderr=None, tokens=torch.arange(len(NASTY)), str_tokens=NASTY, position=len(NASTY) - 1
    )


class Text(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.titles: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.titles += [value or "" for name, value in attrs if name == "title"]
        self.sources += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_repr_says_what_a_reader_needs(result: js.Attribution) -> None:
    text = repr(result)
    best = result.top(1)[0]
    for part in (
        "fisher",
        "position 8",
        "' doors'",
        "hook_embed",
        result.unit,
        repr(best.str_token),
        "±",
        "probes = 16",
    ):
        assert part in text


def test_html_shows_every_token_as_it_is(nasty: js.Attribution) -> None:
    page = Text(nasty._repr_html_())
    for token in NASTY:
        if token.strip():
            assert token in page.text
    assert "↵" in page.text
    assert "⇥" in page.text
    assert "script" not in page.tags
    assert "s" not in page.tags


def test_html_shows_scores_on_hovering_and_the_unit(result: js.Attribution) -> None:
    page = Text(result._repr_html_())
    assert len(page.titles) == len(result.tokens)
    assert page.titles[2].startswith("2: ")
    assert any(result.unit in text for text in page.text)


def test_html_is_light_and_offline(result: js.Attribution) -> None:
    n = 200
    long = dataclasses.replace(
        result, scores=torch.rand(n), stderr=torch.rand(n), tokens=torch.arange(n), str_tokens=[" antidisestablish"] * n
    )
    fragment = long._repr_html_()
    assert len(fragment) < 50_000
    assert "http" not in fragment
    assert "src=" not in fragment


def test_bos_is_left_out_of_the_scale_and_it_is_said(nasty: js.Attribution) -> None:
    scale = scale_of([nasty])
    assert scale(1000.0) == 1.0
    assert scale(float(len(NASTY))) == 1.0
    assert scale(2.0) == pytest.approx(2 / len(NASTY))
    assert "BOS is left out" in nasty._repr_html_()
    without = dataclasses.replace(nasty, bos_positions=())
    assert "BOS is left out" not in without._repr_html_()
    assert "the first token is left out" in without._repr_html_()  # an attention sink, if there is no BOS
    late = dataclasses.replace(without, scores=without.scores.flip(0))
    assert scale_of([late])(float(len(NASTY))) < 0.01
    assert "left out" not in late._repr_html_()


def test_one_scale_for_several_results(nasty: js.Attribution) -> None:
    double = dataclasses.replace(nasty, scores=2 * nasty.scores)
    assert scale_of([nasty, double]).high == 2 * scale_of([nasty]).high


def test_logarithmic_scale(nasty: js.Attribution) -> None:
    result = dataclasses.replace(nasty, scores=torch.tensor([9.0, 100, 10, 1, 1e-3, 0, 50, 20]))
    scale = scale_of([result], log=True)
    assert [round(scale(s), 3) for s in (100.0, 10.0, 1.0, 0.1, 1e-3, 0.0)] == [1, 0.667, 0.333, 0, 0, 0]
    assert scale_of([dataclasses.replace(result, scores=torch.full((8,), 3.0))], log=True)(3.0) == 1.0
    assert scale_of([dataclasses.replace(result, scores=torch.zeros(8))], log=True)(0.0) == 0.0


def test_zero_scores_have_no_colour(nasty: js.Attribution) -> None:
    assert scale_of([dataclasses.replace(nasty, scores=torch.zeros(len(NASTY)))])(0.0) == 0.0


def test_percent_is_round_only_where_it_is() -> None:
    assert [percent(p) for p in (0.0, 1e-9, 0.0004, 0.123, 0.9999, 1.0)] == [
        "0.0%",
        "<0.1%",
        "<0.1%",
        "12.3%",
        ">99.9%",
        "100.0%",
    ]


def test_terminal_shows_every_token_as_it_is(nasty: js.Attribution, capsys: pytest.CaptureFixture[str]) -> None:
    show(nasty, Console(width=200))
    out = capsys.readouterr().out
    assert "[bold]rich[/bold]" in out
    assert " <s> </script>" in out
    assert nasty.unit in out


def test_views_change_nothing(result: js.Attribution) -> None:
    before = result.scores.clone()
    repr(result), result._repr_html_(), show(result, Console(file=open("/dev/null", "w")))  # noqa: SIM115
    assert torch.equal(result.scores, before)


def test_score_text() -> None:
    assert score_text(12.3456, None) == "12.35"
    assert score_text(12.3456, 0.0456) == "12.35 ± 0.046"


def test_control_characters_stay_harmless(nasty: js.Attribution, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = ["\x1b[2J", "\x9b1m", "\u202eabc", "\x00", "\x7f", "é", "👩\u200d🔬", " x"]
    result = dataclasses.replace(nasty, str_tokens=tokens)
    show(result, Console(width=200))
    out = capsys.readouterr().out
    for text in (out, result._repr_html_()):
        assert not set("\x1b\x9b\u202e\x00\x7f") & set(text)
        assert "␛[2J" in text
        assert "é👩\u200d🔬" in text or "👩\u200d🔬" in text


def test_units_are_no_markup(nasty: js.Attribution, capsys: pytest.CaptureFixture[str]) -> None:
    show(dataclasses.replace(nasty, unit="x [/y] [m/s]"), Console(width=200))
    assert "x [/y] [m/s]" in capsys.readouterr().out


EVIL = '"><img src=x onerror=alert(1)>'


def test_everything_in_html_is_escaped(nasty: js.Attribution) -> None:
    prediction = dataclasses.replace(
        nasty.prediction, target=dataclasses.replace(nasty.prediction.target, str_token=EVIL)
    )
    result = dataclasses.replace(
        nasty, str_tokens=[EVIL] * len(NASTY), scope=EVIL, unit=EVIL, warnings=[EVIL], prediction=prediction,
        options={"resolved": {EVIL: EVIL}},
    )  # fmt: skip
    assert "img" not in Text(result._repr_html_()).tags


@pytest.fixture(scope="module")
def wide(pocket: Any) -> dict[str, Any]:
    """Results that are shown as a picture."""
    prompt = "the keys to the cabinet"
    return {
        "pattern": js.influence_pattern(pocket, prompt, "semantic", [5, 3]),
        "spectrum": js.spectrum(pocket, prompt, k=2),
    }


def drawn(page: Text) -> str:
    """All text in the one picture of a page."""
    (source,) = page.sources
    picture = b64decode(source.removeprefix("data:image/svg+xml;base64,"))
    return " ".join(" ".join(ElementTree.fromstring(picture).itertext()).split())


@pytest.mark.parametrize("name", ["pattern", "spectrum"])
def test_notebooks_show_a_picture_with_its_unit_and_the_strongest_tokens(wide: dict[str, Any], name: str) -> None:
    result = wide[name]
    page = Text(result._repr_html_())
    assert page.text[0] == result.headline()
    assert f"score ({result.unit})" in page.text
    best = result.top(1)[0]
    cells = page.text.index(repr(best.str_token))
    assert page.text[cells - 1] == str(best.position)
    assert page.text[cells + 1] == score_text(best.score, None)
    if name == "pattern":
        assert page.text[cells + 2] == str(best.explained)
    assert result.unit in drawn(page)
    for i, token in enumerate(result.str_tokens):
        assert f"{token.strip()} {i}" in drawn(page)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pattern", "spectrum"])
def test_pictures_and_what_stands_around_them_are_escaped(wide: dict[str, Any], name: str) -> None:
    result = wide[name]
    at = dataclasses.replace(result.provenance, hook_point=EVIL)
    evil = dataclasses.replace(result, str_tokens=[EVIL] * 6, scope=EVIL, unit=EVIL, warnings=[EVIL], provenance=at)
    page = Text(evil._repr_html_())
    assert page.tags == [*Text(result._repr_html_()).tags, "p"]  # the warning, and nothing else
    assert page.text.count(repr(EVIL)) == 5
    assert f"⚠ {EVIL}" in page.text
    assert EVIL in drawn(page)
