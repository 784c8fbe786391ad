"""What a scope is: an output direction (or several) to pull back, a unit, and a way from squared row norms to scores."""

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
"""From the ``y`` and the logits that a run ended in to how far it is from the base run."""


@dataclass(frozen=True)
class Score:
    """One number per position (and hook point, where there are several).

    Attributes:
        values: the scores.
        stderr: their standard error, where they are estimates.
        resolved: what was done, where the options left it open.
        seed: of the random numbers, where there were any.
        weights: how much the squared norm of each row counted, in the order in which they were pulled back; None is 1 for all.
        warnings: sentences for the result's warnings.
    """

    values: Float[Tensor, "*layer pos"]
    stderr: Float[Tensor, "*layer pos"] | None = None
    resolved: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    weights: Float[Tensor, "k"] | None = None
    warnings: list[str] = field(default_factory=list)

    def times(self, factor: float) -> "Score":
        """In other units: rows were pulled back at another size than they count."""
        weights = None if self.weights is None else self.weights * factor
        stderr = None if self.stderr is None else self.stderr * factor
        return replace(self, values=self.values * factor, stderr=stderr, weights=weights)


class Scope(ABC):
    """Base of all scopes. A subclass is a frozen dataclass whose fields are its options.

    It has a ``unit`` and returns ``cotangents``: the rows ``C [k, d_model]``. The score of position ``t`` is then
    ``‖C J_t‖`` (Frobenius; for k = 1 the norm of the paper's Eq. 1). A field ``target`` that is a string, an id or None is the
    token of the vocabulary that the scope explains; give another name to what is not a token.

    Attributes:
        unit: of the score.
        name: under which the class is registered.
        reduction: the default, of `jscope_tl.engine.inputs.REDUCTIONS`.
        additive: whether the score is `combined` from the squared norms of the rows ``C J_t`` and nothing else; then many
            positions and prompts share a backward pass. A subclass that overrides `score` is not, unless it says so.
        moves_along: whether along a path the cotangent is a gradient, to be taken anew at each point; else that of the prompt
            is kept.
        exact_effect: whether `effect_from` gives the change of the quantity whose gradient the cotangent is, and not only its
            first order.
        needs_vectors: whether `score` looks at the rows of single tokens' vectors, which attention patterns do not have.
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
        """The output directions that are pulled back, as rows."""

    def rows(self, state: State) -> Float[Tensor, "k d_model"]:
        """`cotangents`, checked: on the device of ``y``, detached; anything that is no ``[k, d_model]`` is refused."""
        return checked_cotangents(self.cotangents(state), state, self.label)

    def score(self, state: State, vjp: VJP) -> Score:
        """Scores of all positions."""
        return Score(self.combined(vjp.squared_norms(self.rows(state))))

    def span_rows(self, states: Sequence[State]) -> Float[Tensor, "k d_output"]:
        """The output directions of several positions together, those of all one after the other.

        Of one direction at each position, the gradient of their sum (of log-probabilities: of the log-probability of the span). Of
        several, each of them by itself, as Fisher information adds up.
        """
        rows = [self.rows(state) for state in states]
        return torch.cat(rows, 1) if all(len(of_one) == 1 for of_one in rows) else torch.block_diag(*rows)

    def score_span(self, states: Sequence[State], vjp: SpanVJP) -> Score:
        """Scores of all positions for several explained ones together; of one, `score`."""
        if len(states) == 1 and not self.additive:
            return self.score(states[0], vjp)
        if not self.additive:
            raise InputError(
                f"Scope {self.label!r} has no score of several predictions together; explain them one by one, or take 'fisher'."
            )
        return Score(self.combined(vjp.squared_norms(self.span_rows(states))))

    def combined(self, squares: Float[Tensor, "k *layer pos"]) -> Float[Tensor, "*layer pos"]:
        """One number per position from the squared norms of the scope's own rows: the norm of all rows together."""
        return reduce(squares, "k ... -> ...", "sum").sqrt()

    def of_rows(self, rows: Float[Tensor, "k *layer pos d_in"]) -> Float[Tensor, "*layer pos"]:
        """One number per position from the rows themselves, where these are at hand (averaged along a path)."""
        return self.combined(rows.square().sum(-1))

    def path_rows(self, state: State) -> Float[Tensor, "k d_model"]:
        """The rows that are averaged along a path. Scopes that are not additive say which, if any."""
        if not self.additive:
            raise InputError(
                f"Scope {self.label!r} has no rows to average along a path. Take one with cotangents, or fisher with "
                "method='low_rank'."
            )
        return self.rows(state)

    def at_input(self, score: Score) -> Score:
        """The score in `effect_unit`, where rows are already multiplied by the input."""
        return score

    def effect_from(self, base: State) -> Effect:
        """How far what the scope explains is from the run ``base`` in another run: a function of its ``y`` and logits.

        Signed for one cotangent, ``C (y - y_base)``; ``½ ‖C (y - y_base)‖²`` for several. Scopes of a quantity of the
        logits give its actual change.
        """
        rows = self.rows(base).to(base.dtype)
        before = base.y.detach().to(base.dtype)
        return lambda y, logits: _to_leading_order(rows @ (y.to(before) - before))

    def predicted_from(self, moved: Float[Tensor, "k *cell"], score: Score) -> Float[Tensor, "*cell"]:
        """The effect to leading order, from how far each row that was pulled back for ``score`` moves."""
        return _to_leading_order(moved)

    def effect_rows(self, state: State) -> EffectRows:
        """The rows that tell what a change of anything in the network does, by how far they move: `rows`, to leading order."""
        return EffectRows(self.rows(state))

    @property
    def effect_unit(self) -> str:
        """Unit of the effect."""
        return self.unit.partition(" per ")[0].rstrip(",")

    @property
    def label(self) -> str:
        """The name that the class was registered under, or the class's own: a subclass does not inherit it."""
        return vars(type(self)).get("name") or type(self).__name__

    @property
    def options(self) -> dict[str, Any]:
        """Options of the scope as a dict."""
        return {f.name: getattr(self, f.name) for f in fields(self)} if is_dataclass(self) else {}

    def check(self, basis: Basis) -> list[str]:
        """Warnings that the weight processing of the model calls for; raises where the scope means nothing."""
        return []

    @property
    def needs_target(self) -> bool:
        """Whether the scope explains one token and was not told which."""
        return self.options.get("target", "") is None

    def target_id(self, state: State) -> int:
        """Id of the token that the scope explains.

        Without a target, and for scopes that explain no single token: the prompt's own next token where there is one, else
        the most probable one.
        """
        target = self.options.get("target")
        return state.to_id(target if isinstance(target, str) or whole(target) is not None else None)

    def alternatives(self, state: State) -> list[int]:
        """Ids of the tokens that the scope chose to hold its target against, for the result; none where it chose none."""
        return []

    def with_target(self, token: str | int) -> "Scope":
        """The same scope of another token; a scope that explains no single token stays as it is."""
        return replace(self, target=token) if "target" in self.options else self  # type: ignore[type-var]


