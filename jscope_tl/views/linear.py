"""`linearity`: predicted and actual changes for growing perturbations."""

from typing import TYPE_CHECKING

from jscope_tl.diagnostics.linear_range import TOLERANCE, Linearity
from jscope_tl.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def linearity(result: Linearity) -> "Figure":
    """The sizes of predicted and actual changes, and the error of the predictions, on logarithmic axes.

    Args:
        result: the result of `jscope_tl.diagnostics.linearity`.

    Example:
        >>> import jscope_tl as js
        >>> found = js.diagnostics.linearity(js.load_pocket_model(), "the keys to the cabinet", "log_prob")
        >>> len(js.views.linearity(found).axes)
        2
    """
    from jscope_tl.views.notebook_figure import NotebookFigure

    if not isinstance(result, Linearity):
        raise InputError(f"This view takes what js.diagnostics.linearity returns; got a {type(result).__name__}.")
    figure = NotebookFigure(figsize=(8.5, 3.4), layout="constrained")
    changes, errors = figure.subplots(1, 2)
    parts = {"its own direction": slice(0, 1), "random directions": slice(1, None)}
    for colour, (name, part) in zip(("C0", "0.5"), parts.items(), strict=True):
        for values, style, says in ((result.predicted, "--", "predicted"), (result.actual, "-", "actual")):
            size = values[part].square().mean((0, 1)).sqrt()
            changes.plot(result.sizes, size, style, color=colour, label=f"{says}, {name}")
    errors.plot(result.sizes, result.own_error, color="C0", label="its own direction")
    errors.plot(result.sizes, result.random_error, color="0.5", label="random directions")
    errors.axhline(TOLERANCE, color="C3", linewidth=1, label=f"{TOLERANCE:.0%}")
    changes.set_ylabel(f"change, {result.unit}", parse_math=False)
    errors.set_ylabel("error relative to the prediction")
    for axis in (changes, errors):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("perturbation / norm of the vector")
        axis.legend(fontsize="x-small")
    figure.suptitle(
        f"{result.scope} scope{result.asked}, moving {result.str_token!r} at position {result.source}",
        fontsize="medium",
        parse_math=False,
    )
    return figure
