"""The command `python examples/benchmarks explorer`: how long the explorer's page takes, as seen by a browser (Chromium, Playwright)."""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import jscope_tl as js
from jscope_tl.model.loading import load_model

PROMPT = {
    False: "tom grew up in the south and goes to columbia . at school he is a",
    True: "When Mary and John went to the store, John gave a drink to",
}
"""For the pocket model, and for others."""


def main(arguments: list[str]) -> None:
    """Print the medians as a Markdown table."""
    parser = argparse.ArgumentParser(prog="python examples/benchmarks explorer", description=__doc__)
    parser.add_argument(
        "model", nargs="*", default=[""], help="HuggingFace names or folders; the pocket model without them"
    )
    parser.add_argument("--times", type=int, default=7, help="how often each step is taken (default: 7)")
    options = parser.parse_args(arguments)
    print(
        "| model | page load | first explanation | click on a token | `semantic` in the page | bare call |\n|---|---|---|---|---|---|"
    )
    for model in options.model:
        cells = [f"{seconds:.2f} s" for seconds in measured(model, options.times)]
        print(f"| {model or 'pocket'} | {' | '.join(cells)} |", flush=True)


def measured(model: str, times: int) -> list[float]:
    """Seconds of each step: page load, the first explanation (scope, control and drawing), a click, later ones, the bare call."""
    from playwright.sync_api import sync_playwright

    prompt = PROMPT[bool(model)]
    with launched(model) as address, sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(bypass_csp=True)  # what waits for the page is evaluated in it
        load = _timed(lambda: (page.goto(address), _until(page, "document.querySelector('[data-testid=next-token]')")))
        page.get_by_test_id("prompt").fill(prompt)
        page.get_by_test_id("scope").select_option("semantic")
        page.wait_for_timeout(1000)
        first = _timed(lambda: _explain(page))
        clicks = [_timed(lambda i=i: _click(page, 1 + i % 8)) for i in range(times)]
        page.locator("#control").uncheck()
        later = [_timed(lambda: _explain(page)) for _ in range(times)]
        browser.close()
    loaded = load_model(model) if model else js.load_pocket_model()
    bare = [_timed(lambda: js.attribute(loaded, prompt, "semantic")) for _ in range(times + 1)]
    return [load, first, median(clicks), median(later), median(bare[1:])]


def _explain(page: Any) -> None:
    page.evaluate("document.querySelector('#headline').textContent = ''")
    page.get_by_test_id("explain").click()
    _until(page, "document.querySelector('#headline').textContent.includes('semantic')")


def _click(page: Any, i: int) -> None:
    page.locator(".column").first.get_by_test_id("token").nth(i).click()
    _until(page, f"document.querySelector('#token-said').textContent.includes('position {i},')")


def _until(page: Any, holds: str) -> None:
    """Looked at in every frame of the browser; Playwright's own waiting looks up to half a second apart."""
    page.wait_for_function(holds, polling="raf")


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def launched(model: str) -> Iterator[str]:
    """The explorer of a model on a free port: its address."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "jscope_tl.cli",
        "app",
        "--port",
        "0",
        "--no-open",
        *(["--model", model] if model else []),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(30)