def _to_leading_order(moved: Float[Tensor, "k *cell"]) -> Float[Tensor, "*cell"]:
    return moved[0] if len(moved) == 1 else 0.5 * reduce(moved.square(), "k ... -> ...", "sum")


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
    """A user's function from `State` to cotangents (``[d_model]`` or ``[k, d_model]``), scored by the norm of its rows.

    A parameter ``target`` of the function is the token that it explains, as in scopes of the package.
    """

    function: Callable[..., Any]
    given: dict[str, Any] = field(default_factory=dict)
    called: str = ""
    unit: str = Scope.unit  # type: ignore[misc]  # an option here, a constant in every other scope
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
        """The registered name, or the function's own."""
        return self.called or getattr(self.function, "__name__", "function")

    @property
    def options(self) -> dict[str, Any]:
        """The function's keywords, defaults included."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        return {**defaults, **self.given}

    def cotangents(self, state: State) -> Any:
        """What the function returns; `rows` checks it, as it checks every scope's."""
        return self.function(state, **self.given)

    def alternatives(self, state: State) -> list[int]:
        """Ids of the tokens that the scope chose to hold its target against, for the result; none where it chose none."""
        return []

    def with_target(self, token: str | int) -> "FunctionScope":
        """The same function of another token."""
        return replace(self, given={**self.given, "target": token}) if "target" in self.options else self
