"""`js.app`: the explorer in the frame of a notebook, and what stands there where it cannot be reached."""

import inspect
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from tests.explorer.asked import PROMPT, scores

pytestmark = pytest.mark.newest_line
app = inspect.unwrap(js.app)


@pytest.fixture
def explorer(pocket: Any) -> Iterator[js.Explorer]:
    running = js.app(pocket, PROMPT, scope="entropy")
    yield running
    running.close()


def test_it_answers_and_ends(explorer: js.Explorer, pocket: Any) -> None:
    before = js.attribute(pocket, PROMPT, "entropy").scores
    with urllib.request.urlopen(explorer.url, timeout=30) as found:
        policy = found.headers["content-security-policy"]
    assert "frame-ancestors 'self' http://localhost:*" in policy
    assert "unsafe" not in policy
    explorer.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(explorer.url, timeout=30)
    assert torch.equal(js.attribute(pocket, PROMPT, "entropy").scores, before)


def test_bad_input(pocket: Any) -> None:
    with pytest.raises(js.InputError, match="port must be a number"):
        app(pocket, port=-1)
    with pytest.raises(js.InputError, match="height"):
        app(pocket, height=0)
    with pytest.raises(js.InputError, match="prompt must be a text"):
        app(pocket, 3)
    with pytest.raises(js.InputError, match="There is no scope"):
        app(pocket, PROMPT, scope="nothing")


@pytest.mark.slow
def test_shown_in_a_notebook(explorer: js.Explorer, pocket: Any, chromium: Any, tmp_path: Path) -> None:
    """A frame of the live page; and where the server is gone, the explanation that was made at the start."""
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><meta charset=utf-8>{explorer._repr_html_()}", encoding="utf-8")
    expected = js.attribute(pocket, PROMPT, "entropy").scores.tolist()
    context = chromium.new_context()
    with served(tmp_path) as address:
        page = context.new_page()
        page.goto(address)
        page.frames[1].wait_for_url(lambda url: url.startswith(explorer.url))
        frame = page.frames[1]
        frame.get_by_test_id("token").first.wait_for()
        frame.get_by_test_id("edges").click()
        frame.frame_locator("iframe.view").locator("canvas").first.wait_for()  # a page of localhost holds it as well
        frame.locator("[data-copy=python]").click()
        frame.get_by_test_id("status").filter(has_text="copied").wait_for()
        explorer.close()
        page.goto(address)
        frame = page.frames[1]
        frame.get_by_test_id("token").first.wait_for()
        assert frame.url == "about:srcdoc"
        assert list(scores(frame).values()) == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert not frame.get_by_test_id("explain").is_visible()
    context.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The page of a notebook, from a server of this machine, as Jupyter is one."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}/notebook.html"
        server.shutdown()
