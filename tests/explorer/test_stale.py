"""What the page shows belongs to what it says: nothing is kept from another token, prompt or pick."""

from typing import Any

import pytest

import jscope_tl as js
from tests.explorer.asked import PROMPT, explained, scores

pytestmark = [pytest.mark.newest_line, pytest.mark.slow]
OTHER = "the keys to the cabinet near the doors"


def test_a_measurement_is_of_the_token_in_the_heading(page: Any) -> None:
    explained(page)
    page.get_by_test_id("token").nth(3).click()
    page.get_by_test_id("ablate").click()
    page.locator("#measured p").first.wait_for()
    page.get_by_test_id("token").nth(3).focus()
    assert page.locator("#measured p").count()
    page.keyboard.press("ArrowRight")
    assert "position 4" in page.locator("#token-said").inner_text()
    assert not page.locator("#measured p").count()


def test_the_permalink_is_of_the_result(page: Any) -> None:
    """Typing on changes the prompt, not what is shown."""
    explained(page)
    before = page.get_by_test_id("permalink").get_attribute("href")
    page.get_by_test_id("prompt").fill(OTHER)
    page.locator("#count", has_text=f"{len(OTHER.split()) + 1} tokens").wait_for()
    page.locator("#log").click()
    assert page.get_by_test_id("permalink").get_attribute("href") == before


def test_a_position_is_explained_in_its_own_prompt(page: Any, pocket: Any) -> None:
    explained(page)
    page.get_by_test_id("prompt").fill(OTHER)
    page.get_by_test_id("token").nth(5).click()
    page.locator("#explain-here").click()
    page.locator("#headline", has_text="at position 5").wait_for()
    expected = js.attribute(pocket, PROMPT, "log_prob", position=5)
    assert page.get_by_test_id("prompt").input_value() == PROMPT
    assert [scores(page)[i] for i in range(6)] == pytest.approx(expected.scores[:6].tolist(), rel=1e-3)


def test_an_example_keeps_the_scope_that_was_picked(page: Any) -> None:
    page.get_by_test_id("scope").select_option("temperature")
    page.locator("#examples").select_option("1")
    assert page.get_by_test_id("scope").input_value() == "temperature"


def test_columns_of_two_positions_are_correlated_where_both_have_scores(page: Any, pocket: Any) -> None:
    """Tokens after the earlier position have no score in it: they are no ties at 0."""
    from scipy.stats import spearmanr

    explained(page)
    page.get_by_test_id("token").nth(8).click()
    page.get_by_test_id("compare-add").click()
    page.locator("#explain-here").click()
    page.locator("#headline", has_text="at position 8").wait_for()
    page.get_by_test_id("compare-add").click()
    explained(page, PROMPT, "entropy")
    early = js.attribute(pocket, PROMPT, "log_prob", position=8)
    late = js.attribute(pocket, PROMPT, "entropy")
    kept = [i for i in range(9) if i not in {*early.off_scale, *late.off_scale}]
    shown = page.locator(".column p.quiet").all_inner_texts()
    expected = spearmanr(early.scores[kept], late.scores[kept]).statistic
    assert any(f"{expected:.2f}" in text for text in shown), (shown, expected)


def test_jobs_are_named_without_a_secure_context(page: Any) -> None:
    """Over HTTP to another machine browsers have no `crypto.randomUUID`."""
    page.evaluate("() => { crypto.randomUUID = undefined; }")
    assert explained(page)
