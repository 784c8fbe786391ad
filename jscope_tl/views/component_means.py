"""`mean_effects`: mean effects of components over prompts as a map of layers and heads, or as bars."""

from html import escape
from typing import Any

import torch

from jscope_tl.components.effects import strongest
from jscope_tl.corpus.component_means import ComponentMeans, MeanEffect
from jscope_tl.errors import InputError
from jscope_tl.results.text import percent
from jscope_tl.views.circuitsvis_views import View, place
from jscope_tl.views.component_map import MOST_ROWS, READER, SAID, STYLE, Grid, cell_html, drawn, half_bar, legend_of
from jscope_tl.views.component_words import SMALL
from jscope_tl.views.effect_scale import EffectScale, effect_scale
from jscope_tl.views.html import table

UNSURE = "·"
"""The mark of a cell whose interval contains 0."""


def mean_effects(means: Any, *, scale: str | None = None) -> View:
    """The mean effects of components over prompts, as a map or as bars. Hovering or the arrow keys show the value of a cell.

    Effects of heads are a map of layers and heads; effects of layers and neurons are bars. Orange: the change raises the explained
    quantity; purple: it lowers it. A KL divergence has no sign and is orange. A dot marks means whose 95 % interval contains 0. A table
    beside the picture lists the strongest components, with the share of prompts in which each is among the strongest.

    Args:
        means: the result of `jscope_tl.corpus.components`.
        scale: the scale of a map's colours, as in `heads`.

    Returns:
        A view that shows itself in a notebook, with ``save(path)``. Both work without a network.

    Raises:
        InputError: ``means`` is something else, or the scale is unknown.

    Example:
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), [prompt.text for prompt in js.pocket_prompts("agreement", 4)]
        >>> js.views.mean_effects(js.corpus.components(model, prompts))
        View: mean effects of heads over 4 prompts (shows itself in a notebook; .save(path) writes a page)
    """
    if not isinstance(means, ComponentMeans):
        raise InputError(f"This view takes what js.corpus.components returns; got a {type(means).__name__}.")
    where, _ = place()
    body = f'<div id="{where}">{means_map(means, SAID, scale)}</div>{READER.format(where=where)}'
    return View(f"mean effects of {means.of} over {means.n} prompts", body, ())


def means_map(means: ComponentMeans, under: str = "", scale: str | None = None) -> str:
    """Caption, map or bars, legend, and the strongest components, without a script. ``under`` is HTML below the picture."""
    if means.axes == ("layer", "head"):
        colours = effect_scale(means.mean, scale)
        picture, legend, notes = _map(means, colours), legend_of(colours), [colours.note]
        notes += (
            [f"{UNSURE} the 95 % interval contains 0"]
            if bool((means.low <= 0).logical_and(means.high >= 0).any())
            else []
        )
    else:
        colours = effect_scale(means.mean, "linear")
        picture, legend, notes = _bars(means, colours), "", ["bars are linear; behind them the 95 % interval"]
    shown = f'<div class="jscope-drawn"><div style="overflow-x:auto">{picture}</div>{under}{legend}</div>'
    lines = ["; ".join(notes), *means.notes()]
    foot = "".join(SMALL.format(escape(line)) for line in lines)
    side = f'<div class="jscope-side">{shown}<div>{_strongest(means)}</div></div>'
    return f"{STYLE}<p><b>{escape(means.headline())}</b></p>{side}{foot}"


def _map(means: ComponentMeans, colours: EffectScale) -> str:
    layers, n_heads = means.mean.shape
    cells = torch.arange(layers * n_heads).reshape(layers, n_heads).tolist()
    rows = [f"L{means.component(row[0]).layer}" for row in cells]

    def cell(i: int) -> str:
        found = means.component(i)
        return cell_html(found.mean, _said(means, found), UNSURE if found.low <= 0 <= found.high else "", colours)

    return drawn(Grid(rows, [f"H{head}" for head in range(n_heads)], cells, []), cell)


def _bars(means: ComponentMeans, colours: EffectScale) -> str:
    """A bar for each layer in their order, or for each of the strongest neurons."""
    cells = list(range(means.mean.numel())) if means.axes == ("layer",) else strongest(means.mean, MOST_ROWS)
    rows = []
    for found in map(means.component, cells):
        share = found.mean / (colours.high or 1.0)
        halves = "".join(half_bar(share, below) for below in ([True, False] if colours.signed else [False]))
        says = escape(_said(means, found))
        rows.append(
            f'<tr><th scope="row" title="{says}">{escape(_short(found))}</th>{halves}<td class="n">{found.mean:.4g}</td>'
            f'<td class="n">{found.low:.3g} to {found.high:.3g}</td></tr>'
        )
    return f'<table class="jscope-map"><tbody>{"".join(rows)}</tbody></table>'


def _strongest(means: ComponentMeans, k: int = 10) -> str:
    rows = [
        [
            str(rank),
            _short(found),
            f"{found.mean:.4g}",
            f"{found.low:.3g} to {found.high:.3g}",
            percent(found.in_top),
            found.name,
        ]
        for rank, found in enumerate(means.top(min(k, means.mean.numel())), start=1)
    ]
    return table(["", "component", f"mean ({means.unit})", "95 %", f"in the top {means.most} of", "name"], rows)


def _short(found: MeanEffect) -> str:
    name = f"L{found.layer}" + ("" if found.head is None else f"H{found.head}")
    return name if found.unit is None else f"{name} unit {found.unit}"


def _said(means: ComponentMeans, found: MeanEffect) -> str:
    """``L9H6 blocks.9.attn.hook_z head 6: 0.12 nat (KL), 95 % 0.1 to 0.14, in the top 10 of 93.0% of prompts``."""
    return (
        f"{_short(found)} {found.name}: {found.mean:.4g} {means.unit}, 95 % {found.low:.3g} to {found.high:.3g}, "
        f"in the top {means.most} of {percent(found.in_top)} of prompts"
    )
