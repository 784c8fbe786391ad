"""`faithfulness`: the means of methods over prompts, with their intervals."""

from typing import TYPE_CHECKING

from jscope_tl.errors import InputError
from jscope_tl.faithfulness.results import Faithfulness

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jscope_tl.faithfulness.measures import Column

BASELINES = ("random", "random_direction", "attention", "attention_rollout")


def faithfulness(result: Faithfulness) -> "Figure":
    """The mean and the 95 % interval of every method, with a panel for each column and the best method of the first column on top.

    Baselines that do not depend on the target are grey. The arrow at a panel's name points to the better side.

    Args:
        result: one of the results of `jscope_tl.faithfulness.evaluate`.

    Example:
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), js.pocket_prompts("assistant", 3)
        >>> found = js.faithfulness.evaluate(model, prompts, ["log_prob", "random"], "known_cause")
        >>> len(js.views.faithfulness(found["known_cause"]).axes)
        4
    """
    from jscope_tl.views.notebook_figure import NotebookFigure

    if not isinstance(result, Faithfulness):
        raise InputError(
            f"This view takes a Faithfulness, which js.faithfulness.evaluate returns for each measure; got a {type(result).__name__}."
        )
    quoted = result.columns[0]
    order = sorted(result.methods, key=lambda method: (quoted.better or 1) * result.mean(method).mean)
    size = (3.2 * len(result.columns) + 1.8, 0.24 * len(order) + 1.3)
    figure = NotebookFigure(figsize=size, layout="constrained")
    for axis, column in zip(figure.subplots(1, len(result.columns), squeeze=False)[0], result.columns, strict=True):
        _draw(axis, result, order, column)
        axis.set_yticks(range(len(order)), order if column is quoted else [], fontsize="small", parse_math=False)
    n = result.mean(order[0]).n
    figure.suptitle(f"{result.measure}: means over {n} prompts of {result.model}, 95 % intervals", fontsize="medium")
    return figure


def _draw(axis: "Axes", result: Faithfulness, order: list[str], column: "Column") -> None:
    for y, method in enumerate(order):
        m = result.mean(method, column.name)
        colour = "0.55" if method in BASELINES else "C0"
        axis.plot([m.low, m.high], [y, y], color=colour, linewidth=1.4, zorder=2)
        axis.plot([m.mean], [y], "o", color=colour, markersize=4, zorder=3)
    axis.set_title(f"{column.name} {'→' if column.better > 0 else '←'} better", fontsize="small", parse_math=False)
    axis.grid(axis="x", color="0.9")
    axis.tick_params(axis="x", labelsize="small")
    axis.set_axisbelow(True)
