"""What the page shows belongs to what it says: nothing is kept from another token, prompt or pick."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import jscope_tl as js
from tests.corpus.written import attributed
from tests.explorer.asked import PROMPT, explained, scores
from tests.explorer.launched import Launched, launched

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


def test_an_earlier_position_where_bos_scores_highest(page: Any, pocket: Any, explorer: Launched) -> None:
    """Ranks and shares are those of lists, which leave BOS out; a measurement is of the position that is explained."""
    prompt = "yesterday the boxes from the doors near the farm"
    explained(page, prompt)
    page.get_by_test_id("token").nth(6).click()
    page.locator("#explain-here").click()
    page.locator("#headline", has_text="position 6").wait_for()
    result = js.attribute(pocket, prompt, "log_prob", position=6)
    assert result.scores.argmax() == 0
    for rank, token in enumerate(result.top(4), 1):
        page.get_by_test_id("token").nth(token.position).click()
        share = round(100 * token.score / result.top(1)[0].score)
        assert f"; rank {rank}; {share}% of the largest" in page.locator("#token-said").inner_text()
    rows = page.locator(".column").first.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert rows == [str(token.position) for token in result.top(5)]
    page.locator("#log").click()
    background = "button => getComputedStyle(button).backgroundColor"
    colours = [page.get_by_test_id("token").nth(t).evaluate(background) for t in range(1, 7)]
    assert colours.count(colours[result.top(1)[0].position - 1]) == 1
    page.get_by_test_id("ablate").click()
    said = page.locator("#measured p").first
    said.wait_for()
    given = {"prompt": prompt, "token": token.position, "position": 6, "target": result.prediction.target.str_token}
    measured = explorer.ask("/api/ablate", given)[1]["kl"]
    assert float(said.inner_text().partition("KL divergence ")[2].partition(" nat")[0]) == pytest.approx(
        measured, rel=1e-3
    )


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


def test_a_link_is_followed_in_the_page_that_is_open(page: Any, pocket: Any) -> None:
    """Pasted over the address, or gone back to."""
    first = explained(page)
    explained(page, OTHER, "entropy")
    page.go_back()
    page.locator("#headline", has_text="log_prob").wait_for()
    assert page.get_by_test_id("prompt").input_value() == PROMPT
    assert scores(page) == first
    page.go_forward()
    page.locator("#headline", has_text="entropy").wait_for()
    assert page.get_by_test_id("prompt").input_value() == OTHER


def test_tokens_after_the_position_have_no_score(page: Any) -> None:
    explained(page)
    page.get_by_test_id("compare-add").click()
    page.get_by_test_id("token").nth(5).click()
    page.locator("#explain-here").click()
    page.locator("#headline", has_text="at position 5").wait_for()
    assert page.evaluate("document.activeElement.dataset.pos") == "5"  # where the keyboard goes on
    token = page.locator(".column").first.get_by_test_id("token").nth(9)
    assert token.get_attribute("aria-label") == "to, position 9, after the explained position 5: no influence on it"
    page.get_by_test_id("compare-add").click()
    page.locator("#examples").select_option("0")
    explained(page, PROMPT, "entropy")
    page.locator("#aligned").check()
    heads = page.locator(".aligned thead th").all_inner_texts()
    early = next(i for i, text in enumerate(heads) if ", at position 5 (" in text)
    cells = [row.locator("td").nth(early).inner_text() for row in page.locator(".aligned tbody tr").all()[:17]]
    assert all(cells[:6])
    assert not any(cells[6:])


def test_columns_are_told_apart(page: Any) -> None:
    """By options, layer and position, where the scope is the same."""
    explained(page, scope="fisher")
    page.get_by_test_id("compare-add").click()
    page.locator("#layer").fill("3")
    explained(page, scope="fisher")
    page.get_by_test_id("compare-add").click()
    page.locator("#layer").fill("0")
    page.locator("#more-options summary").click()
    page.locator("#options input[name=method]").fill("low_rank")
    page.locator("#options input[name=rank]").fill("2")
    explained(page, scope="fisher")
    assert [name.inner_text() for name in page.locator(".column h3").all()] == [
        "fisher, method low_rank, rank 2", "fisher", "fisher, blocks.2.hook_resid_post", "random direction (control)",
    ]  # fmt: skip
    page.get_by_role("button", name="Remove").first.click()
    assert page.evaluate("document.activeElement.id") == "compare-add"


def test_answers_and_maps_say_what_they_are_of(page: Any, pocket: Any) -> None:
    """They stay when another prompt is explained."""
    page.get_by_test_id("scope").select_option("fisher")
    page.locator("#more-options summary").click()
    page.locator("#options input[name=method]").fill("low_rank")
    page.locator("#options input[name=rank]").fill("1")
    explained(page, OTHER, "fisher")
    page.locator("#answer").fill(" are old")
    page.get_by_test_id("continue").click()
    page.get_by_test_id("answer-token").first.wait_for()
    shown = [float(source.get_attribute("data-score")) for source in page.get_by_test_id("source").all()]
    expected = js.attribute_text(pocket, OTHER, " are old", scope="fisher", method="low_rank", rank=1, by="word")
    kept = [j for j, source in enumerate(expected.sources) if not expected.hidden(source)]
    assert shown == pytest.approx(expected.scores[0, kept].tolist(), rel=1e-3, abs=1e-9)
    page.get_by_test_id("heads").click()
    page.locator("#map-said", has_text="ablating each head").wait_for()
    explained(page, PROMPT, "entropy")
    for place in ("#answer-of", "#map-of"):
        assert page.locator(place).inner_text().rstrip(":") == f'fisher, after "<bos> {OTHER}"'
    page.get_by_test_id("layers").click()
    page.locator("#map-of", has_text="entropy, after ").wait_for()
    page.get_by_test_id("scope").select_option("contrastive")  # of an answer, whose tokens are the targets
    page.locator("#answer").fill(" liberal")
    page.get_by_test_id("continue").click()
    page.locator("#answer-of", has_text="log_prob, after ").wait_for()


def test_rows_of_the_run_that_is_shown(page: Any, pocket: Any, tmp_path: Path) -> None:
    """Turning a page is no way to another run."""
    run = attributed(tmp_path / "run", pocket, [prompt.text for prompt in js.pocket_prompts("agreement", 60)])
    page.get_by_test_id("run-folder").fill(str(run))
    page.get_by_test_id("run-open").click()
    page.get_by_test_id("run-row").first.wait_for()
    page.get_by_test_id("run-folder").fill("/no/such/run")
    page.get_by_role("button", name="Later rows").focus()
    page.keyboard.press("Enter")
    page.locator("#run-said", has_text="rows 51 to").wait_for()
    assert page.evaluate("document.activeElement.closest('#run-rows') !== null")


def test_typing_keeps_nobody_waiting(page: Any, explorer: Launched) -> None:
    """What was asked of a text that is typed on is given up: the queue holds one question of the page, not ten."""
    prompt, how = " ".join([OTHER] * 12), {"method": "sampled", "probes": 100_000}
    long = {"prompt": prompt, "scope": "fisher", "options": how, "job": "typing"}
    thread = threading.Thread(target=lambda: explorer.ask("/api/explain", long))
    thread.start()
    for n in range(2, 14):
        page.get_by_test_id("prompt").fill(" ".join(["keys"] * n))
        page.wait_for_timeout(400)
    explorer.ask("/api/cancel", {"job": "typing"})
    thread.join(60)
    page.locator("#count", has_text="14 tokens").wait_for()


def test_a_server_that_is_gone(chromium: Any) -> None:
    with launched() as server:
        page = chromium.new_context().new_page()
        page.goto(server.url)
        page.get_by_test_id("next-token").first.wait_for()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
    page.get_by_test_id("explain").click()
    page.get_by_test_id("error").filter(has_text="The server does not answer. Is jscope app still running?").wait_for()
    page.context.close()
