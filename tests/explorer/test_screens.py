"""Edges and patterns, series, tables, known causes, what is saved, runs of many prompts."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jscope_tl as js
from jscope_tl.explorer.server import MOST_VIEWS
from tests.corpus.written import attributed
from tests.explorer.asked import PROMPT, explained, scores
from tests.explorer.launched import Launched

pytestmark = [pytest.mark.newest_line, pytest.mark.slow]


def saved(page: Any, kind: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.locator(f"[data-save={kind}]").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_edges_beside_attention_patterns(page: Any, pocket: Any) -> None:
    """circuitsvis draws them in a frame of its own, where no script reaches the page or the server."""
    explained(page, scope="fisher")
    page.get_by_test_id("edges").click()
    frame = page.frame_locator("iframe.view")
    frame.locator("canvas").first.wait_for()
    assert page.locator("iframe.view").get_attribute("sandbox") == "allow-scripts"
    best = js.patching.components(pocket, PROMPT, "fisher", of="edges", progress=False).top(1)[0]
    assert best.name in frame.locator("body").inner_text()
    assert best.name in page.locator("#frame p").inner_text()


def test_views_are_found_by_their_address_alone(explorer: Launched) -> None:
    _, found, _ = explorer.ask("/api/edges", {"prompt": "the keys to the cabinet"})
    status, body, headers = explorer.ask(f"/{found['view']}")
    assert status == 200
    assert "CircuitsVis.render" in body
    assert "sandbox allow-scripts" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert explorer.ask("/views/other")[0] == 404
    for _ in range(MOST_VIEWS):
        explorer.ask("/api/edges", {"prompt": "the keys to"})
    assert explorer.ask(f"/{found['view']}")[0] == 404  # forgotten


def test_a_number_series_is_a_line_with_bars(page: Any, pocket: Any) -> None:
    prompt = "29 , 35 , 41 , 47 , 53 , 59 , 53 , 47 ,"
    explained(page, prompt, "temperature")
    bars = page.locator("#series rect.influence title")
    result = js.attribute(pocket, prompt, "temperature")
    numbers = [i for i, text in enumerate(result.str_tokens) if text.strip().isdecimal()]
    shown = [float(text.rpartition(": ")[2].split()[0]) for text in bars.all_text_contents()]
    assert shown == pytest.approx(result.scores[numbers].tolist(), rel=1e-3)
    heights = [float(bar.get_attribute("height")) for bar in page.locator("#series rect.influence").all()]
    assert np.divide(heights, max(heights)) == pytest.approx(np.divide(shown, max(shown)), abs=1e-3)
    explained(page)
    assert not page.locator("#series").is_visible()


def test_columns_as_one_table(page: Any) -> None:
    explained(page)
    page.get_by_test_id("compare-add").click()
    explained(page, scope="entropy")
    page.locator("#aligned").check()
    head = page.locator(".aligned thead th").all_inner_texts()
    assert [name.partition(" (")[0] for name in head] == [
        "position", "token", "entropy", 'log_prob of " liberal"', "random direction",
    ]  # fmt: skip
    assert page.locator(".aligned tbody tr").count() == 17 + 1
    page.locator("#control").uncheck()
    explained(page, scope="temperature")
    assert page.locator(".aligned thead th").count() == 4


def test_options_of_a_scope(page: Any, pocket: Any) -> None:
    page.get_by_test_id("scope").select_option("fisher")
    page.locator("#more-options summary").click()
    page.locator("#options input[name=method]").fill("low_rank")
    page.locator("#options input[name=rank]").fill("3")
    found = explained(page, scope="fisher")
    expected = js.attribute(pocket, PROMPT, "fisher", method="low_rank", rank=3)
    assert list(found.values()) == pytest.approx(expected.scores.tolist(), rel=1e-3, abs=1e-7)
    page.locator("#options input[name=rank]").fill("many")
    page.get_by_test_id("explain").click()
    page.get_by_test_id("error").filter(has_text="rank").wait_for()


def test_the_known_cause_of_an_example(page: Any) -> None:
    page.locator("#examples").select_option("1")  # politics
    page.get_by_test_id("explain").click()
    tokens = page.locator(".column").first.get_by_test_id("token")
    tokens.first.wait_for()
    cause = js.pocket_prompts("politics", 1)[0]
    place = cause.causes[0]
    tokens.nth(place).click()
    found = scores(page)
    rank = 1 + sum(score > found[place] for at, score in found.items() if at > 0)  # BOS is left out, as in lists
    said = page.locator("#cause").inner_text()
    assert (
        said
        == f'Known cause of this prompt, by construction: " {cause.text.split()[place - 1]}" at {place}, ranked {rank} of {len(scores(page))}.'
    )


def test_what_is_saved(page: Any, pocket: Any, chromium: Any, tmp_path: Path) -> None:
    found = explained(page)
    page.get_by_test_id("compare-add").click()
    explained(page, scope="entropy")
    written = json.loads(saved(page, "json", tmp_path).read_text())
    assert written["scope"] == "entropy"
    assert written.keys() == {*js.attribute(pocket, PROMPT, "entropy").__dataclass_fields__}
    picture = np.asarray(Image.open(io.BytesIO(saved(page, "png", tmp_path).read_bytes())).convert("RGB"))
    assert picture.shape[1] == 1800
    assert (picture != 255).any(-1).mean() > 0.02
    offline = chromium.new_context(offline=True).new_page()
    offline.goto(f"file://{saved(page, 'html', tmp_path)}")
    offline.locator("#results button", has_text="log_prob").click()
    assert scores(offline) == found
    offline.get_by_test_id("token").nth(10).click()
    assert offline.locator("#token-said").inner_text().startswith("columbia, position 10, ")
    assert not offline.get_by_test_id("ablate").is_visible()
    assert [name.inner_text() for name in offline.locator(".column h3").all()] == [
        'log_prob of " liberal"', "entropy", "random direction (control)",
    ]  # fmt: skip


def test_a_saved_page_holds_markup_as_text(page: Any, chromium: Any, tmp_path: Path) -> None:
    found = explained(page, "</script><script>window.ran = true</script> the keys <!-- <script>")
    offline = chromium.new_context(offline=True).new_page()
    offline.goto(f"file://{saved(page, 'html', tmp_path)}")
    assert scores(offline) == found
    assert offline.evaluate("window.ran") is None


def test_a_span_is_dragged(page: Any) -> None:
    explained(page)
    page.locator("#answer").fill(" liberal .")
    page.get_by_test_id("continue").click()
    tokens = page.get_by_test_id("answer-token")
    tokens.first.wait_for()
    tokens.nth(0).hover()
    page.mouse.down()
    tokens.nth(1).hover()
    page.mouse.up()
    page.locator("#answer-said", has_text='" liberal ."').wait_for()


def test_rows_of_a_run(page: Any, pocket: Any, tmp_path: Path) -> None:
    prompts = [prompt.text for prompt in js.pocket_prompts("agreement", 60)]
    run = attributed(tmp_path / "run", pocket, prompts)
    page.get_by_test_id("run-folder").fill(str(run))
    page.get_by_test_id("run-open").click()
    rows = page.get_by_test_id("run-row")
    rows.first.wait_for()
    assert rows.count() == 50
    page.get_by_role("button", name="Later rows").click()
    page.locator("#run-rows td", has_text="the prompt is empty").wait_for()
    page.get_by_test_id("run-contains").fill(prompts[7])
    page.get_by_test_id("run-open").click()
    page.locator("#run-said", has_text="rows 1 to 1.").wait_for()
    rows.first.click()
    page.locator("#headline", has_text="temperature").wait_for()
    expected = js.attribute(pocket, prompts[7], "temperature")
    assert list(scores(page).values()) == pytest.approx(expected.scores.tolist(), rel=1e-4)
    options = attributed(tmp_path / "options", pocket, prompts[:4], "fisher", method="exact")
    settings = json.loads((options / "run.json").read_text())
    told = {
        "options": {"method": "low_rank", "rank": 2, "reduction": "dot"},
        "at": "blocks.0.hook_resid_post",
        "gradient": "relp",
    }
    (options / "run.json").write_text(json.dumps({**settings, **told}))
    page.get_by_test_id("run-folder").fill(str(options))
    page.get_by_test_id("run-contains").fill("")
    page.get_by_test_id("run-open").click()
    page.locator("#run-said", has_text="A click explains a row without the run's reduction 'dot'.").wait_for()
    rows.first.click()
    page.locator("#headline", has_text="fisher").wait_for()
    again = js.attribute(
        pocket, prompts[0], "fisher", method="low_rank", rank=2, gradient="relp", at="blocks.0.hook_resid_post"
    )
    assert list(scores(page).values()) == pytest.approx(again.scores.tolist(), rel=1e-3, abs=1e-8)
    causes = tmp_path / "causes"
    js.corpus.run(pocket, prompts[:2], causes, "explain", baseline=" the", progress=False)
    page.get_by_test_id("run-folder").fill(str(causes))
    page.get_by_test_id("run-open").click()
    page.locator("#run-said", has_text="explain, gradient attnlrp").wait_for()
    note = "A click explains a row without the run's alternatives, where a prompt had its own baseline."
    assert page.locator("#run-said").inner_text().endswith(note)
    rows.first.click()
    page.locator("#headline", has_text="explain").wait_for()
    expected = js.explain(pocket, prompts[0], baseline=" the")
    assert list(scores(page).values()) == pytest.approx(expected.scores.tolist(), rel=1e-3, abs=1e-6)
    page.get_by_test_id("run-folder").fill("/no/such/run")
    page.get_by_test_id("run-open").click()
    page.get_by_test_id("error").filter(has_text="/no/such/run").wait_for()


def test_copied_as_python_and_as_a_command(page: Any, pocket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_test_id("scope").select_option("fisher")
    page.locator("#more-options summary").click()
    for name, value in (("method", "low_rank"), ("rank", "3")):
        page.locator(f"#options input[name={name}]").fill(value)
    found = explained(page, scope="fisher")
    texts = []
    for kind in ("python", "command"):
        page.locator(f"[data-copy={kind}]").click()
        page.get_by_test_id("status").filter(has_text="copied").wait_for()
        texts.append(page.evaluate("navigator.clipboard.readText()"))
    result = eval(texts[0], {"js": js, "model": pocket})
    assert result.scores.tolist() == pytest.approx(list(found.values()), rel=1e-4, abs=1e-7)
    import shlex

    from jscope_tl.cli.command import main

    assert main([*shlex.split(texts[1])[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == pytest.approx(list(found.values()), rel=1e-4, abs=1e-7)


def test_causes_stand_beside_the_scopes(page: Any, pocket: Any) -> None:
    page.get_by_test_id("scope").select_option("explain")
    page.get_by_test_id("target").fill(" liberal")
    page.get_by_test_id("baseline").fill(" conservative")
    found = explained(page, scope="explain")
    expected = js.explain(pocket, PROMPT, " liberal", " conservative")
    assert list(found.values()) == pytest.approx(expected.scores.tolist(), rel=1e-3, abs=1e-7)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-copy=python]").click()
    page.get_by_test_id("status").filter(has_text="copied").wait_for()
    copied = eval(page.evaluate("navigator.clipboard.readText()"), {"js": js, "model": pocket})
    assert copied.scores.tolist() == pytest.approx(expected.scores.tolist())
    page.get_by_test_id("heads").click()
    page.locator("#map-said", has_text="measured").wait_for()
    assert page.locator("#layer").is_disabled()
    page.get_by_test_id("layers").click()
    page.locator("#map-said", has_text="Each layer has its own scale").wait_for()
    assert page.locator("#map-of").inner_text().startswith("contrastive, after")
    assert page.locator(".map td[title]").count() == 4 * 17


@pytest.mark.parametrize("dark", [False, True])
def test_accessible(chromium: Any, explorer: Launched, dark: bool) -> None:
    """axe-core finds nothing serious on any screen."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    scheme = "dark" if dark else "light"
    context = chromium.new_context(
        bypass_csp=True, color_scheme=scheme, reduced_motion="reduce", viewport={"width": 1200, "height": 900}
    )
    page = context.new_page()
    page.goto(explorer.url)
    explained(page)
    assert page.locator("#dark").is_checked() == dark
    page.get_by_test_id("compare-add").click()
    explained(page, "29 , 35 , 41 , 47 , 53 ,", "temperature")
    assert page.locator(".column").first.get_by_test_id("token").first.evaluate(
        "e => getComputedStyle(e).transitionDuration"
    ) == "0s"  # fmt: skip
    page.locator("#aligned").check()
    page.locator("#aligned").uncheck()
    page.locator(".column").first.get_by_test_id("token").nth(2).click()
    page.get_by_test_id("ablate").click()
    page.locator("#measured p").first.wait_for()
    page.get_by_test_id("continue").click()
    page.get_by_test_id("answer-token").first.wait_for()
    page.get_by_test_id("layers").click()
    page.locator(".map td[title]").first.wait_for()
    found = axe.Axe().run(page).response["violations"]
    assert [
        (one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")
    ] == []
    context.close()
