"""`corpus_page`: the summaries of a run as one self-contained page."""

from collections.abc import Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from jscope_tl.corpus.dataset import CorpusRun
from jscope_tl.corpus.row import Row
from jscope_tl.corpus.summary import Summary
from jscope_tl.corpus.two_runs import RunAgreement
from jscope_tl.results.text import shortened
from jscope_tl.views.corpus_html import agreement_html, row_html, summary_html
from jscope_tl.views.html import table
from jscope_tl.views.page import write_page

SHOWN = 6
"""The number of prompts that are shown as examples, and of rows with an error."""


def corpus_page(
    run: CorpusRun, path: str | Path, summaries: Sequence[Summary], against: RunAgreement | None = None, most: int = 20
) -> Path:
    """Write the summaries of a run, its first prompts and its settings as one page that needs no network.

    Args:
        run: the run, from `jscope_tl.corpus.open`.
        path: the file to write; its folder must exist.
        summaries: results of `jscope_tl.corpus.by_distance` and similar functions.
        against: the result of `jscope_tl.corpus.agreement` with another run, or None.
        most: how many rows of a ranking are shown.

    Raises:
        InputError: the file cannot be written.
    """
    title = f"{run.scope} scope of {run.model}"
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(run.headline())}</p>"]
    parts += [f'<p class="quiet">{escape(line)}</p>' for line in (summaries[0].meaning if summaries else [])]
    parts += [f"<h2>By {escape(found.by)}</h2>{summary_html(found, most, meaning=False)}" for found in summaries]
    if against is not None:
        parts.append(f"<h2>{escape(against.headline())}</h2>{agreement_html(against)}")
    parts += [*_prompts(run), *_errors(run), f"<h2>Settings</h2>{_settings(run.settings)}"]
    return write_page(path, title, "\n".join(parts))


def _prompts(run: CorpusRun) -> list[str]:
    rows = list(islice(run.where(errors=False), SHOWN))
    note = '<p class="quiet">Each prompt has its own scale, up to its highest score; hover over a token to see its score; outlined: the explained position.</p>'
    return [f"<h2>The first prompts</h2>{note}{''.join(map(row_html, rows))}"] if rows else []


def _errors(run: CorpusRun) -> list[str]:
    if not run.n_errors:
        return []
    rows: list[Row] = list(islice(run.where(errors=True), SHOWN))
    listed = table(["id", "error"], [[row.id, row.error or ""] for row in rows])
    return [
        f"<h2>Errors</h2><p>Prompts with an error instead of scores: {run.n_errors}. The first of them:</p>{listed}"
    ]


def _settings(settings: dict[str, Any]) -> str:
    return table(["setting", "value"], [[name, _said(value)] for name, value in settings.items()])


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(inner)}" for name, inner in value.items())
    return shortened(str(value), 120)
