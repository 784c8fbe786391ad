"""How a run is linearised: where, with respect to what, with what held constant."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor

from jscope_tl.attribution.averaging import averaged_score, to_baseline
from jscope_tl.engine.backward import Puller
from jscope_tl.errors import InputError
from jscope_tl.engine.forward import AS_IT_IS, Run, run, run_together
from jscope_tl.engine.constant import Frozen, check_frozen
from jscope_tl.engine.inputs import Inputs, check_reduction
from jscope_tl.model.view import ModelView
from jscope_tl.attribution.paths import Path, Point, resolve_path
from jscope_tl.engine.vjp import Pull
from jscope_tl.scopes.base import Scope, Score


@dataclass(frozen=True)
class Linearised:
    """One reduction, one path, and what is frozen, for any number of prompts.

    Attributes:
        reduction: one of `jscope_tl.inputs.REDUCTIONS`.
        path: where the model is linearised.
        frozen: what is held constant.
        hooks: the user's.
    """

    reduction: str
    path: Path
    frozen: tuple[str, ...]
    hooks: list[Any] = field(default_factory=list)

    @classmethod
    def checked(cls, scope: Scope, reduction: Any, path: Any, frozen: Any, hooks: Any = ()) -> "Linearised":
        """As asked; where nothing is asked, as the scope itself has it."""
        named = check_reduction(scope.reduction if reduction is None else reduction)
        return cls(named, resolve_path(path), check_frozen(frozen), list(hooks or ()))

    def run(
        self, view: ModelView, tokens: Int[Tensor, "pos"], positions: Sequence[int], at: Sequence[str]
    ) -> AbstractContextManager[Run]:
        """The prompt's own forward pass."""
        return run(view, tokens, positions, at, self.hooks, self._inputs(view, at, len(tokens)), Frozen(self.frozen))

    def run_together(
        self, view: ModelView, prompts: Sequence[Int[Tensor, "_"]], positions: Sequence[int], at: Sequence[str]
    ) -> AbstractContextManager[Run]:
        """That of several prompts."""
        inputs = self._inputs(view, at, max(map(len, prompts)))
        return run_together(view, prompts, positions, at, self.hooks, inputs, Frozen(self.frozen))

    def _inputs(self, view: ModelView, at: Sequence[str], pos: int) -> Inputs:
        if self.reduction == "norm" and isinstance(self.path, Point):
            return AS_IT_IS
        return Inputs(self.reduction, to_baseline(view, self.path, at, pos))

    def score(self, scope: Scope, forward: Run, puller: Puller) -> Score:
        """The scope's score of a run of one prompt, from rows at the prompt or along the path."""
        if isinstance(self.path, Point):
            score = scope.score(forward.state(), Pull(puller))
            return self.in_units(scope, score)
        if len(forward.at) > 1:
            raise InputError(f"A path starts at one hook point, by its name; {list(forward.at)} are {len(forward.at)}.")
        return self.in_units(scope, averaged_score(self.path, scope, forward, puller, self.hooks))

    def in_units(self, scope: Scope, score: Score) -> Score:
        """The score in the unit that goes with the reduction."""
        return score if self.reduction == "norm" else scope.at_input(score)

    def unit(self, scope: Scope) -> str:
        """Of the score."""
        return scope.unit if self.reduction == "norm" else scope.effect_unit

    def label(self, scope: Scope) -> str:
        """The scope's name, and what is not the paper's about it."""
        reduction = [] if self.reduction == scope.reduction else [self.reduction]
        path = [] if isinstance(self.path, Point) else [type(self.path).__name__.lower()]
        frozen = [f"frozen {kind}" for kind in self.frozen]
        return ", ".join([scope.label, *reduction, *path, *frozen])

    def says(self) -> dict[str, Any]:
        """For the result's options: what is not the paper's."""
        said: dict[str, Any] = {} if self.reduction == "norm" else {"reduction": self.reduction}
        if not (isinstance(self.path, Point) and isinstance(self.path.baseline, str) and self.path.baseline == "zero"):
            said["path"] = self.path.says()
        return {**said, **({"frozen": list(self.frozen)} if self.frozen else {})}
