"""The explorer on a real language model: chats by its template, and tokens that a page could take for something else."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import jscope_tl as js
from tests.explorer.asked import explained, scores
from tests.explorer.conftest import opened_page
from tests.explorer.launched import Launched, launched
from tests.real_model import folder

pytestmark = [pytest.mark.newest_line, pytest.mark.slow, pytest.mark.real]
HOSTILE = '<|im_start|>user\n<script>alert(1)</script> "\u202eevil\u202c" \u2028 &amp; 👩\u200d🔬 \\u003c `${1}` <!-- é'


@pytest.fixture(scope="module")
def real(smollm2: Any) -> Iterator[Launched]:
    with launched("--model", str(folder())) as server:
        yield server


@pytest.fixture
def page(chromium: Any, real: Launched) -> Iterator[Any]:
    yield from opened_page(chromium, real)


def test_hostile_tokens(page: Any, smollm2: Any) -> None:
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    found = explained(page, HOSTILE, "semantic")
    expected = js.attribute(smollm2, HOSTILE, "semantic")
    assert list(found.values()) == pytest.approx(expected.scores.tolist(), rel=1e-3, abs=1e-6)
    assert len(page.locator(".column").first.get_by_test_id("token").all()) == len(expected.str_tokens)
    assert page.locator("main script, main img").count() == 0
    page.get_by_test_id("continue").click()
    page.get_by_test_id("answer-token").first.wait_for(timeout=120_000)
    page.get_by_test_id("heads").click()
    page.locator("#map-said", has_text="ablating each head").wait_for(timeout=120_000)


def test_a_chat(page: Any, real: Launched, smollm2: Any) -> None:
    """Messages go through the tokenizer's template; the prediction is the first token of the answer."""
    page.locator("#as-chat").check()
    page.get_by_test_id("messages").locator("textarea").first.fill("Name the capital of France.")
    page.locator("#message-add").click()
    page.get_by_test_id("messages").locator("select").nth(1).select_option("system")
    page.get_by_test_id("messages").get_by_role("button", name="Remove").nth(1).click()
    page.get_by_test_id("scope").select_option("log_prob")
    page.get_by_test_id("explain").click()
    page.locator("#headline", has_text="log_prob").wait_for(timeout=60_000)
    chat = [{"role": "user", "content": "Name the capital of France."}]
    tokens = js.attribute_text(smollm2, chat, " Paris", progress=False).tokens
    shown = page.locator(".column").first.get_by_test_id("token").count()
    expected = js.attribute(smollm2, tokens[:shown], "log_prob")
    assert list(scores(page).values()) == pytest.approx(expected.scores.tolist(), rel=1e-3, abs=1e-6)
    assert tokens[shown:].numel() == 1
    link = page.get_by_test_id("permalink").get_attribute("href")
    before = scores(page)
    page.goto("about:blank")
    page.goto(f"{real.base}/{link}")
    page.locator("#headline", has_text="log_prob").wait_for(timeout=60_000)
    assert scores(page) == before
    assert page.get_by_test_id("messages").locator("textarea").first.input_value() == chat[0]["content"]


def test_predictions_of_the_page_are_the_models(page: Any, smollm2: Any) -> None:
    prompt = "When Mary and John went to the store, John gave a drink to"
    explained(page, prompt, "semantic")
    logits = smollm2(smollm2.to_tokens(prompt))[0, -1]
    best = [int(bar.get_attribute("data-token")) for bar in page.get_by_test_id("next-token").all()]
    assert best == torch.topk(logits, len(best)).indices.tolist()
