"""The command ``jscope guide``: the pages of the guide, without a network."""

import argparse
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from jscope_tl.cli.options import Parser
from jscope_tl.errors import InputError, nearest


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(prog="jscope guide", description="Print a page of the guide; without a topic the list of pages.")
    p.add_argument("topic", nargs="?", help="name of a page, such as scopes or text (default: list the pages)")
    return p


def run(argv: Sequence[str]) -> int:
    """Print the list of pages, or one page: formatted in a terminal, as Markdown elsewhere."""
    topic = parser().parse_args(argv).topic
    pages = guide_pages()
    if topic is None:
        width = max(map(len, pages))
        print("\n".join(f"{name:{width}}  {_title(page)}" for name, page in sorted(pages.items())))
        return 0
    name = topic.removesuffix(".md")
    if name not in pages:
        holding = sorted(
            other for other, page in pages.items() if name.lower() in page.read_text(encoding="utf-8").lower()
        )
        found = f" Pages that contain it: {', '.join(holding)}." if holding else f" Pages: {', '.join(sorted(pages))}."
        raise InputError(f"The guide has no page {topic!r}.{nearest(name, pages)}{found}")
    text = pages[name].read_text(encoding="utf-8")
    Console().print(Markdown(text)) if sys.stdout.isatty() else print(text)
    return 0


def guide_pages() -> dict[str, Any]:
    """The pages by name, from the installed package or from the repository."""
    installed = files("jscope_tl") / "guide"
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "examples" / "guide"
    if not folder.is_dir():
        raise InputError("The guide is not installed; it is the folder examples/guide of the repository.")
    return {page.name.removesuffix(".md"): page for page in folder.iterdir() if page.name.endswith(".md")}


def _title(page: Any) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
