"""The setup that all entry points share before the first forward pass, and the score of a run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.attribution.averaging import averaged_score, to_origin
from jscope_tl.attribution.paths import Path, Point, to_path
from jscope_tl.engine.forward import run, run_together
from jscope_tl.engine.inputs import NORM, Inputs, Reduction, to_reduction
from jscope_tl.engine.memory import check_chunk_size
from jscope_tl.engine.one_position import VJP, SpanVJP
from jscope_tl.engine.pattern_entries import PATTERN, PatternEntries
from jscope_tl.engine.precision import check_matmul_precision
from jscope_tl.engine.recomputed import recompute_notes, to_recompute
from jscope_tl.engine.rules import PLAIN, Rules, to_rules
from jscope_tl.engine.run import Run, Settings
from jscope_tl.engine.state import State
from jscope_tl.engine.vjp import Backward
from jscope_tl.errors import InputError
from jscope_tl.model.prompts import prompt_warnings, to_position, to_tokens
from jscope_tl.model.running import Passes
from jscope_tl.model.view import ModelView
from jscope_tl.scopes.base import Scope, Score
from jscope_tl.scopes.registry import resolve_scope

NO_PATTERNS = object()
"""Value of ``per`` for entry points that take hook points only, and no attention patterns."""


@dataclass(frozen=True)
class Setup:
    """The scope and all settings that are known before the first forward pass; it does not contain the prompt.

    Attributes:
        scope: the scope, which defines the explained quantity.
        at: the hook point or points, as passed by the user.
        settings: how the model is run.
        reduction: how rows become a score.
        path: where the model is linearised.
        entries: the entries of attention patterns, if the scores refer to these instead of a hook point; else None.
        chunk_size, matmul_precision, progress: settings of the backward passes.
    """

    scope: Scope
    at: Any
    settings: Settings
    reduction: Reduction
    path: Path
    chunk_size: int | None
    matmul_precision: str | None
    progress: bool | None
    entries: PatternEntries | None = None

    @property
    def view(self) -> ModelView:
        """The model."""
        return self.settings.view

    def prompt(self, prompt: Any, prepend_bos: Any, position: Any) -> tuple[Int[Tensor, "pos"], int]:
        """The token ids of a prompt, and the explained position."""
        tokens = to_tokens(self.view, prompt, prepend_bos)
        return tokens, to_position(position, len(tokens))

    def warnings(self, tokens: Int[Tensor, "pos"]) -> list[str]:
        """Warnings that are known before the run: about the scope on these weights, and about the prompt."""
        return [*self.scope.check(self.view.basis), *prompt_warnings(self.view, tokens)]

    @contextmanager
    def run(
        self, tokens: Int[Tensor, "pos"], positions: Sequence[int], how: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[Run, Backward]]:
        """The forward pass of the prompt, and the backward passes through it; ``how``: further arguments of the forward pass."""
        passes = Passes()
        with run(self.settings, tokens, positions, self._inputs(len(tokens), passes), passes, how) as forward:
            backward = self.backward(forward)
            try:
                yield forward, backward
            finally:
                backward.bar.close()

    def run_together(
        self, prompts: Sequence[Int[Tensor, "_"]], positions: Sequence[int], rows: Sequence[int] | None = None
    ) -> AbstractContextManager[Run]:
        """The forward pass of several prompts in one batch, with one explained position in each, or those of ``rows``."""
        passes = Passes()
        inputs = self._inputs(max(map(len, prompts)), passes)
        return run_together(self.settings, prompts, positions, inputs, passes, rows)

    def backward(self, forward: Run) -> Backward:
        """The backward passes through a run."""
        xs, arrange = forward.xs, None
        if self.entries is not None:
            xs = list((forward.patterns or {}).values())
            arrange = partial(self.entries.arranged, dest=xs[0].shape[1] // len(forward.prompts))
        return Backward(
            xs, forward.y, forward.positions, self.chunk_size, self.progress, arrange=arrange, recomputed=forward.recomputed,
            matmul_precision=self.matmul_precision, passes=forward.passes, n_prompts=len(forward.prompts),
            notes=recompute_notes(forward.recomputed),
        )  # fmt: skip

    def map_rows(self, forward: Run) -> tuple[str, ...]:
        """Names of the rows of a layer map; empty if there is one score for each token."""
        if self.entries is not None:
            return self.entries.labels(list(forward.patterns or ()), int(self.view.cfg.n_heads))
        single = isinstance(self.at, str) and list(forward.at) == [self.at]
        return () if single else tuple(forward.at)

    def _inputs(self, pos: int, passes: Passes) -> Inputs:
        if self.entries is not None or (self.reduction is NORM and isinstance(self.path, Point)):
            return Inputs()
        return Inputs(self.reduction, to_origin(self.view, self.path.origin, self.settings.at, pos, passes))

    def score(self, forward: Run, backward: Backward, i: int = 0) -> Score:
        """The score of the ``i``-th explained position, from rows at the prompt or averaged along the path."""
        if isinstance(self.path, Point):
            state, vjp = forward.state(i), VJP(backward, i)
            if self.entries is not None and self.scope.additive:
                return self.in_units(Score(self.combined(self.numbers(vjp, self.scope.rows(state)))))
            return self.in_units(self._checked(self.scope.score(state, vjp), len(state.tokens)))
        if len(forward.at) > 1:
            raise InputError(
                f"A path needs a single hook point; {list(forward.at)} are {len(forward.at)}. Pass one of them as at."
            )
        return self.in_units(averaged_score(self.path, self.scope, forward, backward, i))

    def score_span(self, states: Sequence[State], vjp: SpanVJP) -> Score:
        """The score of several explained positions together, from rows at the prompt."""
        self.need_point()
        if self.entries is not None and self.scope.additive:
            score = Score(self.combined(self.numbers(vjp, self.scope.span_rows(states))))
        else:
            score = self._checked(self.scope.score_span(states, vjp), vjp.backward.xs[0].shape[1])
        return self.in_units(score)

    def need_point(self) -> None:
        """Refuse a path: rows of several explained positions are not defined along it."""
        if not isinstance(self.path, Point):
            raise InputError(
                "Several tokens together are explained at the prompt itself; leave path out, or explain them one by one."
            )

    def numbers(
        self, vjp: VJP | Backward, rows: Float[Tensor, "k *n d_model"], each: int | None = None, **how: Any
    ) -> Float[Tensor, "k *layer pos"]:
        """One number per row and position of an additive scope, for `combined`; ``each``: rows per score, None for all rows."""
        positive = self.entries is not None and (each or len(rows)) == 1
        return vjp.positive_parts(rows, **how) if positive else vjp.squared_norms(rows, **how)

    def combined(self, numbers: Float[Tensor, "k *layer pos"]) -> Float[Tensor, "*layer pos"]:
        """The score of an additive scope, from its `numbers`."""
        if self.entries is None:
            return self.scope.combined(numbers)
        return numbers[0] if len(numbers) == 1 else 0.5 * reduce(numbers, "k ... -> ...", "sum")

    def _checked(self, score: Any, pos: int) -> Score:
        if isinstance(score, Score) and isinstance(score.values, Tensor) and score.values.shape[-1:] == (pos,):
            return score
        given = list(score.values.shape) if isinstance(score, Score) else type(score).__name__
        needed = f"a js.Score with values [{pos}] (of a layer map [layer, {pos}])"
        raise InputError(f"score of {self.scope.label} returned {given}; it must return {needed}.")

    def in_units(self, score: Score) -> Score:
        """The score in `unit`; negative scores are refused."""
        if (score.values < 0).any() or (score.stderr is not None and (score.stderr < 0).any()):
            given = f"Scope {self.scope.label!r} gave negative scores or errors"
            raise InputError(f"{given}; scores are unsigned, norms or absolute values.")
        return score if self.reduction is NORM and self.entries is None else self.scope.at_input(score)

    @property
    def unit(self) -> str:
        """The unit of the score."""
        if self.entries is not None:
            return f"{self.scope.effect_unit}, {self.entries.unit}" if self.scope.additive else self.scope.effect_unit
        return self.reduction.unit(self.scope.unit, self.scope.effect_unit)

    @property
    def name(self) -> str:
        """The name of what explains, without settings."""
        return self.scope.label

    @property
    def additive(self) -> bool:
        """Whether the score is a sum over rows, so that several prompts can share passes."""
        return self.scope.additive

    @property
    def takes_spans(self) -> bool:
        """Whether targets of several tokens can be explained."""
        return True

    @property
    def hook_point(self) -> str:
        """The hook point or points that the scores refer to."""
        return self.at if isinstance(self.at, str) else ", ".join(self.settings.at)

    @property
    def label(self) -> str:
        """The scope's name, and the settings that differ from the paper's."""
        reduction = [] if self.reduction.name == self.scope.reduction else [self.reduction.name]
        reduction = reduction if self.entries is None else ["pattern x gradient"]
        path = [] if isinstance(self.path, Point) else [type(self.path).__name__.lower()]
        rules = self.settings.rules
        changed = [f"frozen {kind}" for kind in rules.frozen] or (
            [] if rules == Rules() else [f"gradient {rules.name}"]
        )
        return ", ".join([self.scope.label, *reduction, *path, *changed])

    def options(self) -> dict[str, Any]:
        """The options of the scope, and the settings that differ from the paper's."""
        settings: dict[str, Any] = {} if self.reduction is NORM else {"reduction": self.reduction.name}
        if self.entries is not None and self.entries.per is not None:
            settings["per"] = self.entries.per
        origin = self.path.origin
        if not (isinstance(self.path, Point) and isinstance(origin, str) and origin == "zero"):
            settings["path"] = self.path.describe()
        if self.settings.rules.frozen:
            settings["frozen"] = self.settings.rules.frozen
        elif self.settings.rules != Rules():
            settings["gradient"] = self.settings.rules.name
        own = {name: list(value) if isinstance(value, tuple) else value for name, value in self.scope.options.items()}
        return {**own, **settings}  # lists instead of tuples, as in a saved file


