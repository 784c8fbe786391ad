"""A result as a light, escaped fragment of HTML for notebooks. No script, no network, no circuitsvis."""

import warnings
from base64 import b64encode
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

from jscope_tl.results.attribution import Attribution
from jscope_tl.results.base import Result
from jscope_tl.results.pattern import InfluencePattern
from jscope_tl.results.spectrum import Spectrum
from jscope_tl.results.text import score_text, visible
from jscope_tl.views.figures import heatmap
from jscope_tl.views.scale import background, ink, scale_of
from jscope_tl.views.spectra import spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKEN = 'style="background:rgb({rgb});color:{ink}{mark}" title="{title}"'
CELL = 'style="text-align:left;padding:0 1em 0 0"'


def coloured(result: Attribution) -> str:
    """The prompt with a background for every token; score and standard error on hovering."""
    spans = []
    scale = scale_of([result])
    for i in range(len(result.str_tokens)):
        token = result.scored(i)
        intensity = scale(token.score)
        mark = ";outline:2px solid #1f6feb" if i == result.position else ""
        rgb = ",".join(map(str, background(intensity)))
        title = f"{i}: {score_text(token.score, token.stderr)}"
        style = TOKEN.format(rgb=rgb, ink=ink(intensity), mark=mark, title=title)
        break_after = "\n" * token.str_token.count("\n")
        spans.append(f"<span {style}>{escape(visible(token.str_token))}</span>{break_after}")
    return f'<div style="white-space:pre-wrap;line-height:1.9">{"".join(spans)}</div>'


def _table(result: Result, k: int) -> str:
    pattern = isinstance(result, InfluencePattern)
    layers = isinstance(result, Attribution) and bool(result.hook_points)
    names = ("position", "token", f"score ({result.unit})", "explained position" if pattern else "at" if layers else "")
    head = "".join(f"<th {CELL}>{escape(name)}</th>" for name in names)
    rows = [
        f"<tr><td {CELL}>{t.position}</td><td {CELL}>{escape(repr(t.str_token))}</td>"
        f"<td {CELL}>{score_text(t.score, t.stderr)}</td><td>{t.explained if pattern else escape(t.hook_point or '')}</td></tr>"
        for t in result.top(k)
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def fragment(result: Result, k: int = 5) -> str:
    """What a notebook shows: the coloured prompt (scores on hovering), map or spectrum, the strongest tokens, the doubts."""
    small = '<p style="margin:.4em 0;font-size:90%">{}</p>'
    prediction = result.prediction_line() if isinstance(result, Attribution) else ""
    resolved = result.resolved_line() if isinstance(result, Attribution) else ""
    parts = [
        f"<p><b>{escape(result.headline())}</b></p>",
        *_drawn(result, small),
        f"<p>{escape(prediction)}</p>" if prediction else "",
        _table(result, k),
        small.format(escape(resolved)) if resolved else "",
        *(small.format(f"⚠ {escape(warning)}") for warning in result.warnings),
    ]
    return f"<div>{''.join(parts)}</div>"


def _drawn(result: Any, small: str) -> list[str]:
    """The picture that goes with a result, and what its colours mean."""
    if isinstance(result, Spectrum):
        return [picture(spectrum(result), "spectrum of every position")]
    note = scale_of([result]).note
    if isinstance(result, Attribution) and not result.hook_points:
        return [coloured(result), small.format(escape(f"{note}; outlined: the explained position"))]
    return [picture(heatmap(result), f"map of {result.scope} scores"), small.format(escape(note))]


def picture(figure: "Figure", says: str) -> str:
    """A figure as SVG with its text as text, in an image element: nothing in it can run."""
    from matplotlib import rc_context

    content = BytesIO()
    with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that matplotlib's font lacks: the browser has them
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    source = f"data:image/svg+xml;base64,{b64encode(content.getvalue()).decode()}"
    return f'<img style="max-width:100%" alt="{escape(says)}" src="{source}">'
