"""The explorer's page in Chromium: mouse and keyboard, links, what is hostile, and nothing from elsewhere."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import jscope_tl as js
from jscope_tl.explorer.frozen import STATIC
from tests.explorer.asked import PROMPT, explained, scores
from tests.explorer.launched import Launched

pytestmark = [pytest.mark.newest_line, pytest.mark.slow]
PICTURES = Path(__file__).parents[2] / "build" / "pictures"


def test_scores_are_those_of_attribute(page: Any, pocket: Any) -> None:
    for scope in ("log_prob", "temperature", "entropy"):
        found, expected = explained(page, scope=scope), js.attribute(pocket, PROMPT, scope)
        assert list(found.values()) == pytest.approx(expected.scores.tolist(), rel=1e-4, abs=1e-7)
    tokens = page.locator(".column").first.get_by_test_id("token")
    assert [token.inner_text() for token in tokens.all()] == expected.str_tokens
    label = tokens.nth(10).get_attribute("aria-label")
    assert label.startswith("columbia, position 10, ")
    assert "nat per unit of x; rank " in label
    assert page.locator("#warnings p").count() == len(expected.warnings)


def test_target_and_baseline_are_chosen_by_clicking_bars(page: Any, pocket: Any) -> None:
    explained(page)
    bars = page.get_by_test_id("next-token")
    assert bars.first.get_attribute("data-token") == str(js.attribute(pocket, PROMPT).prediction.top[0].token)
    page.get_by_role("button", name="explain the target against conservative").click()
    page.locator("#headline", has_text='against " conservative"').wait_for()
    assert page.get_by_test_id("baseline").input_value() == " conservative"
    expected = js.attribute(pocket, PROMPT, "contrastive", target=" liberal", baseline=" conservative")
    assert list(scores(page).values()) == pytest.approx(expected.scores.tolist(), rel=1e-4, abs=1e-7)


def test_by_keyboard_alone(page: Any) -> None:
    page.get_by_test_id("prompt").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type(PROMPT)
    page.keyboard.press("Control+Enter")
    page.get_by_test_id("token").first.wait_for()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.testid") == "token":
            break
    assert page.evaluate("document.activeElement.dataset.pos") == "16"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.pos") == "1"
    page.keyboard.press("Enter")
    assert page.locator("#token-said").inner_text().startswith("tom, position 1, ")
    bar = page.get_by_test_id("next-token").nth(1)
    bar.focus()
    token = bar.get_attribute("data-token")
    page.keyboard.press("Enter")
    page.locator("#headline", has_text='of " conservative"').wait_for()
    assert page.get_by_test_id("target").input_value() == " conservative"
    assert page.evaluate("document.activeElement.dataset.token") == token  # redrawn, and still there
    page.get_by_test_id("layers").focus()
    page.keyboard.press("Enter")
    page.locator(".map td[title]").first.wait_for()
    page.locator(".map td[title]").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#layer").input_value() == "1"


def test_what_is_claimed_can_be_tested(page: Any, explorer: Launched) -> None:
    explained(page)
    page.locator(".column").first.get_by_test_id("token").nth(10).click()
    page.get_by_test_id("ablate").click()
    said = page.locator("#measured p").first
    said.wait_for()
    _, found, _ = explorer.ask("/api/ablate", {"prompt": PROMPT, "token": 10, "target": " liberal"})
    shown = float(said.inner_text().partition("KL divergence ")[2].partition(" nat")[0])
    assert shown == pytest.approx(found["kl"], rel=1e-3)
    assert "Fisher information predicts" in said.inner_text()


def test_columns_side_by_side(page: Any) -> None:
    explained(page)
    assert page.locator(".column").count() == 2  # a random direction is there by default
    page.get_by_test_id("compare-add").click()
    explained(page, scope="fisher")
    names = [heading.inner_text() for heading in page.locator(".column h3").all()]
    assert names == ["fisher", 'log_prob of " liberal"', "random direction (control)"]
    said = [column.inner_text() for column in page.locator(".column").all()]
    assert all("rank correlation with the first column 0." in text for text in said[1:])
    page.get_by_role("button", name="Remove").click()
    assert page.locator(".column").count() == 2


def test_a_link_gives_the_same_numbers_in_another_tab(page: Any, explorer: Launched) -> None:
    found = explained(page, scope="semantic")
    other = page.context.new_page()
    other.goto(f"{explorer.base}/{page.get_by_test_id('permalink').get_attribute('href')}")
    other.get_by_test_id("token").first.wait_for()
    assert scores(other) == found
    assert other.get_by_test_id("prompt").input_value() == PROMPT
    wrong = {
        "prompt": 5,
        "messages": "x",
        "tokens": {"a": 1},
        "options": [],
        "layer": "first",
        "position": None,
        "target": {},
        "more": 1,
    }
    cuts = (
        "{",
        "null",
        "x" * 50,
        '{"scope": "nothing"}',
        json.dumps(wrong),
        '{"messages": [3, null]}',
        '{"tokens": ["a"]}',
    )
    for cut in (f"#{quote(text)}" for text in cuts):
        other.goto("about:blank")
        other.goto(explorer.url + cut)
        other.get_by_test_id("next-token").first.wait_for()


def test_an_answer_is_clicked(page: Any, pocket: Any) -> None:
    explained(page)
    page.locator("#answer").fill(" liberal .")
    page.get_by_test_id("continue").click()
    tokens = page.get_by_test_id("answer-token")
    tokens.first.wait_for()
    expected = js.attribute_text(pocket, PROMPT, " liberal .", by="word")
    tokens.nth(1).click()
    shown = [float(source.get_attribute("data-score")) for source in page.get_by_test_id("source").all()]
    kept = [j for j, source in enumerate(expected.sources) if not expected.hidden(source)]
    assert shown == pytest.approx(expected.scores[1, kept].tolist(), rel=1e-4, abs=1e-9)
    tokens.nth(0).click()
    tokens.nth(1).click(modifiers=["Shift"])
    page.locator("#answer-said", has_text='" liberal ."').wait_for()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#answer-said").inner_text().startswith('" liberal": ')
    page.keyboard.press("ArrowRight")
    assert page.locator("#answer-said").inner_text().startswith('" .": ')


def test_layers_and_heads(page: Any, pocket: Any) -> None:
    explained(page)
    page.get_by_test_id("layers").click()
    page.locator(".map td[title]").first.wait_for()
    assert page.locator(".map td[title]").count() == 4 * 17
    layers = js.attribute(pocket, PROMPT, "log_prob", at="resid_pre")
    for row, of_layer in zip(
        page.locator(".map tbody tr").all(), layers.scores[:, 1:], strict=True
    ):  # BOS has no part in it
        darkest = row.locator("td").nth(1 + int(of_layer.argmax())).evaluate("e => e.style.backgroundColor")
        assert darkest == "rgb(191, 84, 0)"
        assert row.locator("th").inner_text().endswith(f", to {float(of_layer.max()):.4g}")
    page.get_by_test_id("heads").click()
    page.locator("#map-said", has_text="ablating each head").wait_for()
    assert page.locator(".map td[title]").count() == 16
    page.locator(".map td[title]").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#map-said").inner_text().startswith("blocks.1.attn.hook_z head 0: ")


def test_errors_are_sentences(page: Any) -> None:
    for prompt, says in (("", "empty"), ("the " * 600, "takes at most 512")):
        page.get_by_test_id("prompt").fill(prompt)
        page.get_by_test_id("explain").click()
        page.get_by_test_id("error").filter(has_text=says).wait_for()
    explained(page)
    assert page.get_by_test_id("error").inner_text() == ""


def test_hostile_text_is_text(page: Any) -> None:
    """Prompt, target and link carry what would be HTML and script elsewhere."""
    hostile = "<img src=x onerror=alert(1)> <script>alert(2)</script> <bos> the keys"
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    found = explained(page, hostile)
    assert len(found) > 4
    assert page.locator("main img, main script").count() == 0
    page.get_by_test_id("target").fill("<b>x</b>")
    page.get_by_test_id("explain").click()
    page.get_by_test_id("error").filter(has_text="<b>x</b>").wait_for()
    assert page.locator("#error b").count() == 0


def test_cancelling_a_long_fisher(page: Any) -> None:
    long = " ".join(["the keys to the cabinet near the doors are old ."] * 30)
    page.route("**/api/explain", lambda route: route.continue_(post_data=_long(route.request.post_data)))
    page.get_by_test_id("prompt").fill(long)
    page.get_by_test_id("scope").select_option("fisher")
    page.get_by_test_id("explain").click()
    page.get_by_test_id("status").filter(has_text="backward passes: ").wait_for()
    page.get_by_test_id("cancel").click()
    page.get_by_test_id("status").filter(has_text="cancelled").wait_for(timeout=60_000)
    page.unroute("**/api/explain")
    assert explained(page)


def _long(body: str) -> str:
    given = json.loads(body)
    return json.dumps({**given, "options": {"method": "sampled", "probes": 100_000}})


def test_phone_and_dark(page: Any) -> None:
    explained(page)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for width, dark in ((1200, False), (1200, True), (375, False), (375, True)):
        page.set_viewport_size({"width": width, "height": 800})
        page.locator("#dark").set_checked(dark)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=PICTURES / f"explorer-{width}-{'dark' if dark else 'light'}.png", full_page=True)


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < 150_000
