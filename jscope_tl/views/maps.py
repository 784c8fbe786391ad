"""`heatmap`: scores over layers or predictions as a coloured map."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.pattern_entries import PATTERN
from jscope_tl.errors import InputError, nearest
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.pattern import InfluencePattern
from jscope_tl.results.text import shortened, visible
from jscope_tl.results.text_attribution import TextAttribution
from jscope_tl.views.answer_words import left_out_of, n_sources, off_scale, row_text, row_tops, where
from jscope_tl.views.figures import MOST_LABELS, explained, figure_of, fit, label_positions, make_axes, set_title
from jscope_tl.views.scale import DECADES, Scale, left_out, scale_of, tops
from jscope_tl.views.together import as_list, legible, need_one_prompt, need_one_unit, what_differs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCALES = ("row", "row_log", "linear", "log")


def heatmap(results: Any, *, scale: str | None = None, template: bool = False, ax: Any = None) -> "Figure":
    """Scores as a map of layers by positions, or of destinations by sources.

    The colour scale ends at the highest score outside BOS (whose cells may exceed the scale), and a label explains it. A score is per
    unit of ``x``, and the norm of ``x`` grows over the layers, in some models a hundredfold after the first: on one common scale, all rows
    but the first would be blank. Therefore each row of a layer map and of a pattern has its own scale, with its highest score at the
    right. Entries of attention patterns (``at="pattern"``) have the same unit in every layer and share one scale; if there are many heads,
    the strongest are drawn (`Attribution.strongest`).

    Args:
        results: a layer map (an `Attribution` with ``at="resid_pre"`` or several hook points); several `Attribution` of the same prompt
            and unit, one row each; one `InfluencePattern`, whose rows are predictions; or one `TextAttribution`, whose rows are tokens or
            spans of the answer, and whose columns are its sources.
        scale: ``"row"``: each row from 0 to its own highest score; ``"row_log"``: each row on a logarithmic scale over the three decades
            below its highest score; ``"linear"``: all rows from 0 to the highest score of the map; ``"log"``: all rows on one logarithmic
            scale of at most three decades. None: ``"row"`` if several rows are hook points or predictions, else ``"linear"``.
        template: for a `TextAttribution`: whether BOS and the text of the chat template are columns too. They are never included in the
            scale.
        ax: matplotlib axes to draw in; None: a new figure.

    Returns:
        The figure.

    Raises:
        InputError: results of different prompts or units, or an unknown scale.

    Example:
        >>> import jscope_tl as js
        >>> layers = js.attribute(js.load_pocket_model(), "the keys to the cabinet", "semantic", at="resid_pre")
        >>> js.views.heatmap(layers).axes[1].get_ylabel()
        'share of the highest'
    """
    if isinstance(results, TextAttribution):
        return _answer_map(results, _known_scale(scale) or "row", template, ax)
    shown = as_list(results, (Attribution, InfluencePattern))
    need_one_prompt(shown)
    need_one_unit(shown)
    if len({result.scope for result in shown}) > 1:
        raise InputError(
            f"A map has one scope; these are {', '.join(sorted({r.scope for r in shown}))}. Draw one map for each."
        )
    if len(shown) > 1 and any(_is_map(result) for result in shown):
        raise InputError("Several maps cannot be drawn in one picture; draw each in its own axes (ax=).")
    chosen = _scale(scale, shown)
    shown, notes = ([legible(shown[0])[0]], legible(shown[0])[1]) if len(shown) == 1 else (shown, [])
    scores = torch.cat([result._rows()[0] for result in shown])
    labels = _row_labels(shown)
    beside = max(0.0, 0.08 * (max(map(len, labels)) - 15))  # inches that long labels take from the map and its title
    width = min(14.0, beside + max(7.0, 4 + 0.3 * scores.shape[1]))
    (axis,) = make_axes(ax, 1, (width, min(12.0, 2.2 + 0.3 * len(scores))))
    label_positions(axis, shown[0].str_tokens)
    step = -(-len(labels) // MOST_LABELS)
    axis.set_yticks(range(0, len(labels), step), labels[::step], fontsize="small", parse_math=False)
    draw_map(axis, scores, shown, chosen)
    set_title(axis, "; ".join([_title(shown), *notes, *left_out(shown)]))
    return figure_of(axis)


def _scale(scale: Any, shown: Sequence[Any]) -> str:
    if scale is None:
        layers = len({result.provenance.hook_point for result in shown})
        if layers == 1 and _is_of_patterns(shown[0]):
            return "linear"
        return "row" if max(layers, len(shown[0]._rows()[0])) > 1 else "linear"
    return str(_known_scale(scale))


def _known_scale(scale: str | None) -> str | None:
    if scale is not None and scale not in SCALES:
        raise InputError(f"scale is one of {', '.join(SCALES)}, or None; got {scale!r}.{nearest(scale, SCALES)}")
    return scale


def _answer_map(result: TextAttribution, scale: str, template: bool, ax: Any) -> "Figure":
    """Rows of an answer by their sources, with lines between messages."""
    n = max(n_sources(result, row) for row in range(len(result.rows)))
    kept = [j for j in range(n) if template or not result.hidden(result.sources[j])]
    if not kept:
        raise InputError("All sources are BOS or template text; template=True draws them.")
    scores, highest = result.scores[:, kept], row_tops(result)
    axis = _axis_of(result, kept, ax)
    least = float(scores[scores > 0].min()) if bool((scores > 0).any()) else 0.0
    top = float(highest.max())
    limits = Scale(max(least, top / 10**DECADES) if scale == "log" else 0.0, top, scale == "log")
    beyond = bool((scores > highest.unsqueeze(1)).any())
    draw_rows(axis, scores, highest, limits, scale, result.unit, beyond)
    owners = [where(result, result.sources[j]) for j in kept]
    for i, (one, following) in enumerate(pairwise(owners)):
        if one != following:
            axis.axvline(i + 0.5, color="#1f2328", linewidth=0.8)
    title = f"{result.scope} scope of the answer by {len(kept)} sources ({', '.join(dict.fromkeys(owners))}), at {result.provenance.hook_point}"
    set_title(axis, "; ".join([title, *left_out_of(result, template), *off_scale(result)]))
    return figure_of(axis)


def _axis_of(result: TextAttribution, kept: Sequence[int], ax: Any) -> "Axes":
    """Axes with the rows of an answer on the y axis and these sources on the x axis, with as many labels as are readable."""
    sources = [result.sources[j] for j in kept]
    across = [f"{shortened(visible(source.text), 30).strip()} {source.positions[0]}" for source in sources]
    down = [f"{shortened(visible(row_text(result, i)), 30).strip()} {i}" for i in range(len(result.rows))]
    height = min(12.0, 2 + 0.08 * max(map(len, across)) + 0.3 * len(down))
    (axis,) = make_axes(ax, 1, (min(14.0, max(7.0, 4 + 0.3 * len(kept))), height))
    for set_ticks, names, turned in ((axis.set_xticks, across, 90), (axis.set_yticks, down, 0)):
        step = -(-len(names) // MOST_LABELS)
        set_ticks(range(0, len(names), step), names[::step], rotation=turned, fontsize="small", parse_math=False)
    return axis


def _is_map(result: Any) -> bool:
    return isinstance(result, InfluencePattern) or bool(result.hook_points)


def _is_of_patterns(result: Any) -> bool:
    return isinstance(result, Attribution) and result.provenance.hook_point == PATTERN


def _title(shown: Sequence[Any]) -> str:
    first = shown[0]
    if isinstance(first, InfluencePattern):
        several = f"the predictions at {len(first.positions)} positions"
        of = several if len(first.positions) > 1 else f"the prediction at position {first.positions[0]}"
        return f"{first.scope} scope of {of}{first.asked}, at {first.provenance.hook_point}{first.prepended}"
    one = len({(r.position, r.prediction.target.token, r.baseline) for r in shown}) == 1
    return f"{explained(first) if one else f'{first.scope} scope'}{first.prepended}"


def draw_map(axis: "Axes", scores: Float[Tensor, "row pos"], shown: Sequence[Any], scale: str) -> None:
    """Rows of coloured scores, with a colour bar."""
    limits = scale_of(shown, scale.endswith("log"))
    draw_rows(
        axis, scores, torch.cat([tops(result) for result in shown]), limits, scale, shown[0].unit, bool(left_out(shown))
    )


def draw_rows(
    axis: "Axes",
    scores: Float[Tensor, "row pos"],
    highest: Float[Tensor, "row"],
    limits: Scale,
    scale: str,
    unit: str,
    beyond: bool,
) -> None:
    """Coloured scores, up to the ``highest`` score of each row or, on a common scale, to ``limits``; ``beyond``: some scores exceed the scale."""
    from matplotlib.colors import LogNorm, Normalize

    log, by_row = scale.endswith("log"), scale.startswith("row")
    values = torch.where(highest.unsqueeze(1) > 0, scores / highest.unsqueeze(1), 0.0) if by_row else scores
    limits = Scale(10**-DECADES, 1.0, log) if by_row else limits
    high = limits.high or 1.0
    norm = LogNorm(min(limits.low or high / 10, high * 0.999), high) if log else Normalize(0, high)
    values = torch.where(values > 0, values, torch.nan) if log else values
    image = axis.imshow(values.numpy(), aspect="auto", cmap="Oranges", norm=norm, interpolation="nearest")
    bar = axis.figure.colorbar(image, ax=axis, extend="max" if beyond else "neither", pad=0.02)
    meaning = "share of the highest" if by_row else unit
    bar.set_label(f"{meaning}{', logarithmic' if log else ''}", fontsize="x-small", parse_math=False)
    if by_row:
        _write_tops(axis, highest.tolist(), unit)


def _write_tops(axis: "Axes", highest: Sequence[float], unit: str) -> None:
    """Write the highest score of each row at its right end."""
    right = axis.secondary_yaxis("right")
    step = -(-len(highest) // MOST_LABELS)
    right.set_yticks(range(0, len(highest), step), [f"{top:.3g}" for top in highest[::step]], fontsize="x-small")
    right.tick_params(length=0)
    label = f"each row is on its own scale, up to its highest score at the right, in {unit}"
    fit(axis, axis.set_xlabel(label, fontsize="small", parse_math=False))


def _row_labels(shown: Sequence[Any]) -> list[str]:
    if isinstance(shown[0], InfluencePattern):
        return [f"{visible(shown[0].str_tokens[i]).strip()} {i}" for i in shown[0].positions]
    return list(shown[0].hook_points) or what_differs(shown)
