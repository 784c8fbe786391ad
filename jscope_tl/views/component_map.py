"""`heads`: effects of components as a map of layers and heads or of layers and positions, or as bars."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import torch

from jscope_tl.components.effects import ComponentEffects, strongest
from jscope_tl.errors import InputError
from jscope_tl.results.text import score_text, visible
from jscope_tl.views.circuitsvis_views import View, place
from jscope_tl.views.component_words import MARKS, caption, foot, said, short_name, strongest_table
from jscope_tl.views.effect_scale import EffectScale, effect_scale
from jscope_tl.views.together import prompt_text

MOST_ROWS = 30
"""The largest number of bars, and of rows of a map over positions; a row or bar for each layer is always drawn."""
MOST_CELLS = 6000
"""The largest number of cells of a map over positions."""
STYLE = """<style>
.jscope-map { border-collapse: separate; border-spacing: 1px; font: 12px/1.3 system-ui, sans-serif; width: auto }
.jscope-map th, .jscope-map td { padding: 0; border: 0; text-align: center; white-space: pre }
.jscope-map th { font-weight: 400; padding: 0 .3rem; text-align: right } .jscope-map thead th { vertical-align: bottom; text-align: center }
.jscope-map thead span.turned { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem; overflow: hidden }
.jscope-map td { min-width: 1.7rem; height: 1.25rem; outline-offset: -2px }
.jscope-map td.half { min-width: min(8rem, 22vw); text-align: left } .jscope-map td.half i { display: block; height: .8rem }
.jscope-map td.n { text-align: right; padding: 0 .6rem; font-variant-numeric: tabular-nums }
.jscope-map td:hover { outline: 2px solid #0550ae } .jscope-map td:focus { outline: 3px solid #0550ae }
.jscope-side { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start } .jscope-side > div { min-width: 0; max-width: 100% }
.jscope-side > .jscope-drawn { min-width: min(18rem, 100%) } .jscope-drawn .said { width: 0; min-width: 100% }
.jscope-legend span { display: inline-block; padding: 0 .5rem; font: 12px/1.6 system-ui, sans-serif }
</style>"""
SAID = """<p class="said" aria-live="polite" style="min-height:2.8em;margin:.3em 0"><span style="font-weight:400">Hover over the picture, or
Tab to it and use the arrow keys, to read an effect.</span></p>"""
READER = """<script type="module">
for (const map of document.querySelectorAll('[id="{where}"]')) {{
  const said = map.querySelector(".said"), rows = [...map.querySelectorAll("tbody tr")].map(row => [...row.querySelectorAll("td[title], th[title]")]);
  rows.forEach((row, i) => row.forEach((cell, j) => {{
    Object.assign(cell, {{tabIndex: i || j ? -1 : 0, ariaLabel: cell.title}});
    for (const kind of ["mouseenter", "focus"]) cell.addEventListener(kind, () => {{ said.textContent = cell.title }});
    cell.addEventListener("keydown", e => {{
      const to = {{ArrowRight: [i, j + 1], ArrowLeft: [i, j - 1], ArrowDown: [i + 1, j], ArrowUp: [i - 1, j],
        Home: [i, 0], End: [i, row.length - 1]}}[e.key];
      const next = to && rows[to[0]] && rows[to[0]][to[1]];
      if (next) {{ e.preventDefault(); cell.tabIndex = -1; next.tabIndex = 0; next.focus() }}
    }});
  }}));
}}
</script>"""


@dataclass(frozen=True)
class Grid:
    """The content of a map: each cell has a component, given by its place in the flattened effects."""

    rows: list[str]
    columns: list[str]
    cells: list[list[int]]
    notes: list[str]


def heads(effects: Any, *, scale: str | None = None) -> View:
    """The effect of changing each component, as a map or as bars. Hovering or the arrow keys show the value of a cell.

    Heads ``[layer, head]`` are a map of layers and heads, and so are edges ``[layer, head, dest, src]``, with the strongest edge of each
    head (`attention` shows all edges). Effects by position are a map with a column for each position and a row for each layer, or for each
    of the strongest heads or units. Effects of layers are bars, and so are the strongest neurons and features. Orange: the change raises
    the explained quantity; purple: it lowers it. A KL divergence has no sign and is orange. Measured and refined effects are marked. A
    table lists the strongest components.

    Args:
        effects: the result of `jscope_tl.patching.components`.
        scale: the scale of a map's colours: ``"linear"``, ``"sqrt"`` (the square root of an effect) or ``"log"`` (three decades). None:
            linear, unless a few components are much stronger than the others. Bars are always linear. A note names the scale.

    Returns:
        A view that shows itself in a notebook, with ``save(path)``. Both work without a network.

    Raises:
        InputError: ``effects`` is something else, or the scale is unknown.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> effects = js.patching.components(model, "the keys to the cabinet near the doors")
        >>> js.views.heads(effects)
        View: effects of heads on "the keys to the cabinet near the doors" (shows itself in a notebook; .save(path) writes a page)
    """
    if not isinstance(effects, ComponentEffects):
        raise InputError(
            f"This view takes the ComponentEffects that js.patching.components returns; got a {type(effects).__name__}."
        )
    where, _ = place()
    body = f'<div id="{where}">{component_map(effects, SAID, scale)}</div>{READER.format(where=where)}'
    return View(f'effects of {effects.of} on "{prompt_text(effects, 60)}"', body, ())


def component_map(effects: ComponentEffects, under: str = "", scale: str | None = None) -> str:
    """Caption, map or bars, legend, and the strongest components, without a script. ``under`` is HTML below the picture."""
    grid = _grid(effects)
    colours = effect_scale(effects.values.flatten()[torch.tensor(grid.cells)] if grid else effects.values, scale)
    if grid is None:
        picture, notes, legend = _bars(effects, colours), _bar_notes(effects, colours), ""
    else:
        picture = drawn(grid, lambda cell: _cell(effects, cell, colours))
        notes, legend = [colours.note, *grid.notes], legend_of(colours)
    shown = f'<div class="jscope-drawn"><div style="overflow-x:auto">{picture}</div>{under}{legend}</div>'
    side = f'<div class="jscope-side">{shown}<div>{strongest_table(effects)}</div></div>'
    return f"{STYLE}{caption(effects)}{side}{foot(effects, notes)}"


def _grid(effects: ComponentEffects) -> Grid | None:
    if effects.axes[:2] == ("layer", "head") and "pos" not in effects.axes:
        return _of_heads(effects)
    return _by_position(effects) if effects.axes[-1] == "pos" else None


def _of_heads(effects: ComponentEffects) -> Grid:
    """A cell for each head; for edges, the strongest edge of the head."""
    layers, n_heads = effects.predicted.shape[:2]
    edges = effects.values.reshape(layers, n_heads, -1)
    best = edges.abs().argmax(-1) + torch.arange(layers * n_heads).reshape(layers, n_heads) * edges.shape[-1]
    notes = ["each head's strongest edge"] if edges.shape[-1] > 1 else []
    rows = [f"L{effects.component(row[0]).layer}" for row in best.tolist()]
    return Grid(rows, [f"H{head}" for head in range(n_heads)], best.tolist(), notes)


def _by_position(effects: ComponentEffects) -> Grid:
    """A row for each layer, or for each of the strongest other components; a column for each position up to the explained one."""
    n = min(effects.position + 1, effects.predicted.shape[-1])
    values = effects.values.reshape(-1, effects.predicted.shape[-1])[:, :n]
    rows = list(range(len(values)))
    notes = []
    if len(effects.axes) > 2 or effects.axes[0] != "layer":
        rows = strongest(values.abs().amax(-1), MOST_ROWS)
        notes = (
            [f"the {len(rows)} strongest of {len(values)} rows, the strongest first"] if len(rows) < len(values) else []
        )
    columns = sorted(strongest(values[rows].abs().amax(0), max(1, MOST_CELLS // len(rows))))
    if len(columns) < n:
        notes.append(f"the {len(columns)} of {n} positions with the largest effects")
    cells = [[row * effects.predicted.shape[-1] + column for column in columns] for row in rows]
    names = [short_name(effects.component(row[0])) for row in cells]
    return Grid(names, [f"{visible(effects.str_tokens[t]).strip()} {t}" for t in columns], cells, notes)


def drawn(grid: Grid, cell: Callable[[int], str]) -> str:
    """A table with a cell for each component; ``cell`` gives the HTML of a cell from the component's place."""
    turned = ' class="turned"' if max(map(len, grid.columns)) > 3 else ""
    top = "".join(f'<th scope="col"><span{turned}>{escape(name)}</span></th>' for name in grid.columns)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(cell, row))}</tr>'
        for name, row in zip(grid.rows, grid.cells, strict=True)
    )
    return f'<table class="jscope-map"><thead><tr><th></th>{top}</tr></thead><tbody>{body}</tbody></table>'


