"""What a reader sees: pages opened in Chromium with the network cut."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.results.text import visible
from tests.views.results import NASTY, PROMPT, attention_of, pattern_of, with_tokens

pytestmark = [pytest.mark.slow, pytest.mark.newest_line]

TOKEN = ".colored-tokens > span"


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, PROMPT, "semantic", target=" liberal")


def shown(texts: list[str]) -> list[str]:
    """Token texts with protected spaces as spaces."""
    return [text.replace("\xa0", " ") for text in texts]


@pytest.mark.parametrize("log", [False, True])
def test_every_token_appears_as_it_is(result: js.Attribution, browse: Any, tmp_path: Path, log: bool) -> None:
    nasty = with_tokens(result, NASTY)
    opened = browse(js.views.tokens(nasty, log=log).save(tmp_path / "page.html"))
    opened.page.wait_for_selector(TOKEN)
    texts = shown(opened.page.locator(TOKEN).all_text_contents())
    assert texts[:-1] == [visible(token) for token in NASTY][:-1]
    assert texts[-1] == visible(NASTY[-1]) + "→  liberal >99.9%"
    assert opened.page.locator(f"{TOKEN} br").count() == 1  # the new line
    assert opened.errors == []
    assert opened.foreign == []
    opened.keep(f"tokens_{'log' if log else 'linear'}")


def test_hovering_shows_the_token_its_score_and_its_unit(result: js.Attribution, browse: Any, tmp_path: Path) -> None:
    nasty = with_tokens(result, NASTY)
    opened = browse(js.views.tokens(nasty, log=True).save(tmp_path / "page.html"))
    for i in (0, 1, 2, 9):
        opened.page.mouse.move(0, 0)  # the last tip goes
        opened.page.locator("strong").wait_for(state="detached")
        opened.page.locator(TOKEN).nth(i).hover()
        tip = opened.page.locator("strong").locator("..")
        tip.wait_for()
        score = nasty.scored(i).score
        assert shown([tip.inner_text()])[0].split("\n") == [NASTY[i].strip(), f"{score:.4g} {nasty.unit}, position {i}"]
    opened.keep("tokens_hover")


def test_colours_follow_the_scale_and_leave_bos_out(result: js.Attribution, browse: Any, tmp_path: Path) -> None:
    nasty = with_tokens(result, [f" {i}" for i in range(10)])
    opened = browse(js.views.tokens(nasty).save(tmp_path / "page.html"))
    opened.page.wait_for_selector(TOKEN)
    colours = opened.page.locator(f"{TOKEN} > span").evaluate_all(
        "all => all.map(e => getComputedStyle(e).backgroundColor)"
    )
    assert (
        colours[0] == colours[-1] == "rgb(191, 84, 0)"
    )  # BOS, a hundred times higher, is cut off at the highest of the rest
    greens = [int(colour.strip("rgb()").split(",")[1]) for colour in colours[1:]]
    assert greens == sorted(greens, reverse=True)
    assert len(set(greens)) == 9


def test_long_prompt(result: js.Attribution, browse: Any, tmp_path: Path) -> None:
    texts = [f" word{i}" for i in range(300)]
    opened = browse(js.views.tokens(with_tokens(result, texts)).save(tmp_path / "page.html"))
    opened.page.wait_for_selector(TOKEN)
    assert shown(opened.page.locator(TOKEN).all_text_contents())[:-1] == texts[:-1]
    opened.keep("tokens_300")


def test_attention_draws_scopes_and_heads(result: js.Attribution, browse: Any, tmp_path: Path) -> None:
    nasty = with_tokens(result, NASTY)
    view = js.views.attention([pattern_of(nasty)], attention_of(len(NASTY)))
    opened = browse(view.save(tmp_path / "page.html"))
    opened.page.wait_for_selector("canvas")
    names = opened.page.locator("h4").all_text_contents()
    assert names == ["semantic", "L0H0", "L0H1", "L1H0", "L1H1"]
    opened.page.wait_for_timeout(500)
    inks = opened.page.evaluate(
        "[...document.querySelectorAll('canvas')].map(c => new Set(c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data).size)"
    )
    assert len(inks) == 6  # five small ones and the large one
    assert min(inks) > 10
    assert opened.errors == []
    assert opened.foreign == []
    opened.page.locator("canvas").last.hover(position={"x": 300, "y": 500})
    opened.page.wait_for_timeout(300)
    opened.keep("attention")


def test_heads_can_be_chosen_with_the_keyboard(result: js.Attribution, browse: Any, tmp_path: Path) -> None:
    view = js.views.attention([pattern_of(result)], attention_of(len(result.tokens)))
    opened = browse(view.save(tmp_path / "page.html"))
    head = opened.page.get_by_role("button", name="L1H0")
    head.wait_for()
    head.focus()
    opened.page.keyboard.press("Enter")
    assert opened.page.locator("h3", has_text="Zoomed").inner_text() == "L1H0 Zoomed"


@pytest.mark.parametrize("width", [1000, 380])
def test_report(pocket: Any, result: js.Attribution, browse: Any, tmp_path: Path, width: int) -> None:
    nasty = with_tokens(result, NASTY)
    series = js.attribute(pocket, "29 , 35 , 41 , 47 , 53 , 59 , 53 , 47 ,", "temperature")
    pattern = js.influence_pattern(pocket, PROMPT, "semantic")
    _, cache = pocket.run_with_cache(PROMPT)
    path = js.report([result, nasty, series, pattern], tmp_path / "r.html", cache)
    opened = browse(path, width)
    opened.page.wait_for_selector("canvas")
    texts = opened.page.locator("#static .tokens").nth(1).locator("span").all_text_contents()
    assert texts == [visible(token) for token in NASTY]
    assert opened.errors == []
    assert opened.foreign == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing hangs over on a phone
    box = opened.page.locator("canvas").last.bounding_box()
    assert min(box["width"], box["height"]) > 350  # the large picture of the chosen head
    opened.page.locator("summary").evaluate_all("all => all.forEach(s => s.click())")
    opened.page.wait_for_timeout(500)
    opened.keep(f"report_{width}")


def test_layer_maps_scroll_in_their_own_box_on_a_phone(pocket: Any, browse: Any, tmp_path: Path) -> None:
    layers = js.attribute(pocket, PROMPT, "contrastive", target=" liberal", baseline=" conservative", at="resid_pre")
    page = f'<!doctype html><meta charset=utf-8><meta name=viewport content="width=device-width">{layers._repr_html_()}'
    (tmp_path / "n.html").write_text(page, encoding="utf-8")
    for path in (js.report(layers, tmp_path / "r.html"), tmp_path / "n.html"):
        opened = browse(path, 375)
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        picture, box = (opened.page.locator(f"img{up}").first.bounding_box()["width"] for up in ("", " >> xpath=.."))
        assert picture > 1.3 * box  # letters stay readable, and the box scrolls
        assert opened.page.evaluate("(b => b.scrollWidth > b.clientWidth)(document.querySelector('img').parentElement)")
        opened.keep(f"layers_375_{path.stem}")
        wide = browse(path, 1400).page.locator("img").first.bounding_box()["width"]
        assert picture < wide <= 1400


def test_report_by_keyboard(result: js.Attribution, browse: Any, tmp_path: Path) -> None:
    """Arrow keys move along the tokens; what is said of a token is its score, its error and its rank."""
    estimated = dataclasses.replace(result, stderr=0.1 * result.scores)
    page = browse(js.report(estimated, tmp_path / "r.html")).page
    tokens = page.get_by_test_id("token")
    assert tokens.all_inner_texts() == result.str_tokens
    tokens.nth(result.position).focus()
    page.keyboard.press("Home")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    token = result.scored(2)
    said = page.locator("#token-said").inner_text()
    assert said.startswith(
        f"{token.str_token.strip()}, position 2, {token.score:.4g} ± {0.1 * token.score:.4g} {result.unit}"
    )
    page.keyboard.press("End")
    assert page.locator("#token-said").inner_text().startswith("a, position 16")
    page.locator("summary", has_text="Predicted next tokens").press("Enter")
    assert page.get_by_role("cell", name="' liberal' (target)").is_visible()


def test_report_asks_nobody(pocket: Any, result: js.Attribution, browse: Any, tmp_path: Path) -> None:
    """What needs a model is not there; what was computed is chosen and stands side by side."""
    other, layers = js.attribute(pocket, PROMPT, "entropy"), js.attribute(pocket, PROMPT, "entropy", at="resid_pre")
    series = js.attribute(pocket, "29 , 35 , 41 , 47 , 53 ,", "temperature")
    opened = browse(js.report([result, other, series, layers], tmp_path / "r.html"))
    page = opened.page
    assert not page.get_by_test_id("explain").is_visible()
    assert not page.get_by_test_id("ablate").is_visible()
    assert [one.inner_text() for one in page.locator(".column h3").all()] == [
        "semantic, target ' liberal'",
        "entropy 1",
    ]
    assert "rank correlation with the first column" in page.locator(".column").nth(1).inner_text()
    page.locator("#results button").nth(2).click()
    assert page.locator("#series rect.influence").count() == 5
    page.locator("#results button").nth(3).click()
    assert page.locator(".map td[title]").count() == 4 * 17
    assert page.locator(".map td[title]").first.is_visible()
    assert not page.locator("[data-save=png]").is_visible()  # of tokens, which a map has none of
    page.locator("#results button").nth(0).click()
    assert page.locator("#map").inner_text() == ""
    assert opened.errors == []
    assert opened.foreign == []


def test_report_without_script(result: js.Attribution, chromium: Any, tmp_path: Path) -> None:
    path = js.report(result, tmp_path / "r.html")
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto(f"file://{path}")
    assert not page.locator("#ask").is_visible()
    assert page.locator("#static").inner_text().startswith(result.provenance.model_name)
    assert page.locator("h1").inner_text() == "semantic scope"


def test_notebook_fragment_needs_no_script(result: js.Attribution, browse: Any, tmp_path: Path) -> None:
    page = tmp_path / "n.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{with_tokens(result, NASTY)._repr_html_()}", encoding="utf-8")
    opened = browse(page)
    assert opened.page.locator("script").count() == 0
    assert opened.page.locator("span[title]").all_text_contents() == [visible(token) for token in NASTY]
    opened.keep("notebook")


def test_what_circuitsvis_is_handed(result: js.Attribution, chromium: Any) -> None:
    """Every cell counts as its fraction of the row and reads as its score; heads are as they were."""
    positions, targets = (3, 9, 16), (result.prediction.target,) * 3
    noise = torch.rand(3, 17, generator=torch.Generator().manual_seed(2)) + 0.1
    scores = torch.stack([row.where(torch.arange(17) <= d, 0) for row, d in zip(noise, positions, strict=True)])
    pattern = dataclasses.replace(
        pattern_of(result), scores=scores, positions=positions, unit="<logit>", targets=targets
    )
    patterns = attention_of(17)
    for max_cells, kept in ((10_000, range(17)), (200, None)):
        view = js.views.attention(pattern, patterns, max_cells=max_cells)
        handed = props(chromium, view)
        names = handed["attentionHeadNames"]
        places = list(kept) if kept else [int(text.rpartition("@")[2]) for text in handed["tokens"]]
        if kept is None:
            assert len(places) < 17
            assert {3, 9, 16} <= set(places)
        for i, dest in enumerate(places):
            for j, src in enumerate(places[: i + 1]):
                row = pattern.positions.index(dest) if dest in pattern.positions else None
                score = 0.0 if row is None else float(scores[row, src])
                top = 1.0 if row is None else float(scores[row, 1:].max())
                assert handed["counts"][0][i][j] == pytest.approx(score / top, rel=2e-3)
                number, unit = handed["reads"][0][i][j].split(" ")
                assert (float(number), unit) == (pytest.approx(score, rel=1e-3), "<logit>")
                for head, name in enumerate(names[1:], start=1):
                    value = float(patterns[int(name[1]), int(name[3]), dest, src])
                    assert handed["counts"][head][i][j] == pytest.approx(value, abs=1e-4)


def props(chromium: Any, view: js.views.View) -> Any:
    """What a view hands to circuitsvis, cells as numbers and as text."""
    from jscope_tl.views.circuitsvis_views import HELPERS

    page = chromium.new_page()
    page.set_content(view.body)
    read = "m => m.map(r => r.map(%s))"
    code = (
        f"(() => {{ let p; const CircuitsVis = {{render: (name, component, given) => {{ p = given }}}}; {HELPERS} "
        f"{view.calls[0]} return {{...p, attention: null, counts: p.attention.map({read % 'Number'}), "
        f"reads: p.attention.map({read % 'String'})}} }})()"
    )
    found = page.evaluate(code)
    page.close()
    return found
