"""Figures in matplotlib: number series and next-token distributions, and helpers for all figures."""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from jscope_tl.errors import InputError, whole
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.base import PredictedToken
from jscope_tl.results.text import percent, visible
from jscope_tl.results.text_attribution import TextAttribution
from jscope_tl.views.scale import DECADES
from jscope_tl.views.together import as_list, need_no_map, need_one_prompt, need_one_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

BAR, LINE, MARK = "#d95f0e", "#1f2328", "#0550ae"
MOST_LABELS = 60
DELIMITERS, SIGNS = {"", ",", ";", "|", "/", "\n"}, {"-", "+", ".", "−", "*"}


def series(results: Any, *, log: bool = False, ax: Any = None) -> "Figure":
    """A number series as a line, and the influence of each number on its continuation as bars (as in the paper's Figs. 4, 5, 8-11).

    Only the numbers of the prompt are drawn; delimiters and BOS are left out, also of the scale. A ring marks the target (by default the
    number that follows in the prompt, or the most probable one if none follows), and a vertical line marks the explained position.

    Args:
        results: an `Attribution` of a prompt of numbers, or several of the same prompt and unit, drawn one above the other; or a
            `TextAttribution`, whose first row is drawn. The bar of a number with several tokens is the root of the sum of their squared
            scores.
        log: whether the axis of the influence is logarithmic.
        ax: matplotlib axes to draw in, one for each result; None: a new figure.

    Returns:
        The figure.

    Raises:
        InputError: the prompt is not a series, or the results have different prompts or units.

    Example:
        >>> import jscope_tl as js
        >>> result = js.attribute(js.load_pocket_model(), "29 , 35 , 41 , 47 , 53 ,", "temperature")
        >>> js.views.series(result).axes[0].get_ylabel()
        'value'
    """
    shown = as_list(results, (Attribution, TextAttribution))
    need_no_map(shown)
    need_one_prompt(shown)
    need_one_unit(shown)
    numbers = numbers_of(shown[0].str_tokens)
    axes = make_axes(ax, len(shown), (9.0, 2.6 * len(shown)))
    for axis, result in zip(axes, shown, strict=True):
        _draw_series(axis, result, numbers, log)
    axes[-1].set_xlabel("number of the series (delimiters are left out)")
    return figure_of(axes[0])


@dataclass(frozen=True)
class Number:
    """A number of a series: its value, and its first position and the one after the last."""

    value: int
    start: int
    stop: int


def numbers_of(texts: Sequence[str]) -> list[Number]:
    """Every number of a prompt, of one token or several; the delimiter between two numbers must be the same everywhere."""
    runs: list[list[int]] = []
    for i, text in enumerate(texts):
        if (
            _is_number(text)
            and runs
            and runs[-1][-1] == i - 1
            and text == text.lstrip()
            and not texts[i - 1][-1:].isspace()
        ):
            runs[-1].append(i)
        elif _is_number(text):
            runs.append([i])
    numbers = [Number(int("".join(texts[i] for i in run)), run[0], run[-1] + 1) for run in runs]
    if len(numbers) < 3:
        raise InputError(
            f"This prompt is not a number series: it has {len(numbers)} whole numbers in {len(texts)} tokens, and three are needed. "
            "js.views.tokens draws any prompt."
        )
    between = {"".join(texts[one.stop : following.start]).strip() for one, following in pairwise(numbers)}
    first = numbers[0].start
    before = texts[first - 1].strip() if first else ""
    if len(between) > 1 or not between <= DELIMITERS or before[-1:] in SIGNS:
        raise InputError(
            f"This prompt is not a series of positive whole numbers: {before!r} is before them and "
            f"{' and '.join(repr(text) for text in sorted(between)[:3])} between them. One delimiter is needed, such as a comma."
        )
    return numbers


def _is_number(text: str) -> bool:
    return text.strip().isdecimal()


def series_of(result: Attribution) -> tuple[list[int], list[float]]:
    """The numbers of a series up to the explained position, and the score of each.

    Raises:
        InputError: the prompt is not a series, or the result is a map.
    """
    need_no_map([result])
    seen = [number for number in numbers_of(result.str_tokens) if number.stop <= result.position + 1]
    return [number.value for number in seen], _bars(result, seen)[0] if seen else []


