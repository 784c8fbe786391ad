"""circuitsvis pictures without a network: its components are called with escaped text, and with numbers that show scores and units."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

from jscope_tl.views.page import write_page

HELPERS = """
const label = (shown, html, breaks) =>
  Object.assign([shown], {replace: () => html, match: () => Array(breaks).fill(""), toString: () => shown});
const score = (shown, intensity) => Object.assign([shown], {valueOf: () => intensity, toString: () => shown});
const scores = (rows, tops, unit, shape = share => share) => rows.map((row, i) => row.map(value =>
  ({valueOf: () => tops[i] ? shape(value / tops[i]) : 0, toString: () => value === null ? "not kept" : `${value} ${unit}`})));
const root = share => Math.sign(share) * Math.sqrt(Math.abs(share));
const decades = n => share => Math.sign(share) * Math.max(0, 1 + Math.log10(Math.abs(share)) / n);
const reachable = id => new MutationObserver(() => {
  for (const name of document.querySelectorAll(`#${id} h4`)) {
    const head = name.parentElement.parentElement;
    if (head.tabIndex === 0) continue;
    Object.assign(head, {tabIndex: 0, role: "button", ariaLabel: name.textContent});
    head.addEventListener("keydown", e => {
      if (e.key === "Enter" || e.key === " ") { e.preventDefault(); head.click(); }
    });
  }
}).observe(document.getElementById(id), {childList: true, subtree: true});
"""
# circuitsvis inserts the text of a token as HTML in the line and as text in the tooltip, and it shows the number that sets the colour.
# React draws a one-element array as its element, while circuitsvis calls the array's methods: so `label` gives escaped HTML where
# circuitsvis inserts HTML, and `score` shows a score with its unit but is coloured by its intensity.


@dataclass(frozen=True)
class View:
    """A view as self-contained HTML, which opens without a network.

    A notebook displays it; ``save(path)`` writes it as a page.
    """

    title: str
    body: str
    calls: tuple[str, ...]

    def _repr_html_(self) -> str:
        return self.body + script(self.calls)

    def save(self, path: str | Path) -> Path:
        """Write the view as one self-contained HTML file."""
        return write_page(path, self.title, self._repr_html_())

    def __repr__(self) -> str:
        return f"View: {self.title} (shows itself in a notebook; .save(path) writes a page)"


def place() -> tuple[str, str]:
    """A new id, and an empty element with this id for a component."""
    name = f"jscope-{uuid4().hex[:12]}"
    return name, f'<div id="{name}"></div>'


def call(name: str, component: str, properties: dict[str, str]) -> str:
    """JavaScript that draws a component into an element; the properties are JavaScript expressions."""
    inside = ", ".join(f"{key}: {value}" for key, value in properties.items())
    return f'reachable("{name}"); CircuitsVis.render("{name}", CircuitsVis.{component}, {{{inside}}});'


def script(calls: tuple[str, ...]) -> str:
    """One script with circuitsvis and all calls.

    It is a module script, like that of circuitsvis: it runs after the elements are in the document, and defines no global names.
    """
    return f'<script type="module">{bundle()}\n{HELPERS}\n' + "\n".join(calls) + "</script>" if calls else ""


@cache
def bundle() -> str:
    """The JavaScript of circuitsvis, escaped for an inline script."""
    source = (files("circuitsvis") / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def literal(value: Any) -> str:
    """A value as a JavaScript literal that cannot close its script element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
