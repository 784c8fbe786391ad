"""Escaped HTML for notebooks and reports: coloured tokens, tables and pictures, without scripts, network access or circuitsvis."""

import warnings
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

from jscope_tl.model.pieces import pieces
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.text import score_text, visible
from jscope_tl.views.scale import Scale, background, ink, scale_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKEN = 'style="background:rgb({rgb});color:{ink}{mark}" title="{title}"'
READABLE = 0.75
"""The smallest share of its full width to which a picture may shrink."""
CELL = 'style="text-align:left;padding:0 1em 0 0;white-space:nowrap"'


def coloured(result: Attribution, scale: Scale | None = None) -> str:
    """The prompt with a background for every token; hovering shows the score and its standard error."""
    scale = scale or scale_of([result])
    tokens = [result.scored(i) for i in range(len(result.str_tokens))]
    said = [score_text(token.score, token.stderr) for token in tokens]
    return spans(result.str_tokens, [scale(token.score) for token in tokens], said, result.position)


def spans(str_tokens: Sequence[str], intensities: Sequence[float], said: Sequence[str], position: int) -> str:
    """Tokens with backgrounds of an intensity from 0 to 1 and a title for hovering (``said``); the token at ``position`` is outlined."""
    parts = []
    for i, (text, intensity) in enumerate(zip(pieces(str_tokens), intensities, strict=True)):
        mark = ";outline:2px solid #1f6feb" if i == position else ""
        rgb = ",".join(map(str, background(intensity)))
        style = TOKEN.format(rgb=rgb, ink=ink(intensity), mark=mark, title=f"{i}: {said[i]}")
        parts.append(f"<span {style}>{escape(visible(text))}</span>" + "\n" * text.count("\n"))
    return f'<div style="white-space:pre-wrap;line-height:1.9">{"".join(parts)}</div>'


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, in a box that scrolls horizontally."""
    head = "".join(f"<th {CELL}>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td {CELL}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div style="overflow-x:auto"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def layer_rows(result: Attribution) -> list[tuple[str, str]]:
    """Each hook point of a layer map with its strongest tokens."""
    said = [
        ", ".join(f"{visible(t.str_token)!r} at {t.position}: {score_text(t.score, t.stderr)}" for t in row)
        for row in result.by_row()
    ]
    return list(zip(result.hook_points, said, strict=True))


def picture(figure: "Figure", says: str) -> str:
    """A figure as SVG in an image element, in which no script can run. Its text stays text. On a narrow screen it scrolls in its box."""
    from matplotlib import rc_context

    content = BytesIO()
    with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about letters that are missing in matplotlib's font, but not in the browser's
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    source = f"data:image/svg+xml;base64,{b64encode(content.getvalue()).decode()}"
    wide = 96 * figure.get_figwidth()  # in CSS pixels; it may shrink to the page as long as letters are readable
    style = f"width:{wide:.0f}px;max-width:max(100%,{READABLE * wide:.0f}px)"
    return f'<div style="overflow-x:auto"><img style="{style}" alt="{escape(says)}" src="{source}"></div>'