@dataclass(frozen=True)
class Drawn:
    """The explained target in a figure of `series`: its position, text, number of tokens and probability, and the title."""

    position: int
    target: str
    n_tokens: int
    probability: float
    title: str


def _drawn(result: Attribution | TextAttribution) -> Drawn:
    if isinstance(result, TextAttribution):
        row = result.rows[0]
        title = f"{result.scope} scope of {visible(row.text)!r}"
        return Drawn(result.text.n_prompt + row.start - 1, row.text, row.stop - row.start, row.probability, title)
    target, n = result.prediction.target, len(result.target_tokens) or 1
    return Drawn(result.position, target.str_token, n, target.probability, explained(result))


def _bars(result: Attribution | TextAttribution, numbers: Sequence[Number]) -> tuple[list[float], list[float] | None]:
    """The score of each number, and its standard error."""
    if isinstance(result, Attribution):
        scores, errors = result.together([(number.start, number.stop) for number in numbers])
        return scores.tolist(), None if errors is None else errors.tolist()
    places = [(result.text.offsets[n.start][0], result.text.offsets[n.stop - 1][1]) for n in numbers]
    grouped = result.grouped(places)
    columns = [next(j for j, s in enumerate(grouped.sources) if n.start in s.positions) for n in numbers]
    errors = grouped.stderr
    return grouped.scores[0, columns].tolist(), None if errors is None else errors[0, columns].tolist()


def _is_whole(drawn: Drawn, numbers: Sequence[Number], n_seen: int) -> bool:
    """Whether the target is a complete number, and not only its first digits."""
    sizes = [number.stop - number.start for number in numbers]
    return _is_number(drawn.target) and drawn.n_tokens == (sizes[n_seen] if n_seen < len(sizes) else max(sizes))


def _draw_series(axis: "Axes", result: Attribution | TextAttribution, numbers: Sequence[Number], log: bool) -> None:
    drawn = _drawn(result)
    seen = [number for number in numbers if number.stop <= drawn.position + 1]
    if not seen:
        raise InputError(f"There is no number up to the explained position {drawn.position}; explain a later position.")
    axis.plot(range(len(numbers)), [number.value for number in numbers], color=LINE, marker=".", linewidth=1, zorder=3)
    bars = axis.twinx()
    axis.set_zorder(bars.get_zorder() + 1)
    axis.patch.set_visible(False)
    heights, errors = _bars(result, seen)
    bars.bar(range(len(seen)), heights, color=BAR, alpha=0.55, width=0.9)
    if errors is not None:
        bars.errorbar(range(len(seen)), heights, errors, fmt="none", ecolor=BAR, linewidth=0.8)
    if log and max(heights) > 0:
        bars.set_yscale("log")
        bars.set_ylim(bottom=max(min(h for h in heights if h > 0) / 2, max(heights) / 10**DECADES))
    axis.axvline(len(seen) - 0.5, color=MARK, linewidth=1, linestyle=":")
    if _is_whole(drawn, numbers, len(seen)):
        says = f"target {drawn.target.strip()} ({percent(drawn.probability)})"
        axis.plot([len(seen)], [int(drawn.target)], "o", mfc="none", mec=MARK, ms=9, label=says, zorder=4)
        axis.legend(loc="best", fontsize="small")
    axis.set_ylabel("value")
    bars.set_ylabel(result.unit, color=BAR, fontsize="small", parse_math=False)
    set_title(axis, f"{drawn.title}, at {result.provenance.hook_point}{result.prepended}")


