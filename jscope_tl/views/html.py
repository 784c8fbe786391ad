"""Results as HTML: a light, escaped fragment for notebooks, and the same as a page of its own. No script, no network."""

from html import escape
from pathlib import Path

from jscope_tl.result import Attribution
from jscope_tl.storage import write_whole
from jscope_tl.views.scale import background, ink, intensities, scale_note, score_text, visible
from jscope_tl.views.terminal import headline, prediction_line, resolved_line

PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title></head>
<body style="font-family:system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem">{body}</body></html>
"""
TOKEN = 'style="background:rgb({rgb});color:{ink}{mark}" title="{title}"'
CELL = 'style="text-align:left;padding:0 1em 0 0"'


def _tokens(result: Attribution) -> str:
    spans = []
    for i, intensity in enumerate(intensities(result)):
        token = result.scored(i)
        mark = ";outline:2px solid #1f6feb" if i == result.position else ""
        rgb = ",".join(map(str, background(intensity)))
        title = f"{i}: {score_text(token.score, token.stderr)}"
        style = TOKEN.format(rgb=rgb, ink=ink(intensity), mark=mark, title=title)
        spans.append(f"<span {style}>{escape(visible(token.str_token))}</span>")
    return f'<div style="white-space:pre-wrap;line-height:1.9">{"".join(spans)}</div>'


def _table(result: Attribution, k: int, include_bos: bool) -> str:
    head = "".join(f"<th {CELL}>{escape(name)}</th>" for name in ("position", "token", f"score ({result.unit})"))
    rows = [
        f"<tr><td {CELL}>{t.position}</td><td {CELL}>{escape(repr(t.str_token))}</td>"
        f"<td {CELL}>{score_text(t.score, t.stderr)}</td></tr>"
        for t in result.top(k, include_bos)
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def fragment(result: Attribution, k: int = 5, include_bos: bool = False) -> str:
    """The coloured prompt (scores on hovering), the prediction, the strongest tokens, and the doubts."""
    small = '<p style="margin:.4em 0;font-size:90%">{}</p>'
    parts = [
        f"<p><b>{escape(headline(result))}</b></p>",
        _tokens(result),
        small.format(escape(scale_note(result) + "; outlined: the explained position")),
        f"<p>{escape(prediction_line(result))}</p>",
        _table(result, k, include_bos),
        small.format(escape(resolved_line(result))) if resolved_line(result) else "",
        *(small.format(f"⚠ {escape(warning)}") for warning in result.warnings),
    ]
    return f"<div>{''.join(parts)}</div>"


def write_page(result: Attribution, path: str | Path) -> Path:
    """Write the fragment as a self-contained page with every position in its table."""
    body = fragment(result, k=len(result.str_tokens), include_bos=True)
    return write_whole(path, PAGE.format(title=escape(headline(result)), body=body).encode())
