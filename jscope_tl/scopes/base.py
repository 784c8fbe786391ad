"""What a scope is: an output direction (or several) to pull back, a unit, and a way from row energies to scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.state import Basis, State

Energies = Callable[..., Float[Tensor, "k pos"]]
"""`jscope_tl.engine.Puller.energies`: cotangents ``[k, d_model]`` in, ``‖C_i J_t‖²`` for every row and position out."""


@dataclass(frozen=True)
class Score:
    """One number per position, its standard error where it is an estimate, and what a reader must know about it."""

    values: Float[Tensor, "pos"]
    stderr: Float[Tensor, "pos"] | None = None
    resolved: dict[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    seed: int | None = None


class Scope(ABC):
    """Base of all scopes. A subclass is a frozen dataclass whose fields are its options.

    It has a ``unit`` and returns ``cotangents``: the rows ``C [k, d_model]``. The score of position ``t`` is then
    ``‖C J_t‖`` (Frobenius; for k = 1 the norm of the paper's Eq. 1). Override `score` for another combination.
    """

    unit: ClassVar[str] = "|y| per unit of x"
    name: ClassVar[str] = ""

    @abstractmethod
    def cotangents(self, state: State) -> Float[Tensor, "k d_model"]:
        """The output directions that are pulled back, as rows."""

    def score(self, state: State, energies: Energies) -> Score:
        """Scores of all positions from the energies of the pulled-back rows."""
        return Score(energies(self.cotangents(state)).sum(0).sqrt())

    def check(self, basis: Basis) -> list[str]:
        """Warnings that the weight processing of the model calls for; raises where the scope means nothing."""
        return []

    def explained_token(self, state: State) -> int:
        """Id of the token whose probability is reported beside the scores."""
        return state.to_id(None)


@dataclass(frozen=True)
class FunctionScope(Scope):
    """A user's function from `State` to cotangents (``[d_model]`` or ``[k, d_model]``), scored by the norm of its rows."""

    function: Callable[..., Float[Tensor, "*k d_model"]]
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    unit: str = Scope.unit  # type: ignore[misc]  # an option here, a constant in every other scope

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.label or getattr(self.function, "__name__", "function")

    def cotangents(self, state: State) -> Float[Tensor, "k d_model"]:
        """What the function returns, as rows."""
        rows = self.function(state, **self.options)
        d_model = len(state.y)
        if not isinstance(rows, Tensor) or rows.ndim not in (1, 2) or rows.shape[-1] != d_model or not rows.numel():
            given = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise InputError(
                f"A scope function returns cotangents [d_model] or [k, d_model] with d_model = {d_model}; "
                f"{self.name!r} returned {given}."
            )
        if not rows.isfinite().all():
            raise InputError(
                f"The cotangents of {self.name!r} are not finite: it returned infinite or undefined values."
            )
        return rows.detach().reshape(-1, d_model).to(state.y.device)
