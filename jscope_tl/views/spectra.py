"""`spectrum`: the share of the leading directions in the energy of every position, in matplotlib."""

from typing import TYPE_CHECKING, Any

from jscope_tl.errors import InputError
from jscope_tl.results.spectrum import Spectrum
from jscope_tl.views.figures import figure_of, label_positions, make_axes, set_title
from jscope_tl.views.scale import left_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_DIRECTIONS = 4
REST = "#d0d7de"


def spectrum(result: Spectrum, *, ax: Any = None) -> "Figure":
    """Stacked bars of ``σ²`` for the leading directions, up to the energy ``Σ σ²`` (for Fisher: the trace), and below them the effective rank.

    The scale of the bars ends at the highest position outside BOS.

    Args:
        result: a `Spectrum`.
        ax: two matplotlib axes to draw in, for the energy and for the effective rank; None: a new figure.

    Returns:
        The figure.

    Raises:
        InputError: ``result`` is not a `Spectrum`, or ``ax`` is not two axes.

    Example:
        >>> import jscope_tl as js
        >>> found = js.spectrum(js.load_pocket_model(), "the keys to the cabinet", of="fisher")
        >>> js.views.spectrum(found).axes[1].get_ylabel()
        'effective rank'
    """
    if not isinstance(result, Spectrum):
        raise InputError(f"This view takes a Spectrum, which js.spectrum returns; got {type(result).__name__}.")
    above, below = make_axes(ax, 2, (min(14.0, 3 + 0.35 * len(result.str_tokens)), 5.0))
    _draw_energy(above, result)
    below.bar(range(len(result.str_tokens)), result.effective_rank.tolist(), color="#57606a", width=0.8)
    below.set_ylabel("effective rank")
    label_positions(below, result.str_tokens)
    return figure_of(above)


def _draw_energy(axis: "Axes", result: Spectrum) -> None:
    from matplotlib import colormaps

    places = range(len(result.str_tokens))
    parts = result.singular_values[:, :MOST_DIRECTIONS].square().T
    bottom = parts.new_zeros(len(places))
    for i, part in enumerate(parts):
        colour = colormaps["Oranges"](0.9 - 0.2 * i)
        axis.bar(places, part.tolist(), bottom=bottom.tolist(), color=colour, width=0.8, label=f"direction {i}")
        bottom = bottom + part
    rest = (result.energy - bottom).clamp_min(0)
    axis.bar(places, rest.tolist(), bottom=bottom.tolist(), color=REST, width=0.8, label="all others")
    heights = [energy for i, energy in enumerate(result.energy.tolist()) if i not in result.off_scale]
    highest = max(heights, default=0.0)
    if highest > 0:
        axis.set_ylim(0, 1.05 * highest)
    axis.set_ylabel(f"σ², ({result.unit})²", fontsize="small", parse_math=False)
    axis.legend(fontsize="small")
    what = "Jacobian" if result.of == "jacobian" else "pulled-back Fisher matrix"
    title = f"Spectrum of the {what} of the prediction after position {result.position}{result.prepended}"
    set_title(axis, "; ".join([title, *left_out([result])]))
