"""Summaries, agreement and rows of a corpus as HTML: in notebooks, and as parts of a page."""

from html import escape

from jscope_tl.corpus.row import Row
from jscope_tl.corpus.summary import Summary
from jscope_tl.corpus.two_runs import RunAgreement
from jscope_tl.results.text import score_text, visible
from jscope_tl.views.corpus_figures import agreement, summary
from jscope_tl.views.html import picture, spans, table
from jscope_tl.views.scale import Scale

SMALL = '<p style="margin:.4em 0;font-size:90%">{}</p>'
MOST = 12
"""The largest number of rows of a table; tables with groups show five rows of each."""


def summary_html(found: Summary, most: int = MOST, meaning: bool = True) -> str:
    """A picture, a table, notes about what was left out, and explanations of the columns."""
    names, rows = found.table(most if found.groups in ([], [""]) else 5)
    drawn = picture(summary(found, most=most), found.headline()) if found.rows else ""
    left = len(found.rows) - len(rows)
    more = [f"{left} more rows; to_pandas() has all"] if left else []
    said = "".join(SMALL.format(escape(line)) for line in [*more, *found.left_out, *(found.meaning if meaning else [])])
    return f"<div>{drawn}{table(names, [[visible(cell) for cell in row] for row in rows])}{said}</div>"


def agreement_html(found: RunAgreement) -> str:
    """A picture, both tables, the prompts on which the runs agree least, and notes about what was left out."""
    tables = "".join(table(names, rows) for names, rows in found.tables())
    lowest = ", ".join(f"{id} ({rho:.2f})" for id, rho in found.lowest)
    lines = [f"lowest rank correlation, by id: {lowest}", *found.meaning, *found.notes]
    said = "".join(SMALL.format(escape(line)) for line in lines)
    return f"<div>{picture(agreement(found), found.headline())}{tables}{said}</div>"


def row_html(row: Row) -> str:
    """The headline of a row, its prompt with a background for every token, and the warnings."""
    head = f"<p><b>{escape(visible(row.headline()))}</b></p>"
    if row.error is not None or row.position is None:
        return f"<div>{head}</div>"
    high = max((score for _, _, score in row.top(1)), default=0.0)
    scale = Scale(0.0, high, False)
    errors = row.stderr
    said = [
        score_text(float(score), None if errors is None else float(errors[t])) + (" (off the scale)" if t in row.off_scale else "")
        for t, score in enumerate(row.scores)
    ]  # fmt: skip
    drawn = spans(row.str_tokens, [scale(float(score)) for score in row.scores], said, row.position)
    warnings = "".join(SMALL.format(f"⚠ {escape(warning)}") for warning in row.warnings)
    return f"<div>{head}{drawn}{warnings}</div>"
