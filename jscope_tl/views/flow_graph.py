"""`flow`: the heads that carry a token's influence to a prediction, as a graph over positions and layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from jscope_tl.components.token_flow import FlowEdge, TokenFlow
from jscope_tl.errors import InputError, count
from jscope_tl.results.text import percent, visible
from jscope_tl.views.circuitsvis_views import View

UP, DOWN = "#bf5400", "#5e3c99"
"""Colours of positive and of negative influence: orange and purple, which are distinguishable with colour blindness."""
PALE = {UP: "#f6d3b3", DOWN: "#d9cfe8"}
N = 30
LEAST = 0.02
"""The share of the total influence that an edge must carry to be drawn."""
COLUMN, GAP, LABEL, PAD, COLLAPSED = 46, 18, 15, 9, 22
"""Distances in pixels: between columns, an additional gap where tokens are left out, the height of a label above its line, the space above
and below the lines of a layer, and the height of layers without lines."""
LEFT, RIGHT, TOP = 104, 120, 44
LETTER = 6.6
"""The width of a letter of a label, in pixels."""
WIDEST = 15.0
"""The width, in pixels, of a line that carries the whole influence."""
MOST_COLUMNS = 32
"""The largest number of tokens that are all shown; in longer prompts only tokens with an edge are shown."""


@dataclass(frozen=True)
class Bundle:
    """The drawn edges of one layer with the same source, destination and sign."""

    layer: int
    src: int
    dest: int
    edges: tuple[FlowEdge, ...]

    @property
    def influence(self) -> float:
        """The summed influence of all edges."""
        return sum(edge.influence for edge in self.edges)

    @property
    def label(self) -> str:
        """``L9H6``, or ``L9 H6 H2`` for several heads, the strongest first."""
        if len(self.edges) == 1:
            return self.edges[0].name
        return " ".join([f"L{self.layer}", *(f"H{edge.head}" for edge in self.edges)])


@dataclass(frozen=True)
class Band:
    """A layer with its bundles, each on its own lane, or several layers without bundles, from ``bottom`` up to ``top``.

    Pixels count downwards.
    """

    first: int
    last: int
    bundles: tuple[Bundle, ...]
    lanes: tuple[float, ...]
    bottom: float
    top: float


@dataclass(frozen=True)
class Layout:
    """The layout of the picture: columns by position, bands from the bottom up, and the number of pixels for a unit of influence."""

    columns: dict[int, float]
    bands: tuple[Band, ...]
    width: float
    height: float
    floor: float
    scale: float


def flow(result: TokenFlow, *, n: int = N) -> View:
    """A graph of a token's influence through the layers: positions from left to right, layers from the bottom up.

    In the layer of a head, a line goes from the position that the head reads from to the position that it writes to; heads with the same
    positions and sign share a line. Its width is proportional to the influence. Orange raises the explained quantity, purple lowers it. Pale
    columns are influence that stays at a position. The influence is that of the linear approximation of `patching.flow`. Only the strongest
    edges are drawn, and the caption gives their share; layers without drawn edges are merged. Hovering shows the numbers.

    Args:
        result: the result of `jscope_tl.patching.flow`.
        n: the largest number of edges that are drawn.

    Returns:
        A `View`: a notebook displays it, ``save(path)`` writes a page. It is one SVG without a script.

    Raises:
        InputError: ``result`` is not a `TokenFlow`, or ``n`` is not 1 or more.

    Example:
        >>> import jscope_tl as js
        >>> flow = js.patching.flow(js.load_pocket_model(), "the keys to the cabinet near the doors", 2, target=" are")
        >>> "L1H3" in js.views.flow(flow).body
        True
    """
    if not isinstance(result, TokenFlow):
        raise InputError(f"This view takes the TokenFlow that js.patching.flow returns; got a {type(result).__name__}.")
    least = LEAST * _most(result)
    drawn = [edge for edge in result.edges[: count("n", n, 1)] if abs(edge.influence) >= least]
    says = "".join(f'<p style="margin:.3em 0;font-size:90%">{escape(line)}</p>' for line in _caption(result, drawn))
    return View(result.headline(), f'<div style="overflow-x:auto">{_svg(result, drawn)}</div>{says}', ())


def _caption(result: TokenFlow, drawn: Sequence[FlowEdge]) -> list[str]:
    share = sum(abs(edge.influence) for edge in drawn) / (float(result.sizes.sum()) or 1.0)
    return [
        f"The influence of {visible(result.str_tokens[result.source_position])!r} is {result.total:+.4g} {result.unit} at every level. The "
        f"{len(drawn)} strongest entries of attention patterns are drawn, with {percent(share)} of the sum of all sizes; pale columns: influence "
        "that stays at a position.",
        "Orange raises what is explained, purple lowers it. Linear picture: attention patterns and norms are held constant, MLPs are replaced by "
        "their derivative.",
        *(f"⚠ {warning}" for warning in result.warnings),
    ]


def flow_rows(result: TokenFlow, k: int = N) -> list[tuple[str, ...]]:
    """The strongest edges as rows of text; the first row has the column names."""
    head = ("head", "from", "to", f"influence ({result.unit})")
    return [
        head,
        *((e.name, _text(result, e.src), _text(result, e.dest), f"{e.influence:+.4g}") for e in result.top(k)),
    ]


def bundles(edges: Sequence[FlowEdge]) -> list[Bundle]:
    """Edges grouped by layer, source, destination and sign; the strongest bundle first."""
    found: dict[tuple[int, int, int, bool], list[FlowEdge]] = {}
    for edge in edges:
        found.setdefault((edge.layer, edge.src, edge.dest, edge.influence > 0), []).append(edge)
    together = [Bundle(layer, src, dest, tuple(some)) for (layer, src, dest, _), some in found.items()]
    return sorted(together, key=lambda bundle: -abs(bundle.influence))


def _layout(result: TokenFlow, drawn: Sequence[FlowEdge]) -> Layout:
    columns, right = _columns(result, drawn)
    together = bundles(drawn)
    # Heads with opposite signs may each carry more than the total influence.
    scale = WIDEST / max([_most(result), *(abs(bundle.influence) for bundle in together)])
    floor = 34 + 0.72 * LETTER * max(len(_text(result, t)) for t in columns)
    groups = _groups(len(result.heads), together)
    heights = [_height(own, scale) for *_, own in groups]
    bottom, bands = TOP + sum(heights), []
    for (first, last, own), tall in zip(groups, heights, strict=True):
        lanes, y = [], bottom - PAD
        for bundle in own:
            lanes.append(y - _wide(bundle, scale) / 2)
            y -= LABEL + _wide(bundle, scale)
        bands.append(Band(first, last, own, tuple(lanes), bottom, bottom - tall))
        bottom -= tall
    return Layout(columns, tuple(bands), right + RIGHT, TOP + sum(heights) + floor, floor, scale)


def _groups(n_layers: int, together: Sequence[Bundle]) -> list[tuple[int, int, tuple[Bundle, ...]]]:
    """Each layer with its bundles; consecutive layers without bundles are merged."""
    groups: list[tuple[int, int, tuple[Bundle, ...]]] = []
    for layer in range(n_layers):
        own = tuple(bundle for bundle in together if bundle.layer == layer)
        if not own and groups and not groups[-1][2]:
            groups[-1] = (groups[-1][0], layer, ())
        else:
            groups.append((layer, layer, own))
    return groups


def _most(result: TokenFlow) -> float:
    """The largest influence in the picture."""
    return max(abs(result.total), float(result.levels.abs().max())) or 1.0


def _wide(bundle: Bundle, scale: float) -> float:
    return max(1.4, scale * abs(bundle.influence))


def _height(own: Sequence[Bundle], scale: float) -> float:
    """The height of a band; the name and the numbers of a layer need two lines."""
    return max(34.0, 2 * PAD + sum(LABEL + _wide(bundle, scale) for bundle in own)) if own else float(COLLAPSED)


def _columns(result: TokenFlow, drawn: Sequence[FlowEdge]) -> tuple[dict[int, float], float]:
    """The x coordinate of each shown position, and of the last one."""
    used = {result.source_position, result.position, *(t for edge in drawn for t in (edge.src, edge.dest))}
    shown = range(result.position + 1) if result.position < MOST_COLUMNS else sorted(used)
    columns, x, before = dict[int, float](), float(LEFT), -1
    for t in shown:
        x += GAP * (t > before + 1) + COLUMN * bool(columns)
        columns[t], before = x, t
    return columns, x


def _text(result: TokenFlow, t: int) -> str:
    return f"{visible(result.str_tokens[t]).strip()} {t}"


def _svg(result: TokenFlow, drawn: Sequence[FlowEdge]) -> str:
    layout = _layout(result, drawn)
    says = escape(result.headline(), quote=True)
    parts = [
        f'<svg width="{layout.width:.0f}" height="{layout.height:.0f}" role="img" aria-label="{says}" '
        f'viewBox="0 0 {layout.width:.0f} {layout.height:.0f}" font-family="system-ui,sans-serif" font-size="12">',
        f'<rect width="{layout.width:.0f}" height="{layout.height:.0f}" fill="#fff"/>',
        *(part for band in layout.bands for part in _background(result, layout, band)),
        *(_stay(result, layout, band, t) for band in layout.bands for t in layout.columns),
        *_tokens(result, layout),
        *(_line(result, layout, band, lane) for band in layout.bands for lane in range(len(band.bundles))),
        "</svg>",
    ]
    return "".join(parts)


def _background(result: TokenFlow, layout: Layout, band: Band) -> list[str]:
    """The name of the layer and the influence through its attention; for layers without an edge only the name."""
    middle, first = (band.bottom + band.top) / 2 + 4, band.first
    name = f"layer {first}" if first == band.last else f"layers {first}–{band.last}"
    border = f'<line x1="0" x2="{layout.width:.0f}" y1="{band.top:.1f}" y2="{band.top:.1f}" stroke="#eaeef2"/>'
    if not band.bundles:
        return [border, f'<text x="6" y="{middle:.1f}" fill="#8c959f">{name}</text>']
    by_layer = result.by_layer.loc[first]
    parts = f"of {result.total:+.4g}: " + ", ".join(f"{by_layer[part]:+.4g} {part}" for part in by_layer.index)
    return [
        border,
        f'<g><title>layer {first}, {parts}</title><text x="6" y="{middle - 6:.1f}" fill="#1f2328">{name}</text>'
        f'<text x="6" y="{middle + 8:.1f}" font-size="10.5" fill="#57606a">attention {by_layer["attention"]:+.3g}</text></g>',
    ]


def _stay(result: TokenFlow, layout: Layout, band: Band, t: int) -> str:
    """The column of a position in a band: the part of its influence that is there both before and after the band."""
    before, after = float(result.levels[band.first, t]), float(result.levels[band.last + 1, t])
    kept = min(abs(before), abs(after)) if before * after > 0 else 0.0
    x, wide = layout.columns[t], layout.scale * kept
    faint = f'<line x1="{x}" x2="{x}" y1="{band.bottom:.1f}" y2="{band.top:.1f}" stroke="#eaeef2"/>'
    if wide < 0.3:
        return faint
    said = f"at {_text(result, t)}: {before:+.3g} before layer {band.first}, {after:+.3g} after layer {band.last}"
    return (
        f'<line x1="{x}" x2="{x}" y1="{band.bottom:.1f}" y2="{band.top:.1f}" stroke="{PALE[_colour(before)]}" stroke-width="{wide:.1f}">'
        f"<title>{escape(said)}</title></line>"
    )


def _colour(influence: float) -> str:
    return UP if influence >= 0 else DOWN


def _tokens(result: TokenFlow, layout: Layout) -> list[str]:
    """The tokens below the graph, a ring at the source, and a square with the explained target above the explained position."""
    bottom, top = layout.height - layout.floor, TOP
    found = []
    for t, x in layout.columns.items():
        marked = t in (result.source_position, result.position)
        weight = ' font-weight="700"' if marked else ""
        found.append(
            f'<text transform="translate({x + 4:.1f},{bottom + 16:.1f}) rotate(-45)" text-anchor="end"{weight}>{escape(_text(result, t))}</text>'
        )
    source, last = layout.columns[result.source_position], layout.columns[result.position]
    explained = escape(f"explained: {result.scope}{result.asked}")
    return [
        *found,
        f'<circle cx="{source:.1f}" cy="{bottom:.1f}" r="7" fill="#fff" stroke="#1f2328" stroke-width="2.5"><title>the source</title></circle>',
        f'<rect x="{last - 6:.1f}" y="{top - 6:.1f}" width="12" height="12" fill="#fff" stroke="#1f2328" stroke-width="2.5"/>',
        f'<text x="{last + 6:.1f}" y="{top - 14:.1f}" text-anchor="{"end" if last > 420 else "start"}" font-weight="600">{explained}</text>',
    ]


def _line(result: TokenFlow, layout: Layout, band: Band, lane: int) -> str:
    """The line of a bundle: from the source position up to its lane, along the lane, and up to the destination position."""
    bundle, y = band.bundles[lane], band.lanes[lane]
    x1, x2, wide = layout.columns[bundle.src], layout.columns[bundle.dest], _wide(bundle, layout.scale)
    if x1 == x2:  # the head reads from the position that it writes to
        path, start, base = f"M{x1 - 9} {y - 4:.1f} h18", x1 + 14, y
    else:
        bend = min(8.0, abs(x2 - x1) / 2, band.bottom - y, y - band.top)
        path = f"M{x1} {band.bottom:.1f} V{y + bend:.1f} Q{x1} {y:.1f} {x1 + bend} {y:.1f} H{x2 - bend} Q{x2} {y:.1f} {x2} {y - bend:.1f} V{band.top:.1f}"
        start, base = x1 + wide / 2 + 4, y - wide / 2 - 3
    said, colour = "\n".join(result.said(edge) for edge in bundle.edges), _colour(bundle.influence)
    return (
        f'<g><title>{escape(said)}</title><path d="{path}" fill="none" stroke="{colour}" stroke-width="{wide:.1f}" stroke-opacity=".85"/>'
        f'<text x="{start:.1f}" y="{base:.1f}" font-size="11" fill="{colour}" stroke="#fff" stroke-width="3" paint-order="stroke">'
        f"{bundle.label} {bundle.influence:+.3g}</text></g>"
    )
