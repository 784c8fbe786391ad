"""`comparison`: the measured effects of patching, the effects that a scope predicts, and its scores."""

from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.patching.comparison import Comparison
from jscope_tl.results.text import visible
from jscope_tl.views.figures import figure_of, label_positions, make_axes, set_title
from jscope_tl.views.maps import draw_map
from jscope_tl.views.scale import left_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def comparison(result: Comparison, *, ax: Any = None) -> "Figure":
    """Three maps over layers and positions, one above the other: effect of patching, predicted effect, score.

    Each map has its own scale and unit, because first-order predictions can rank effects correctly but underestimate them by far. Orange:
    patching the cell raises the explained quantity; purple: it lowers it; a KL divergence has no sign. Cells that ``only_top`` left out are
    grey. The labels of the x axis are the tokens of the patched run, followed by ``<`` and the token of the other run if it differs.

    Args:
        result: the result of `jscope_tl.patching.compare`.
        ax: three matplotlib axes to draw in; None: a new figure.

    Returns:
        The figure.
    """
    if not isinstance(result, Comparison):
        raise InputError(
            f"This view takes the Comparison that js.patching.compare returns; got a {type(result).__name__}."
        )
    layers, pos = result.effects.shape
    axes = make_axes(ax, 3, (min(14.0, 3 + 0.35 * pos), 2.4 + 0.75 * layers))
    _draw(axes[0], result.effects, result)
    _draw(axes[1], result.predicted, result)
    draw_map(axes[2], result.scope.scores, [result.scope], "row")
    for axis in axes:
        axis.set_yticks(range(layers), result.scope.hook_points, fontsize="small")
        axis.set_xticks([])
    label_positions(
        axes[2], [_exchanged(a, b) for a, b in zip(result.str_tokens, result.source_str_tokens, strict=True)]
    )
    titles = [f"effect of patching ({result.direction}){_most(result.effects)}",
              f"effect that {result.scope.scope} scope{result.scope.asked} predicts{_most(result.predicted)}",
              "; ".join(["score, each layer on its own scale", *left_out([result.scope])])]  # fmt: skip
    for axis, title in zip(axes, titles, strict=True):
        set_title(axis, title)
    return figure_of(axes[0])


def _most(values: Float[Tensor, "layer pos"]) -> str:
    return f", at most {float(values.nan_to_num().abs().max()):.3g}"


def _draw(axis: "Axes", values: Float[Tensor, "layer pos"], result: Comparison) -> None:
    from matplotlib import colormaps

    known = values.nan_to_num()
    high = float(known.abs().max()) or 1.0
    signed = bool((known < 0).any())
    colours = colormaps["PuOr_r" if signed else "Oranges"].with_extremes(bad="#d0d7de")
    low = -high if signed else 0.0
    image = axis.imshow(values.numpy(), aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axis.figure.colorbar(image, ax=axis).set_label(result.effect_unit, fontsize="x-small", parse_math=False)


def _exchanged(token: str, other: str) -> str:
    """A token, followed by ``<`` and the token of the other run at this position if it differs."""
    return visible(token) if token == other else f"{visible(token).strip()} < {visible(other).strip()}"
