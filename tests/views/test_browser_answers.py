"""What a reader sees of answers, with mouse, keyboard, phone or without a script: pages opened in Chromium with the network cut."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import jscope_tl as js
from jscope_tl.results.text import percent, score_text, visible
from jscope_tl.views.answer_words import row_shares, row_tops
from jscope_tl.views.scale import background
from tests.views.results import NASTY, answer_with

pytestmark = [pytest.mark.slow, pytest.mark.newest_line]

CONTINUED = ["\u202eright", " <b>", "\n", " שלום", "'\""]
AS_A_NOTEBOOK = """html => {
  const output = document.body.appendChild(document.createElement("div"));
  output.innerHTML = html;
  for (const old of output.querySelectorAll("script")) {
    const script = document.createElement("script");
    for (const {name, value} of old.attributes) script.setAttribute(name, value);
    script.textContent = old.textContent;
    old.replaceWith(script);
  }
}"""
"""Notebooks put HTML into the page, and its scripts anew so that they run."""


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.TextAttribution:
    return js.attribute_text(pocket, "the keys to the cabinet . the doors near", " the house are old")


@pytest.fixture(scope="module")
def nasty(result: js.TextAttribution) -> js.TextAttribution:
    return answer_with(result, [*NASTY, *CONTINUED], len(NASTY))


def page_of(fragments: list[str], path: Path, style: str = "") -> Path:
    head = '<!doctype html><meta charset=utf-8><meta name=viewport content="width=device-width">'
    path.write_text(f'{head}<body style="{style}">{"".join(fragments)}', encoding="utf-8")
    return path


def colours(view: Any) -> list[str]:
    return view.locator(".src").evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")


def expected(result: js.TextAttribution, row: int) -> list[str]:
    """A background for each source; none for what comes after the row."""
    seen = result.text.n_prompt + row
    found = [f"rgb{background(share)}" for share in row_shares(result)[row, :seen].tolist()]
    return found + ["rgba(0, 0, 0, 0)"] * (len(result.sources) - seen)


def near(given: str, wanted: str) -> bool:
    """Equal but for rounding."""
    numbers = [[int(n) for n in text[text.index("(") + 1 : -1].split(",")] for text in (given, wanted)]
    return len(numbers[0]) == len(numbers[1]) and all(abs(a - b) <= 1 for a, b in zip(*numbers, strict=True))


def test_every_row_colours_its_sources_when_it_is_clicked(
    result: js.TextAttribution, browse: Any, tmp_path: Path
) -> None:
    opened = browse(js.views.answer(result).save(tmp_path / "a.html"))
    view = opened.page.locator(".jscope-answer")
    for row in (2, 0, 3, 1):
        view.locator(".rows button").nth(row).click()
        assert all(map(near, colours(view), expected(result, row)))
        pressed = view.locator(".rows button").evaluate_all("all => all.map(e => e.getAttribute('aria-pressed'))")
        assert pressed == [str(i == row).lower() for i in range(4)]
        panel = view.locator(".panel[open]")
        assert panel.count() == 1
        name = f"{result.rows[row].text!r}, row {row + 1} of 4, {percent(result.rows[row].probability)}"
        assert panel.locator("summary").inner_text() == name
        assert view.locator(".rows button").nth(row).get_attribute("aria-label") == name
        assert panel.locator("td").first.inner_text().replace("\xa0", " ") == repr(result.top(1, row)[0].source.text)
        assert view.locator(".top").inner_text() == f"{float(row_tops(result)[row]):.4g}"
        assert view.locator(".spoken").inner_text().startswith(f"{name}; strongest source: ")
    assert opened.errors == []
    assert opened.foreign == []
    opened.keep("answer")


def test_scores_show_on_hovering(result: js.TextAttribution, browse: Any, tmp_path: Path) -> None:
    estimated = dataclasses.replace(result, token_stderr=0.1 * result.token_scores)
    view = browse(js.views.answer(estimated).save(tmp_path / "a.html")).page.locator(".jscope-answer")
    view.locator(".rows button").nth(1).click()
    for j, says in ((2, score_text(float(result.scores[1, 2]), 0.1 * float(result.scores[1, 2]))), (12, "comes after")):
        view.locator(".src").nth(j).hover()
        said = view.locator(".said").inner_text()
        assert said.startswith(f"{result.str_tokens[j].strip()} – position {j}: {says}")
        assert view.locator(".src").nth(j).get_attribute("title") == said.partition(" – ")[2]
        assert said.endswith(result.unit) or says == "comes after"


def test_by_keyboard_alone(result: js.TextAttribution, browse: Any, tmp_path: Path) -> None:
    page = browse(js.views.answer(result).save(tmp_path / "a.html")).page
    chosen = page.locator("[aria-pressed=true]")
    page.keyboard.press("Tab")
    for key, row in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", 3),
        ("ArrowRight", 3),
        ("Home", 0),
        ("End", 3),
    ):
        page.keyboard.press(key)
        assert chosen.inner_text() == visible(result.rows[row].text)
        assert page.evaluate("document.activeElement === document.querySelector('[aria-pressed=true]')")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # the box
    assert page.locator(".src").first.is_visible()
    page.keyboard.press("Space")
    assert page.locator(".src").first.is_hidden()
    page.keyboard.press("Tab")
    said = page.locator(".said")
    for key, j in (("ArrowRight", 2), ("ArrowRight", 3), ("End", 13), ("Home", 1)):
        page.keyboard.press(key)
        assert said.inner_text().startswith(f"{result.str_tokens[j].strip()} – position {j}: ")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.ariaPressed") == "true"  # one stop for all rows


def test_every_token_appears_as_it_is(nasty: js.TextAttribution, browse: Any, tmp_path: Path) -> None:
    opened = browse(js.views.answer(nasty).save(tmp_path / "a.html"))
    view = opened.page.locator(".jscope-answer")
    assert view.locator(".rows button").all_text_contents() == [visible(token) for token in CONTINUED]
    shown = [text.replace("↵\n", "↵") for text in view.locator(".src").all_text_contents()]
    assert shown == [visible(token) for token in nasty.str_tokens]
    for row in range(len(CONTINUED)):
        view.locator(".rows button").nth(row).click()
        assert all(map(near, colours(view), expected(nasty, row)))
    view.locator(".src", has_text="onerror").hover()
    assert view.locator(".said").inner_text().startswith("<img src=x onerror=alert(1)> – position 9: ")
    assert opened.page.locator("img, s").count() == 0
    assert opened.errors == []
    assert opened.foreign == []
    opened.keep("answer_hostile")


def test_template_text_is_hidden_until_it_is_asked_for(nasty: js.TextAttribution, browse: Any, tmp_path: Path) -> None:
    opened = browse(js.views.answer(nasty).save(tmp_path / "a.html"))
    view = opened.page.locator(".jscope-answer")
    hidden = [view.locator(".src").nth(j) for j in (0, len(NASTY) - 1)]
    assert view.get_by_text(nasty.template_line()).is_visible()
    assert not any(source.is_visible() for source in hidden)
    view.get_by_label("show BOS and template text").check()
    assert all(source.is_visible() for source in hidden)
    assert [near(colours(view)[0], f"rgb{background(1.0)}"), hidden[0].get_attribute("title")] == [
        True, f"position 0: 1000 {nasty.unit}",
    ]  # fmt: skip
    assert view.locator("h5").all_inner_texts() == ["user", "answer so far"]


def test_several_on_one_page_do_not_mix(
    result: js.TextAttribution, nasty: js.TextAttribution, browse: Any, tmp_path: Path
) -> None:
    """Beside one another, and the same one twice, as a notebook with two views of an output has it."""
    fragments = [result._repr_html_(), nasty._repr_html_(), result._repr_html_()]
    opened = browse(page_of(fragments, tmp_path / "n.html"))
    views = [opened.page.locator(".jscope-answer").nth(i) for i in range(3)]
    views[2].locator(".rows button").nth(3).click()
    views[1].locator(".rows button").nth(1).click()
    for view, shown, row in zip(views, (result, nasty, result), (0, 1, 3), strict=True):
        assert all(map(near, colours(view), expected(shown, row)))
        assert view.locator(".panel[open]").count() == 1
    assert opened.errors == []
    assert opened.foreign == []


def test_in_the_output_of_a_notebook(result: js.TextAttribution, browse: Any, tmp_path: Path) -> None:
    opened = browse(
        page_of(["<p>a notebook</p>"], tmp_path / "n.html", "background:#111;color:#eee;--jp-layout-color0:#111")
    )
    names = opened.page.evaluate("Object.keys(window)")
    for _ in range(2):
        opened.page.evaluate(AS_A_NOTEBOOK, result._repr_html_())
        opened.page.locator(".jscope-answer.live").last.wait_for()
    views = [opened.page.locator(".jscope-answer").nth(i) for i in range(2)]
    views[0].locator(".rows button").nth(2).click()
    assert all(map(near, colours(views[0]), expected(result, 2)))
    assert all(map(near, colours(views[1]), expected(result, 0)))
    assert opened.page.evaluate("Object.keys(window)") == names
    assert opened.errors == []
    opened.keep("answer_notebook")


def test_without_a_script(result: js.TextAttribution, chromium: Any, tmp_path: Path) -> None:
    context = chromium.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(js.views.answer(result).save(tmp_path / "a.html").as_uri())
    panels = page.locator(".panel")
    assert [panels.nth(i).get_attribute("open") is not None for i in range(4)] == [True, False, False, False]
    panels.nth(2).locator("summary").click()
    best = result.top(1, 2)[0]
    assert panels.nth(2).get_by_role("cell", name=f"{best.score:.4g}").first.is_visible()
    assert page.get_by_text("the colours are those of row 1").is_visible()
    styles = [page.locator(".src").nth(j).get_attribute("style") for j in range(len(result.sources))]
    shares = [float((style or "--i:0").removeprefix("--i:")) for style in styles]
    assert shares == pytest.approx(row_shares(result)[0].tolist(), abs=6e-4)
    page.get_by_label("show BOS and template text").check()
    assert page.locator(".src").first.is_visible()
    context.close()


@pytest.mark.parametrize("by", ["token", "message"])
def test_fits_a_phone(
    result: js.TextAttribution, nasty: js.TextAttribution, browse: Any, tmp_path: Path, by: str
) -> None:
    for name, shown in (("plain", result), ("hostile", nasty)):
        opened = browse(js.report(shown.grouped(by), tmp_path / "r.html"), 375)
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        buttons = opened.page.locator(".rows button").evaluate_all(
            "all => all.map(e => e.getBoundingClientRect()).map(b => Math.min(b.width, b.height))"
        )
        assert min(buttons) >= 24  # what a finger hits (WCAG 2.5.8)
        assert opened.errors == []
        opened.keep(f"answer_375_{name}_{by}")
