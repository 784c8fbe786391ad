"""Figures of a corpus: the influence of tokens in the prompts of a run, and the agreement of two runs."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from jscope_tl.corpus.summary import ORDERED, Summary, SummaryRow
from jscope_tl.corpus.two_runs import RunAgreement
from jscope_tl.errors import InputError, count
from jscope_tl.results.text import visible
from jscope_tl.views.figures import BAR, MARK, figure_of, make_axes, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 20
"""The largest number of rows of a ranking."""
CHANCE = "0.55"
AXIS = "score, times chance"
LABELS = {"distance": "distance: tokens before the explained position", "position": "position in the prompt"}


def summary(found: Any, *, most: int = MOST, ax: Any = None) -> "Figure":
    """The score of the tokens of each category relative to chance, with 95 % intervals.

    Distances and positions are on the x axis; tokens, classes and sources are on the y axis, with the highest on top. Means over a single
    prompt are hollow circles. The line at 1 is chance: by default the case in which all tokens of a prompt have the same score.

    Args:
        found: a `Summary`, from `jscope_tl.corpus.by_distance` or a similar function.
        most: how many rows of a ranking are drawn, or of each target if rows are grouped by target.
        ax: matplotlib axes to draw in; None: a new figure.

    Returns:
        The figure.

    Raises:
        InputError: ``found`` is not a summary, or has no rows.

    Example:
        >>> import tempfile
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), [prompt.text for prompt in js.pocket_prompts("agreement", 8)]
        >>> run = js.corpus.run(model, prompts, tempfile.mkdtemp(), "temperature", progress=False)
        >>> js.views.summary(js.corpus.by_distance(run)).axes[0].get_xlabel()
        'distance: tokens before the explained position'
    """
    if not isinstance(found, Summary):
        raise InputError(
            f"This view takes a summary of a corpus, as js.corpus.by_distance returns it; got a {type(found).__name__}."
        )
    if not found.rows:
        raise InputError(f"This summary has no rows to draw: {'; '.join(found.notes) or 'nothing was counted'}.")
    if found.by in ORDERED:
        rows = list(found.rows)
        (axis,) = make_axes(ax, 1, (max(6.0, 2.0 + 0.33 * len(rows)), 3.6))
        _draw_ordered(axis, found, rows)
    else:
        rows = _ranked(found, count("most", most, 1))
        (axis,) = make_axes(ax, 1, (7.0, 1.5 + 0.23 * len(rows)))
        _draw_ranking(axis, found, rows)
    set_title(axis, found.headline())
    return figure_of(axis)


def agreement(found: Any, *, ax: Any = None) -> "Figure":
    """The agreement of two runs: the mean of each measure over prompts with its 95 % interval. A cross marks the chance level.

    Args:
        found: the result of `jscope_tl.corpus.agreement`.
        ax: matplotlib axes to draw in; None: a new figure.

    Returns:
        The figure.

    Raises:
        InputError: ``found`` is something else.
    """
    if not isinstance(found, RunAgreement):
        raise InputError(f"This view takes what js.corpus.agreement returns; got a {type(found).__name__}.")
    (axis,) = make_axes(ax, 1, (6.4, 2.2))
    for y, row in enumerate(found.rows):
        axis.plot([row.chance], [y], "x", color=CHANCE, markersize=6, zorder=2)
        if not np.isnan(row.mean.low):
            axis.hlines(y, row.mean.low, row.mean.high, color=MARK, linewidth=1.6, zorder=3)
        axis.plot([row.mean.mean], [y], "o", color=MARK, markersize=5, zorder=4)
    axis.set_yticks(range(len(found.rows)), [row.name for row in found.rows], fontsize="small", parse_math=False)
    axis.set_ylim(len(found.rows) - 0.5, -0.5)
    axis.set_xlim(min(-0.05, *(row.mean.mean - 0.05 for row in found.rows)), 1.05)
    axis.set_xlabel("1: the same; cross: chance", fontsize="small")
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)
    set_title(axis, found.headline())
    return figure_of(axis)


def _ranked(found: Summary, most: int) -> list[SummaryRow]:
    """The first rows of each group; fewer rows if there are several groups."""
    groups = found.groups
    each = most if groups == [""] else min(most, 5)
    return [row for group in groups for row in [r for r in found.rows if r.group == group][:each]]


def _draw_ordered(axis: "Axes", found: Summary, rows: Sequence[SummaryRow]) -> None:
    x = np.arange(len(rows))
    low, high, means = _limits(rows)
    axis.axhline(1, color=CHANCE, linewidth=1, linestyle="--", zorder=1)
    axis.vlines(x, low, high, color=MARK, linewidth=1.6, zorder=2)
    axis.plot(x, means, "-", color=MARK, linewidth=0.8, zorder=3)
    _points(axis, x, means, rows, MARK)
    turned = 90 if max(len(row.name) for row in rows) > 4 and len(rows) > 6 else 0
    axis.set_xticks(x, [row.name for row in rows], fontsize="small", rotation=turned, parse_math=False)
    axis.set_xlabel(LABELS[found.by])
    axis.set_ylabel(AXIS, fontsize="small")
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)


def _draw_ranking(axis: "Axes", found: Summary, rows: Sequence[SummaryRow]) -> None:
    y = np.arange(len(rows))
    low, high, means = _limits(rows)
    axis.axvline(1, color=CHANCE, linewidth=1, linestyle="--", zorder=1)
    axis.hlines(y, low, high, color=BAR, linewidth=1.6, zorder=2)
    _points(axis, means, y, rows, BAR)
    for i, (row, following) in enumerate(pairwise(rows)):
        if row.group != following.group:
            axis.axhline(i + 0.5, color="0.85", linewidth=0.8)
    axis.set_yticks(y, [_label(row) for row in rows], fontsize="small", parse_math=False)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(f"{AXIS} (dashed); in brackets: prompts")
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)


def _points(axis: "Axes", x: Any, y: Any, rows: Sequence[SummaryRow], colour: str) -> None:
    """The means; those over a single prompt, which have no interval, are hollow."""
    face = [colour if row.n > 1 else "white" for row in rows]
    axis.scatter(x, y, s=18, color=face, edgecolors=colour, zorder=4)


def _limits(rows: Sequence[SummaryRow]) -> tuple[list[float], list[float], list[float]]:
    """The limits of the intervals, and the means. If only one prompt has a category, the limits are the mean."""
    means = [row.ratio.mean for row in rows]
    low, high = ([m if np.isnan(limit) else limit for m, limit in zip(means, limits, strict=True)]
                 for limits in ([row.ratio.low for row in rows], [row.ratio.high for row in rows]))  # fmt: skip
    return low, high, means


def _label(row: SummaryRow) -> str:
    name = f"{visible(row.name)} ({row.n})"
    return f"{visible(row.group)!r} ← {name}" if row.group else name
