"""The base class of scopes: output directions (cotangents), a unit, and the formula from squared row norms to scores."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.one_position import VJP, SpanVJP
from jscope_tl.engine.state import State
from jscope_tl.errors import InputError, whole
from jscope_tl.model.basis import Basis
from jscope_tl.scopes.effects import EffectRows

Effect = Callable[[Float[Tensor, "d_model"], Float[Tensor, "d_vocab"]], Float[Tensor, ""]]
"""A function from the ``y`` and the logits of a run to the run's distance from the base run."""


@dataclass(frozen=True)
class Score:
    """One number per position (and per hook point if there are several).

    Attributes:
        values: the scores.
        stderr: their standard errors, if they are estimates.
        resolved: the choices that were made automatically, such as the target or the number of probes.
        seed: the seed of the random numbers, if there are any.
        weights: the weight of each row's squared norm, in the order in which the rows were computed; None: 1 for all.
        warnings: sentences for the result's warnings.
    """

    values: Float[Tensor, "*layer pos"]
    stderr: Float[Tensor, "*layer pos"] | None = None
    resolved: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    weights: Float[Tensor, "k"] | None = None
    warnings: list[str] = field(default_factory=list)

    def times(self, factor: float) -> "Score":
        """The score in other units, for rows that were computed from rescaled cotangents."""
        weights = None if self.weights is None else self.weights * factor
        stderr = None if self.stderr is None else self.stderr * factor
        return replace(self, values=self.values * factor, stderr=stderr, weights=weights)


class Scope(ABC):
    """Base of all scopes. A subclass is a frozen dataclass whose fields are its options.

    A scope has a ``unit`` and returns ``cotangents``: the rows ``C [k, d_model]``. The score of position ``t`` is then
    ``‖C J_t‖`` (Frobenius norm; for k = 1 the norm of the paper's Eq. 1). A field ``target`` that is a string, an id or None is the
    token of the vocabulary that the scope explains; options that are not tokens need another name.

    Attributes:
        unit: the unit of the score.
        name: the name under which the class is registered.
        reduction: the default reduction, a key of `jscope_tl.engine.inputs.REDUCTIONS`.
        additive: whether the score is `combined` from the squared norms of the rows ``C J_t`` alone; then many positions and
            prompts share a backward pass. A subclass that overrides `score` is not additive unless it sets this attribute.
        moves_along: whether the cotangents are recomputed at each point of a path, as gradients need it; if False, those of the
            prompt are used at all points.
        exact_effect: whether `effect_from` gives the actual change of the quantity whose gradient the cotangent is, not only
            the change to first order.
        needs_vectors: whether `score` needs the rows of one vector per token, which attention patterns do not have.
    """

    unit: ClassVar[str] = "unit of the cotangents, per unit of x"
    name: ClassVar[str] = ""
    reduction: ClassVar[str] = "row_norm"
    additive: ClassVar[bool] = True
    moves_along: ClassVar[bool] = False
    exact_effect: ClassVar[bool] = False
    needs_vectors: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        scores, declares = (next(b for b in cls.__mro__ if name in vars(b)) for name in ("score", "additive"))
        if cls.__mro__.index(scores) < cls.__mro__.index(declares):
            cls.additive = False

    @abstractmethod
    def cotangents(self, state: State) -> Float[Tensor, "k d_model"]:
        """The output directions of the vector-Jacobian products, as rows."""

    def rows(self, state: State) -> Float[Tensor, "k d_model"]:
        """`cotangents`, detached and on the device of ``y``; a shape other than ``[k, d_model]`` is refused."""
        return checked_cotangents(self.cotangents(state), state, self.label)

    def score(self, state: State, vjp: VJP) -> Score:
        """Scores of all positions."""
        return Score(self.combined(vjp.squared_norms(self.rows(state))))

    def span_rows(self, states: Sequence[State]) -> Float[Tensor, "k d_output"]:
        """The output directions of several positions together, concatenated over the positions.

        For one direction at each position, the gradient of the sum (for log-probabilities, of the span's log-probability). For
        several directions, each direction separately, because Fisher information adds up.
        """
        rows = [self.rows(state) for state in states]
        return torch.cat(rows, 1) if all(len(of_one) == 1 for of_one in rows) else torch.block_diag(*rows)

    def score_span(self, states: Sequence[State], vjp: SpanVJP) -> Score:
        """Scores of all positions for several explained positions together; for one explained position, `score`."""
        if len(states) == 1 and not self.additive:
            return self.score(states[0], vjp)
        if not self.additive:
            raise InputError(
                f"Scope {self.label!r} has no score of several predictions together; explain them one by one, or use 'fisher'."
            )
        return Score(self.combined(vjp.squared_norms(self.span_rows(states))))

    def combined(self, squares: Float[Tensor, "k *layer pos"]) -> Float[Tensor, "*layer pos"]:
        """One number per position from the squared norms of the scope's rows: the norm of all rows together."""
        return reduce(squares, "k ... -> ...", "sum").sqrt()

    def of_rows(self, rows: Float[Tensor, "k *layer pos d_in"]) -> Float[Tensor, "*layer pos"]:
        """One number per position from the rows themselves (used for rows averaged along a path)."""
        return self.combined(rows.square().sum(-1))

    def path_rows(self, state: State) -> Float[Tensor, "k d_model"]:
        """The cotangents whose rows are averaged along a path. Scopes that are not additive must override this to support paths."""
        if not self.additive:
            raise InputError(
                f"Scope {self.label!r} has no rows to average along a path. Use a scope with cotangents, or fisher with "
                "method='low_rank'."
            )
        return self.rows(state)

    def at_input(self, score: Score) -> Score:
        """The score in `effect_unit`, from a score whose rows are already multiplied by the input."""
        return score

    def effect_from(self, base: State) -> Effect:
        """The change of the explained quantity from the run ``base`` to another run, as a function of that run's ``y`` and logits.

        For one cotangent the change is signed, ``C (y - y_base)``; for several it is ``½ ‖C (y - y_base)‖²``. Scopes that explain
        a quantity of the logits return its actual change.
        """
        rows = self.rows(base).to(base.dtype)
        before = base.y.detach().to(base.dtype)
        return lambda y, logits: _to_leading_order(rows @ (y.to(before) - before))

    def predicted_from(self, moved: Float[Tensor, "k *cell"], score: Score) -> Float[Tensor, "*cell"]:
        """The effect to leading order, from the movements ``C J δ`` of the rows that ``score`` was computed from."""
        return _to_leading_order(moved)

    def effect_rows(self, state: State) -> EffectRows:
        """The rows whose movements predict the effect of any change in the network; by default `rows`, to leading order."""
        return EffectRows(self.rows(state))

    @property
    def effect_unit(self) -> str:
        """Unit of the effect."""
        return self.unit.partition(" per ")[0].rstrip(",")

    @property
    def label(self) -> str:
        """The name under which this class itself is registered (not its parent class), or the name of the class."""
        return vars(type(self)).get("name") or type(self).__name__

    @property
    def options(self) -> dict[str, Any]:
        """The options of the scope as a dict."""
        return {f.name: getattr(self, f.name) for f in fields(self)} if is_dataclass(self) else {}

    def check(self, basis: Basis) -> list[str]:
        """Warnings about the model's weight processing; raises if the scope is meaningless on such weights."""
        return []

    @property
    def needs_target(self) -> bool:
        """Whether the scope explains one token and no target is set."""
        return self.options.get("target", "") is None

    def target_id(self, state: State) -> int:
        """Id of the token that the scope explains.

        Without a target, and for scopes that explain no single token: the prompt's own next token if there is one, else
        the most probable token.
        """
        target = self.options.get("target")
        return state.to_id(target if isinstance(target, str) or whole(target) is not None else None)

    def alternatives(self, state: State) -> list[int]:
        """Ids of the tokens that the scope chose as alternatives to its target; an empty list if it chose none."""
        return []

    def with_target(self, token: str | int) -> "Scope":
        """The same scope with another target; a scope that explains no single token is returned unchanged."""
        return replace(self, target=token) if "target" in self.options else self  # type: ignore[type-var]


