"""The HTML page around a view: one self-contained file."""

from html import escape
from pathlib import Path

from jscope_tl.results.files import write_whole

STYLE = """
:root { color-scheme: light; --line: #d0d7de; --quiet: #57606a; --mark: #0550ae }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem; color: #1f2328;
  background: #fff; overflow-wrap: anywhere }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin: 2.5rem 0 .3rem; border-top: 1px solid var(--line);
  padding-top: 1rem } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
.quiet { color: var(--quiet); font-size: .9rem; margin: .3rem 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem } th, td { text-align: left; padding: .15rem .9rem .15rem 0;
  border-bottom: 1px solid var(--line); white-space: pre } td.n { text-align: right; font-variant-numeric: tabular-nums }
summary { cursor: pointer; padding: .4rem 0 } :focus-visible { outline: 3px solid var(--mark); outline-offset: 1px }
.tokens { white-space: pre-wrap; line-height: 2.1 } .tokens span { padding: .15rem 0; border-radius: 2px }
.explained { outline: 2px solid var(--mark) } .said { min-height: 1.6rem; font-weight: 600 }
.bar { display: inline-block; height: .8rem; background: #bf5400; vertical-align: middle; min-width: 1px }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,"><style>{style}</style></head>
<body>
{body}
</body></html>
"""


def page(title: str, body: str) -> str:
    """``body`` (HTML) as a complete page."""
    return PAGE.format(title=escape(title), style=STYLE, body=body)


def write_page(path: str | Path, title: str, body: str) -> Path:
    """Write ``body`` (HTML) as a complete page. The file is written completely or not at all."""
    return write_whole(path, page(title, body).encode("utf-8", "replace"))
