"""What a user does on the page."""

from typing import Any

PROMPT = "tom grew up in the south and goes to columbia . at school he is a"


def explained(page: Any, prompt: str = PROMPT, scope: str = "log_prob") -> dict[int, float]:
    """Scores by position, as the tokens carry them."""
    page.get_by_test_id("prompt").fill(prompt)
    page.get_by_test_id("scope").select_option(scope)
    page.get_by_test_id("explain").click()
    page.locator("[data-testid=cancel]:disabled").wait_for()  # what was there before may be of the same scope
    page.locator("#headline", has_text=scope).wait_for()
    return scores(page)


def scores(page: Any) -> dict[int, float]:
    tokens = page.locator(".column").first.get_by_test_id("token")
    return {int(token.get_attribute("data-pos")): float(token.get_attribute("data-score")) for token in tokens.all()}
