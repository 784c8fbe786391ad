"""`sources`: the sources of an answer as bars, for one row or for all rows."""

from typing import TYPE_CHECKING, Any

import torch

from jscope_tl.results.sources import Source
from jscope_tl.results.text import shortened, visible
from jscope_tl.results.text_attribution import TextAttribution
from jscope_tl.views.answer_words import (
    left_out_of,
    n_sources,
    need_text,
    off_scale,
    row_name,
    row_shares,
    row_tops,
    where,
)
from jscope_tl.views.figures import BAR, LINE, figure_of, fit, make_axes, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 40


def sources(result: Any, row: int | None = None, *, template: bool = False, ax: Any = None) -> "Figure":
    """A bar for each source of an answer, in the order of the text. With ``result.grouped("message")`` there is one bar for each message.

    For one row, the bars are scores with their standard errors, in the unit of the result. For all rows, they are shares of the highest
    score of each row, because scores of different rows are not comparable: a dot for each row after the source, and a bar to their median.
    If there are more than 40 sources, the strongest are drawn.

    Args:
        result: a `TextAttribution`.
        row: the number of the row, counted from 0; None: all rows.
        template: whether BOS and the text of the chat template have bars too. They are never included in the scale.
        ax: matplotlib axes to draw in; None: a new figure.

    Returns:
        The figure.

    Raises:
        InputError: ``result`` is not a `TextAttribution`, or the row does not exist.

    Example:
        >>> import jscope_tl as js
        >>> result = js.attribute_text(js.load_pocket_model(), "the keys to the cabinet . the door", " is old")
        >>> js.views.sources(result.grouped("sentence"), row=0).axes[0].get_xlabel()
        'nat per unit of x'
    """
    need_text(result)
    chosen = 0 if row is None and len(result.rows) == 1 else row
    chosen = None if chosen is None else result._row(chosen)
    drawn, notes = _drawn(result, chosen, template)
    (axis,) = make_axes(ax, 1, (8.0, 1.3 + 0.28 * len(drawn)))
    _bars(axis, result, chosen, drawn)
    names = [_name(result, result.sources[j]) for j in drawn]
    axis.set_yticks(range(len(drawn)), names, fontsize="small", parse_math=False)
    axis.invert_yaxis()
    axis.margins(y=0.02)
    fit(axis, axis.xaxis.label)
    of = f"all {len(result.rows)} rows" if chosen is None else row_name(result, chosen)
    set_title(
        axis, "; ".join([f"{result.scope} scope of {of}", *notes, *left_out_of(result, template), *off_scale(result)])
    )
    return figure_of(axis)


def _name(result: TextAttribution, source: Source) -> str:
    text = shortened(visible(source.text), 32).strip()
    return f"{text} {source.positions[0]} ({where(result, source)})"


def _drawn(result: TextAttribution, row: int | None, template: bool) -> tuple[list[int], list[str]]:
    """The sources with bars, in order, and a note if not all are drawn."""
    n = max(n_sources(result, i) for i in (range(len(result.rows)) if row is None else [row]))
    kept = [j for j in range(n) if template or not result.hidden(result.sources[j])]
    if len(kept) <= MOST_BARS:
        return kept, []
    size = row_shares(result).amax(0) if row is None else result.scores[row]
    best = sorted(kept, key=lambda j: -float(size[j]))[:MOST_BARS]
    return sorted(best), [f"the {MOST_BARS} strongest of {len(kept)} sources"]


def _bars(axis: "Axes", result: TextAttribution, row: int | None, drawn: list[int]) -> None:
    if row is not None:
        errors = None if result.stderr is None else result.stderr[row, drawn].tolist()
        axis.barh(range(len(drawn)), result.scores[row, drawn].tolist(), xerr=errors, color=BAR, ecolor=LINE)
        high = float(row_tops(result)[row])
        axis.set_xlim(0, 1.15 * high if high > 0 else None)
        axis.set_xlabel(result.unit, parse_math=False)
        return
    shares = row_shares(result)
    for i, j in enumerate(drawn):
        own = torch.tensor([float(shares[k, j]) for k in range(len(shares)) if j < n_sources(result, k)])
        axis.barh(i, float(own.quantile(0.5)), color=BAR)
        axis.plot(own.tolist(), [i] * len(own), ".", color=LINE, markersize=4)
    axis.set_xlim(0, 1.03)
    axis.set_xlabel("share of the highest score of the row: a dot for each row, a bar to their median")