def _to_leading_order(moved: Float[Tensor, "k *cell"]) -> Float[Tensor, "*cell"]:
    return moved[0] if len(moved) == 1 else 0.5 * reduce(moved.square(), "k ... -> ...", "sum")


def checked_cotangents(rows: Any, state: State, name: str) -> Float[Tensor, "k d_model"]:
    """The return value of a scope as rows; a shape other than ``[d_model]`` or ``[k, d_model]`` is refused."""
    d_model = len(state.y)
    if not isinstance(rows, Tensor) or rows.ndim not in (1, 2) or rows.shape[-1] != d_model or not rows.numel():
        given = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise InputError(
            f"Cotangents must be a tensor [d_model] or [k, d_model] with d_model = {d_model}; {name} returned {given}."
        )
    if rows.is_complex() or not rows.isfinite().all():
        raise InputError(f"Cotangents must be real, finite numbers; those of {name} are not finite, or complex.")
    return rows.detach().reshape(-1, d_model).to(state.y.device, state.dtype)


@dataclass(frozen=True)
class FunctionScope(Scope):
    """A user's function from `State` to cotangents (``[d_model]`` or ``[k, d_model]``), scored by the norm of its rows.

    A parameter ``target`` of the function is the token that it explains, as in the scopes of the package.
    """

    function: Callable[..., Any]
    given: dict[str, Any] = field(default_factory=dict)
    called: str = ""
    unit: str = Scope.unit  # type: ignore[misc]  # an instance attribute here, a class constant in other scopes
    moves_along: bool = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        try:
            inspect.signature(self.function).bind(None, **self.given)
        except (TypeError, ValueError) as error:  # ValueError: no signature, as of some built-in functions
            raise InputError(
                f"Scope {self.label!r} cannot be called with the state and {self.given or 'no options'}: {error}."
            ) from error

    @property
    def label(self) -> str:
        """The registered name, or the name of the function."""
        return self.called or getattr(self.function, "__name__", "function")

    @property
    def options(self) -> dict[str, Any]:
        """The function's keywords, defaults included."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        return {**defaults, **self.given}

    def cotangents(self, state: State) -> Any:
        """The return value of the function; `rows` checks it."""
        return self.function(state, **self.given)

    def alternatives(self, state: State) -> list[int]:
        """Ids of the tokens that the scope chose as alternatives to its target; an empty list if it chose none."""
        return []

    def with_target(self, token: str | int) -> "FunctionScope":
        """The same function with another target."""
        return replace(self, given={**self.given, "target": token}) if "target" in self.options else self