def prediction(result: Attribution, k: int | None = None, *, ax: Any = None) -> "Figure":
    """The next-token distribution that a result explains: its ``k`` most probable tokens, and the target.

    Args:
        result: an `Attribution`.
        k: the number of tokens; by default all that the result has, at most ten.
        ax: matplotlib axes to draw in; None: a new figure.

    Returns:
        The figure.

    Raises:
        InputError: ``k`` is not between 1 and the number of tokens of the result.
    """
    (result,) = _single(result)
    count = whole(k)
    most = len(result.prediction.top)
    count = most if k is None else count
    if count is None or not 1 <= count <= most:
        raise InputError(f"k is how many tokens to show, 1 to {most} for this result; got {k!r}.")
    tokens = list(result.prediction.top[:count])
    target = result.prediction.target
    if target.token not in {token.token for token in tokens}:
        tokens.append(target)
    (axis,) = make_axes(ax, 1, (5.0, 0.5 + 0.3 * len(tokens)))
    colours = [MARK if token.token == target.token else BAR for token in tokens]
    axis.barh(range(len(tokens)), [token.probability for token in tokens], color=colours)
    for i, token in enumerate(tokens):
        axis.text(token.probability, i, f" {percent(token.probability)}", va="center", fontsize="small")
    axis.set_yticks(range(len(tokens)), [_token_label(token, target) for token in tokens], parse_math=False)
    axis.invert_yaxis()
    axis.set_xlim(0, min(1.18, 1.25 * max(token.probability for token in tokens)))
    axis.set_xlabel("probability")
    axis.set_title(f"next token after position {result.position}", fontsize="medium", loc="left")
    return figure_of(axis)


def _single(result: Any) -> list[Attribution]:
    given = as_list(result)
    if len(given) > 1:
        raise InputError(f"This view takes one Attribution; got {len(given)}. Draw each in its own axes (ax=).")
    return given


def _token_label(token: PredictedToken, target: PredictedToken) -> str:
    return repr(visible(token.str_token)) + (" (target)" if token.token == target.token else "")


def explained(result: Attribution) -> str:
    """The explained prediction, for the title of a figure."""
    target = result.asked or f", target {result.prediction.target.str_token!r}"
    return f"{result.scope} scope of the prediction after position {result.position}{visible(target)}"


def label_positions(axis: "Axes", texts: Sequence[str]) -> None:
    """Label the x axis with tokens and their positions, as many as are readable."""
    step = -(-len(texts) // MOST_LABELS)
    places = range(0, len(texts), step)
    labels = [f"{visible(texts[i]).strip()} {i}" for i in places]
    axis.set_xticks(list(places), labels, rotation=90, fontsize="small", parse_math=False)


def set_title(axis: "Axes", text: str) -> None:
    """Set a title, broken into lines that fit the axes."""
    fit(axis, axis.set_title(text, fontsize="medium", loc="left", parse_math=False))


def fit(axis: "Axes", line: "Text") -> None:
    """Break a text into lines that are not wider than its axes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # saving the figure gives the same warnings
        figure_of(axis).draw_without_rendering()  # the layout determines the width of the axes
    text = re.sub(r"(?<!\w)'( [^' ]*)'", lambda token: token[0].replace(" ", "\u00a0"), line.get_text())
    per_line = len(text) * axis.bbox.width / max(line.get_window_extent().width, 1.0)
    line.set_text("\n".join(wrap(text, max(20, int(0.93 * per_line)))))


def figure_of(axis: "Axes") -> "Figure":
    """The whole figure, even if the axes belong to a subfigure."""
    return getattr(axis.figure, "figure", None) or axis.figure  # type: ignore[return-value]


def make_axes(ax: Any, n: int, size: tuple[float, float]) -> list["Axes"]:
    """The user's axes, or those of a new figure. The figure is closed in pyplot, because notebooks would show it twice."""
    from matplotlib import pyplot as plt

    from jscope_tl.views.notebook_figure import NotebookFigure

    if ax is None:
        figure, axes = plt.subplots(
            n, 1, figsize=size, layout="constrained", squeeze=False, sharex=True, FigureClass=NotebookFigure
        )
        plt.close(figure)
        return list(axes[:, 0])
    given = list(ax) if isinstance(ax, Iterable) else [ax]
    if len(given) != n or not all(hasattr(axis, "plot") for axis in given):
        raise InputError(f"ax is one matplotlib axes for each of the {n} results; got {ax!r}.")
    return given
