"""With respect to what rows are taken: a token's whole vector, or how much of it there is, token by token or number by number.

A reduction is a choice of coordinates ``s`` for the input, ``x_t = x0_t + s_t ⊙ (x_t - x0_t)`` at ``s = 1``. Rows with
respect to ``s_t`` are then already multiplied by the input, and everything that holds for rows holds for them: scores,
estimates with their errors, layer maps.
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
    """From rows ``C J_t`` to scores: in which coordinates of the input rows are taken, and in which unit scores are.

    Attributes:
        name: as ``reduction=`` takes it.
        formula: of the score.
    """

    name: ClassVar[str]
    formula: ClassVar[str]

    @abstractmethod
    def cut(self, x: X, difference: X) -> Coordinates:
        """The coordinates that rows refer to, a leaf of the graph, and ``x`` attached to them; ``difference`` is ``x - x0``."""

    def unit(self, per_x: str, effect: str) -> str:
        """Of the score: what is explained itself, or that per unit of ``x``."""
        return effect


class Norm(Reduction):
    """The vector itself: gradient norm, in units of what is explained per unit of ``x``."""

    name, formula = "row_norm", "‖C J_t‖"

    def cut(self, x: X, difference: X) -> Coordinates:
        """The vectors of all prompts, one after the other."""
        flat = rearrange(x, "batch pos d -> 1 (batch pos) d")
        leaf = flat.clone() if flat.requires_grad else flat.detach().clone().requires_grad_()
        return leaf, leaf.view_as(x).clone()  # a copy, which later hooks may write to

    def unit(self, per_x: str, effect: str) -> str:
        """Per unit of ``x``."""
        return per_x


class Dot(Reduction):
    """One factor for the whole vector: gradient x input."""

    name, formula = "dot", "|C J_t (x_t - x0_t)|"

    def cut(self, x: X, difference: X) -> Coordinates:
        """A factor for each vector."""
        return _factors(x, difference, 1)


class Elementwise(Reduction):
    """One factor for each number of the vector: the norm of gradient x input, number by number."""

    name, formula = "elementwise", "‖C J_t ⊙ (x_t - x0_t)‖"

    def cut(self, x: X, difference: X) -> Coordinates:
        """A factor for each number."""
        return _factors(x, difference, x.shape[-1])


def _factors(x: X, difference: X, d_s: int) -> Coordinates:
    batch, pos, _ = x.shape
    leaf = torch.ones(1, batch * pos, d_s, dtype=x.dtype, device=x.device, requires_grad=True)
    s = rearrange(leaf, "1 (batch pos) d_s -> batch pos d_s", batch=batch)
    return leaf, x + (s - 1) * difference


NORM = Norm()
REDUCTIONS: dict[str, Reduction] = {reduction.name: reduction for reduction in (NORM, Dot(), Elementwise())}


def to_reduction(reduction: Any) -> Reduction:
    """The reduction of that name, or a refusal with the nearest one."""
    if isinstance(reduction, Reduction):
        return reduction
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        known = "; ".join(f"{name!r}, {known.formula}" for name, known in REDUCTIONS.items())
        raise InputError(f"There is no reduction {reduction!r}.{nearest(str(reduction), REDUCTIONS)} Known: {known}.")
    return REDUCTIONS[reduction]


@dataclass(frozen=True)
class Inputs:
    """What Jacobians are taken with respect to at a hook point, and where the model is linearised.

    Attributes:
        reduction: the coordinates.
        origin: ``x0``, one vector for all positions or one for each; None is zero.
        place: from the activations that a forward pass brings to those that it goes on with; None leaves them.
    """

    reduction: Reduction = NORM
    origin: Float[Tensor, "*pos d_in"] | None = None
    place: Callable[[X], X] | None = None

    def cut(self, activation: X) -> Coordinates:
        """The coordinates that rows refer to, and the activation to go on with, attached to them."""
        x = activation if self.place is None else self.place(activation)
        # Along a path the input is measured at the prompt's own activation, wherever the model is linearised.
        difference = activation.detach() if self.origin is None else activation.detach() - self.origin.to(activation)
        return self.reduction.cut(x, difference)