def _cell(effects: ComponentEffects, cell: int, colours: EffectScale) -> str:
    found = effects.component(cell)
    return cell_html(found.effect, said(effects, found), MARKS[found.how], colours)


def cell_html(effect: float, says: str, mark: str, colours: EffectScale) -> str:
    """A cell of a map, coloured by an effect, with a title for hovering."""
    background, ink = colours.colours(effect)
    return f'<td style="background:{background};color:{ink}" title="{escape(says)}">{mark}</td>'


def legend_of(colours: EffectScale) -> str:
    """Colour swatches with their effects."""
    effects = [
        colours.at(intensity)
        for intensity in ((-1.0, -0.5, 0.0, 0.5, 1.0) if colours.signed else (0.0, 0.25, 0.5, 0.75, 1.0))
    ]
    swatches = []
    for effect in effects:
        background, ink = colours.colours(effect)
        swatches.append(f'<span style="background:{background};color:{ink}">{float(f"{effect:.2g}"):.6g}</span>')
    return f'<div class="jscope-legend">{"".join(swatches)}</div>'


def _bars(effects: ComponentEffects, colours: EffectScale) -> str:
    """A bar for each component: in the order of the layers if each layer has one component, else the strongest first."""
    every = effects.axes == ("layer",)
    cells = list(range(effects.predicted.numel())) if every else strongest(effects.values, MOST_ROWS)
    high = colours.high or 1.0
    rows = []
    for found in map(effects.component, cells):
        halves = "".join(
            half_bar(found.effect / high, below) for below in ([True, False] if colours.signed else [False])
        )
        number = f"{MARKS[found.how]} {score_text(found.effect, found.stderr)}".strip()
        name = escape(said(effects, found))
        rows.append(
            f'<tr><th scope="row" title="{name}">{escape(short_name(found))}</th>{halves}<td class="n">{escape(number)}</td></tr>'
        )
    return f'<table class="jscope-map"><tbody>{"".join(rows)}</tbody></table>'


def half_bar(share: float, below: bool) -> str:
    """One side of a bar: the effect if it is on this side of 0, else empty."""
    size = max(0.0, -share if below else share)
    side, colour = ("margin-left:auto;", "rgb(84,39,136)") if below else ("", "rgb(191,84,0)")
    return f'<td class="half"><i style="{side}width:{100 * size:.1f}%;background:{colour}"></i></td>'


def _bar_notes(effects: ComponentEffects, colours: EffectScale) -> list[str]:
    n, sign = (
        effects.predicted.numel(),
        ["orange: the change raises what is explained, purple: it lowers it"] if colours.signed else [],
    )
    few = effects.axes != ("layer",) and n > MOST_ROWS
    return ["bars are linear", *sign, *([f"the {MOST_ROWS} strongest of {n}"] if few else [])]
