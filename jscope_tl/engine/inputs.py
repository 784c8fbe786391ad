"""The variable that rows are derivatives with respect to: a token's vector, or scaling factors of this vector or of its entries.

A reduction is a choice of coordinates ``s`` for the input, ``x_t = x0_t + s_t ⊙ (x_t - x0_t)`` at ``s = 1``. Rows with
respect to ``s_t`` are then already multiplied by the input, and can be used like all other rows: for scores, for estimates with
errors, and for layer maps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError, nearest

X = Float[Tensor, "batch pos d_in"]
Coordinates = tuple[Float[Tensor, "1 all_pos d_s"], X]


class Reduction(ABC):
    """How rows ``C J_t`` become scores: the coordinates of the input that rows refer to, and the unit of the scores.

    Attributes:
        name: the name for ``reduction=``.
        formula: the formula of the score.
    """

    name: ClassVar[str]
    formula: ClassVar[str]

    @abstractmethod
    def cut(self, x: X, difference: X) -> Coordinates:
        """The coordinates that rows refer to, as a leaf of the graph, and ``x`` computed from them; ``difference`` is ``x - x0``."""

    def unit(self, per_x: str, effect: str) -> str:
        """The unit of the score: that of the explained quantity, or this per unit of ``x``."""
        return effect


class Norm(Reduction):
    """The coordinates are the vector itself: the score is the gradient norm, in units of the explained quantity per unit of ``x``."""

    name, formula = "row_norm", "‖C J_t‖"

    def cut(self, x: X, difference: X) -> Coordinates:
        """The vectors of all prompts, concatenated."""
        flat = rearrange(x, "batch pos d -> 1 (batch pos) d")
        leaf = flat.clone() if flat.requires_grad else flat.detach().clone().requires_grad_()
        return leaf, leaf.view_as(x).clone()  # a copy, because later hooks may change it in place

    def unit(self, per_x: str, effect: str) -> str:
        """Per unit of ``x``."""
        return per_x


class Dot(Reduction):
    """The coordinate is one factor for the whole vector: the score is gradient x input."""

    name, formula = "dot", "|C J_t (x_t - x0_t)|"

    def cut(self, x: X, difference: X) -> Coordinates:
        """A factor for each vector."""
        return _factors(x, difference, 1)


class Elementwise(Reduction):
    """The coordinates are factors for each entry of the vector: the score is the norm of the elementwise gradient x input."""

    name, formula = "elementwise", "‖C J_t ⊙ (x_t - x0_t)‖"

    def cut(self, x: X, difference: X) -> Coordinates:
        """A factor for each entry."""
        return _factors(x, difference, x.shape[-1])


def _factors(x: X, difference: X, d_s: int) -> Coordinates:
    batch, pos, _ = x.shape
    leaf = torch.ones(1, batch * pos, d_s, dtype=x.dtype, device=x.device, requires_grad=True)
    s = rearrange(leaf, "1 (batch pos) d_s -> batch pos d_s", batch=batch)
    return leaf, x + (s - 1) * difference


NORM = Norm()
REDUCTIONS: dict[str, Reduction] = {reduction.name: reduction for reduction in (NORM, Dot(), Elementwise())}


def to_reduction(reduction: Any) -> Reduction:
    """The reduction of that name; an error with the nearest name if there is none."""
    if isinstance(reduction, Reduction):
        return reduction
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        known = "; ".join(f"{name!r}, {known.formula}" for name, known in REDUCTIONS.items())
        raise InputError(f"There is no reduction {reduction!r}.{nearest(str(reduction), REDUCTIONS)} Known: {known}.")
    return REDUCTIONS[reduction]


@dataclass(frozen=True)
class Inputs:
    """The variable of the Jacobians at a hook point, and the point at which the model is linearised.

    Attributes:
        reduction: the coordinates.
        origin: ``x0``, one vector for all positions or one for each; None means zero.
        place: a function from the activations of the prompt to those at which the model is linearised; None: the same.
    """

    reduction: Reduction = NORM
    origin: Float[Tensor, "*pos d_in"] | None = None
    place: Callable[[X], X] | None = None

    def cut(self, activation: X) -> Coordinates:
        """The coordinates that rows refer to, and the activation computed from them, with which the forward pass continues."""
        x = activation if self.place is None else self.place(activation)
        # Along a path, rows are multiplied by the prompt's activation minus the origin, at every point.
        difference = activation.detach() if self.origin is None else activation.detach() - self.origin.to(activation)
        return self.reduction.cut(x, difference)
