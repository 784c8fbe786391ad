from collections.abc import Iterator
from typing import Any

import pytest

from tests.explorer.launched import Launched, launched


@pytest.fixture(scope="session")
def explorer() -> Iterator[Launched]:
    with launched() as server:
        yield server


@pytest.fixture
def page(chromium: Any, explorer: Launched) -> Iterator[Any]:
    """The page at its start; whatever it asks of others, and every error, fails the test."""
    yield from opened_page(chromium, explorer)


def opened_page(chromium: Any, explorer: Launched) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    opened, errors, foreign = context.new_page(), [], []
    context.on(
        "request",
        lambda request: (
            foreign.append(request.url) if not request.url.startswith((explorer.base, "data:", "blob:")) else None
        ),
    )
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(explorer.url)
    opened.get_by_test_id("next-token").first.wait_for()
    yield opened
    context.close()
    assert not errors
    assert not foreign
