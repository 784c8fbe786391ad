"""What a scope is: an output direction (or several) to pull back, a unit, and a way from row energies to scores."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.engine.vjp import Pull
from jscope_tl.engine.state import Basis, State

Effect = Callable[[Float[Tensor, "d_model"], Float[Tensor, "d_vocab"]], Float[Tensor, ""]]
"""From the ``y`` and the logits that a run ended in to how far it is from the base run."""


@dataclass(frozen=True)
class Score:
    """One number per position (and hook point, where there are several).

    Attributes:
        values: the scores.
        stderr: their standard error, where they are estimates.
        resolved: what was done, where the options left it open.
        seed: of the random numbers, where there were any.
        weights: how much the energy of each row counted, in the order in which they were pulled; None is 1 for all.
        doubts: sentences for the result's warnings.
    """

    values: Float[Tensor, "*layer pos"]
    stderr: Float[Tensor, "*layer pos"] | None = None
    resolved: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    weights: Float[Tensor, "k"] | None = None
    doubts: list[str] = field(default_factory=list)

    def times(self, factor: float) -> "Score":
        """In other units: rows were pulled at another size than they count."""
        weights = None if self.weights is None else self.weights * factor
        stderr = None if self.stderr is None else self.stderr * factor
        return replace(self, values=self.values * factor, stderr=stderr, weights=weights)


class Scope(ABC):
    """Base of all scopes. A subclass is a frozen dataclass whose fields are its options.

    It has a ``unit`` and returns ``cotangents``: the rows ``C [k, d_model]``. The score of position ``t`` is then
    ``‖C J_t‖`` (Frobenius; for k = 1 the norm of the paper's Eq. 1). Override `score` for another combination.
    """

    unit: ClassVar[str] = "unit of the cotangents, per unit of x"
    name: ClassVar[str] = ""
    reduction: ClassVar[str] = "norm"  # where none is asked for
    moves_along: ClassVar[bool] = False
    """Along a path: whether the cotangent is a gradient, to be taken anew at each point; else that of the prompt is kept."""

    @abstractmethod
    def cotangents(self, state: State) -> Float[Tensor, "k d_model"]:
        """The output directions that are pulled back, as rows."""

    def score(self, state: State, pull: Pull) -> Score:
        """Scores of all positions from the energies of the pulled-back rows."""
        rows = checked_cotangents(self.cotangents(state), state, self.label)
        return Score(self.combined(pull.energies(rows)))

    def combined(self, energies: Float[Tensor, "k *layer pos"]) -> Float[Tensor, "*layer pos"]:
        """One number per position from the energies of the scope's own rows: their norm."""
        return energies.sum(0).sqrt()

    def of_rows(self, rows: Float[Tensor, "k *layer pos d_in"]) -> Float[Tensor, "*layer pos"]:
        """One number per position from the rows themselves, where these are at hand (averaged along a path)."""
        return self.combined(rows.square().sum(-1))

    def path_rows(self, state: State) -> Float[Tensor, "k d_model"]:
        """The rows that are averaged along a path. Scopes with a score of their own say which, if any."""
        if type(self).score is not Scope.score:
            raise InputError(
                f"Scope {self.label!r} has no rows to average along a path. Take one with cotangents, or fisher with "
                "method='low_rank'."
            )
        return checked_cotangents(self.cotangents(state), state, self.label)

    def at_input(self, score: Score) -> Score:
        """The score in `effect_unit`, where rows are already multiplied by the input."""
        return score

    def effect_from(self, base: State) -> Effect:
        """How far what the scope explains is from the run ``base`` in another run: a function of its ``y`` and logits.

        Signed for one cotangent, ``C (y - y_base)``; ``½ ‖C (y - y_base)‖²`` for several. Scopes of a quantity of the
        logits give its actual change.
        """
        rows = checked_cotangents(self.cotangents(base), base, self.label).to(base.dtype)
        before = base.y.detach().to(base.dtype)
        return lambda y, logits: _to_leading_order(rows @ (y.to(before) - before))

    def predicted_from(self, moved: Float[Tensor, "k *cell"], score: Score) -> Float[Tensor, "*cell"]:
        """The effect to leading order, from how far each row that was pulled for ``score`` moves."""
        return _to_leading_order(moved)

    @property
    def effect_unit(self) -> str:
        """Unit of the effect."""
        return self.unit.partition(" per ")[0].rstrip(",")

    @property
    def label(self) -> str:
        """The name that the class was registered under, or the class's own: a subclass does not inherit it."""
        return vars(type(self)).get("name") or type(self).__name__

    def check(self, basis: Basis) -> list[str]:
        """Warnings that the weight processing of the model calls for; raises where the scope means nothing."""
        return []

    def explained_token(self, state: State) -> int:
        """Id of the token whose probability is reported beside the scores."""
        return state.to_id(None)


def _to_leading_order(moved: Float[Tensor, "k *cell"]) -> Float[Tensor, "*cell"]:
    return moved[0] if len(moved) == 1 else 0.5 * moved.square().sum(0)


def checked_cotangents(rows: Any, state: State, name: str) -> Float[Tensor, "k d_model"]:
    """What a scope returned, as rows; anything that is no ``[d_model]`` or ``[k, d_model]`` is refused."""
    d_model = len(state.y)
    if not isinstance(rows, Tensor) or rows.ndim not in (1, 2) or rows.shape[-1] != d_model or not rows.numel():
        given = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise InputError(
            f"Cotangents are a tensor [d_model] or [k, d_model] with d_model = {d_model}; {name} returned {given}."
        )
    if rows.is_complex() or not rows.isfinite().all():
        raise InputError(f"Cotangents are real, finite numbers; those of {name} are not finite, or complex.")
    return rows.detach().reshape(-1, d_model).to(state.y.device, state.dtype)


@dataclass(frozen=True)
class FunctionScope(Scope):
    """A user's function from `State` to cotangents (``[d_model]`` or ``[k, d_model]``), scored by the norm of its rows."""

    function: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    called: str = ""
    unit: str = Scope.unit  # type: ignore[misc]  # an option here, a constant in every other scope
    moves_along: bool = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        try:
            inspect.signature(self.function).bind(None, **self.options)
        except TypeError as error:
            raise InputError(
                f"Scope {self.label!r} cannot be called with the state and {self.options or 'no options'}: {error}."
            ) from error

    @property
    def label(self) -> str:
        """The registered name, or the function's own."""
        return self.called or getattr(self.function, "__name__", "function")

    def cotangents(self, state: State) -> Any:
        """What the function returns; `Scope.score` checks it, as it checks every scope's."""
        return self.function(state, **self.options)