def set_up(
    model: Any,
    scope: Any,
    options: dict[str, Any],
    *,
    at: Any = "hook_embed",
    one_point: bool = False,
    per: Any = NO_PATTERNS,
    fwd_hooks: Any = (),
    reduction: Any = None,
    path: Any = None,
    gradient: Any = PLAIN,
    frozen: Any = (),
    chunk_size: Any = None,
    matmul_precision: Any = None,
    recompute: Any = None,
    progress: bool | None = None,
) -> Setup:
    """Resolve and check all keywords; ``one_point`` refuses several hook points, ``per=NO_PATTERNS`` refuses attention patterns.

    Raises:
        InputError: a keyword cannot be used; the message says what was given, what is needed and what to do.
    """
    resolved, view = resolve_scope(scope, options), ModelView(model)
    if not isinstance(fwd_hooks, Iterable | None):
        raise InputError(f"fwd_hooks must be a list of pairs of a hook point's name and a function; got {fwd_hooks!r}.")
    entries = _entries(resolved, at, per, reduction, path)
    where = at if entries is None else "hook_embed"
    points = [view.hook_point(where)] if one_point else view.hook_points(where)
    return Setup(
        scope=resolved,
        at=at,
        settings=Settings(
            view,
            points,
            list(fwd_hooks or ()),
            to_rules(gradient, frozen),
            entries is not None,
            recompute=to_recompute(recompute),
        ),
        reduction=NORM if entries else to_reduction(resolved.reduction if reduction is None else reduction),
        path=to_path(path),
        chunk_size=check_chunk_size(chunk_size),
        matmul_precision=check_matmul_precision(matmul_precision),
        progress=progress,
        entries=entries,
    )


def _entries(scope: Scope, at: Any, per: Any, reduction: Any, path: Any) -> PatternEntries | None:
    """Entries of attention patterns, if ``at="pattern"`` and the entry point supports it; else None."""
    if per is NO_PATTERNS and at == PATTERN:
        raise InputError(
            "at='pattern' is taken by js.attribute, js.attribute_batch and js.influence_pattern; this function needs one vector for "
            "each token. Use a hook point of the residual stream, such as 'hook_embed'."
        )
    if per is NO_PATTERNS or at != PATTERN:
        if per is not NO_PATTERNS and per is not None:
            raise InputError(f"per={per!r} separates layers or heads of attention patterns; it needs at='pattern'.")
        return None
    if reduction is not None or not isinstance(to_path(path), Point):
        raise InputError(
            "at='pattern' takes neither reduction nor path: its score is pattern x gradient, at the prompt itself."
        )
    if scope.needs_vectors:
        raise InputError(
            f"{scope.label} needs one vector for each token, which an attention pattern is not. Use at='hook_embed'."
        )
    return PatternEntries(per)
