"""The command ``jscope corpus summary``: how the scores of a run are distributed."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jscope_tl.cli.options import Parser, as_json
from jscope_tl.corpus.dataset import CorpusRun, open_run
from jscope_tl.corpus.sources import by_target
from jscope_tl.corpus.summaries import by_class, by_distance, by_position, by_token
from jscope_tl.corpus.summary import Summary
from jscope_tl.corpus.two_runs import RunAgreement, agreement
from jscope_tl.errors import InputError, count
from jscope_tl.results.files import check_target
from jscope_tl.results.text import visible
from jscope_tl.views.corpus_report import corpus_page

BY: dict[str, Callable[..., Summary]] = {
    "distance": by_distance, "position": by_position, "token": by_token, "target": by_target,
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(
        prog="jscope corpus summary",
        description="Summarise how the scores of a run are distributed: by distance, position, token, class of words and target.",
    )
    p.add_argument("run", help="the folder that jscope corpus wrote")
    p.add_argument("--by", nargs="+", choices=[*BY, "class"], metavar="WHAT",
                   help="distance, position, token, target, or class with --classes (default: all)")  # fmt: skip
    p.add_argument(
        "--classes", metavar="FILE", help='a JSON object that maps tokens to classes of words: {"the": "article", ...}'
    )
    p.add_argument("--against", metavar="RUN", help="another run over the same prompts to compare with")
    p.add_argument("--contains", metavar="TEXT", help="only prompts that contain this text")
    p.add_argument("--target", metavar="TOKEN", help="only prompts with this target")
    p.add_argument("--top", type=int, default=12, help="number of rows in each table (default: 12)")
    p.add_argument("--html", metavar="FILE", help="write a self-contained HTML page")
    p.add_argument("--json", action="store_true", help="print JSON instead of text")
    return p


def run(argv: Sequence[str]) -> int:
    """Summarise and print."""
    options = parser().parse_args(argv)
    count("--top", options.top, 1)
    if options.html is not None:
        check_target(options.html)
    classes = _classes(options)
    found = open_run(options.run).where(contains=options.contains, target=options.target)
    other = None if options.against is None else open_run(options.against)
    summaries = [
        by_class(found, classes) if name == "class" else BY[name](found)
        for name in options.by or [*BY, *(["class"] if classes else [])]
    ]
    against = None if other is None else agreement(found, other)
    if options.html is not None:
        corpus_page(found, options.html, summaries, against, options.top)
    if options.json:
        print(as_json({"summaries": summaries, "agreement": against}))
    else:
        _print(found, summaries, against, options.top)
    return 0


def _classes(options: argparse.Namespace) -> dict[str, Any] | None:
    if options.classes is None:
        if "class" in (options.by or []):
            raise InputError(
                '--by class needs --classes FILE, a JSON object that maps tokens to classes: {"the": "article", ...}.'
            )
        return None
    try:
        found = json.loads(Path(options.classes).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The classes {options.classes!r} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(
            f'{options.classes!r} holds no JSON object that maps tokens to classes, {{"the": "article", ...}}.'
        )
    return found


def _print(found: CorpusRun, summaries: Sequence[Summary], against: RunAgreement | None, most: int) -> None:
    console = Console()
    console.print(Text(found.headline(), style="bold"))
    for one in summaries:
        console.print(Text(f"\nby {one.by}", style="bold"))
        console.print(_table(*one.table(most if one.groups in ([], [""]) else min(most, 3))))
        for note in one.left_out:
            console.print(Text(note, style="dim"))
    if against is not None:
        console.print(Text(f"\n{against.headline()}", style="bold"))
        for names, rows in against.tables():
            console.print(_table(names, rows))
        for line in (*against.meaning, *against.notes):
            console.print(Text(line, style="dim"))
    console.print()
    for line in summaries[0].meaning if summaries else []:
        console.print(Text(line, style="dim"))


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(names):
        text = i == 0 or (i == 1 and name == "source")
        drawn.add_column(Text(name), justify="left" if text else "right")
    for row in rows:
        drawn.add_row(*(Text(visible(cell)) for cell in row))
    return drawn
