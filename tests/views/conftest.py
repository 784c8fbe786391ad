from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PICTURES = Path(__file__).parents[2] / "build" / "pictures"
"""Where screenshots are kept, for eyes."""


@dataclass
class Opened:
    """A page in a browser without a network, and everything that went wrong or out."""

    page: Any
    own: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def keep(self, name: str) -> None:
        """Take a screenshot; it must show something."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        picture = self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
        assert len(picture) > 5_000

    @property
    def foreign(self) -> list[str]:
        return [url for url in self.requests if url != self.own and not url.startswith("data:")]


@pytest.fixture
def browse(chromium: Any) -> Iterator[Any]:
    """Opens a file in a new browser with the network cut."""
    contexts = []

    def open_page(path: Path, width: int = 1000, height: int = 800) -> Opened:
        context = chromium.new_context(offline=True, viewport={"width": width, "height": height})
        contexts.append(context)
        opened = Opened(context.new_page(), path.resolve().as_uri())
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.page.on("console", lambda m: opened.errors.append(m.text) if m.type in ("error", "warning") else None)
        opened.page.goto(opened.own)
        return opened

    yield open_page
    for context in contexts:
        context.close()
