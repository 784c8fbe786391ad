"""The page as one file, with data instead of a server."""

import json
import re
from collections.abc import Mapping
from functools import cache
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

STATIC = Path(__file__).parent / "static"
MODULES = (
    "dom",
    "api",
    "tokens",
    "answer",
    "bars",
    "chat",
    "compare",
    "export",
    "links",
    "maps",
    "runs",
    "series",
    "app",
)
"""The modules of the page, each after those from which it imports."""
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src {connect}"
DATA = '<meta name="jscope-data">'
"""The placeholder for the data."""
BELOW = "<!--static-->"
"""The placeholder for further HTML."""


@cache
def shell(connect: str = "'none'") -> str:
    """The page with its style and scripts, without data; ``connect`` is the server to which it may connect."""
    text = {path.name: path.read_text(encoding="utf-8") for path in STATIC.iterdir()}
    scripts = "".join(_inline(text[f"{name}.js"]) for name in MODULES).replace("</script", "<\\/script")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY.format(connect=connect)}">'
    style = f"<style>{text['app.css']}</style>"
    script = f'{DATA}\n<script type="module">{scripts}</script>'
    page = text["index.html"].replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{policy}')
    page = page.replace('<link rel="stylesheet" href="static/app.css">', style)
    return page.replace('<script type="module" src="static/app.js"></script>', script)


def to_json(value: Any) -> str:
    """JSON for browsers, with null in place of NaN and infinity."""
    return json.dumps(_finite(value), default=repr)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _inline(module: str) -> str:
    """A module as a function that returns its exports, so that its other names are local."""
    exported = ", ".join(re.findall(r"^export (?:const|(?:async )?function) ([\w$]+)", module, flags=re.MULTILINE))
    body = re.sub(r"^(import .*|export )", "", module, flags=re.MULTILINE)
    return f"const {{ {exported} }} = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();\n"


def frozen_page(data: Mapping[str, Any], title: str = "", below: str = "", connect: str = "'none'") -> str:
    """The page with ``data`` (``about``, ``results`` and more: see ``showFrozen`` in app.js).

    Args:
        title: the title of the page.
        below: HTML below the page.
        connect: the server to which the page may connect; none by default.
    """
    content = to_json(data).replace("<", "\\u003c")
    page = shell(connect).replace(DATA, f'<script type="application/json" id="frozen">{content}</script>', 1)
    if title:
        page = page.replace("<title>jscope explorer</title>", f"<title>{escape(title)}</title>")
        page = page.replace("<h1>jscope</h1>", f"<h1>{escape(title)}</h1>")
    return page.replace(BELOW, below)
