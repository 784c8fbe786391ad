"""`influence_pattern`: scores for the predictions at all positions, a matrix ``[dest, src]`` like an attention pattern."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.describe import about, finished, of_prompt, predicted, with_sink_warning
from jscope_tl.attribution.keywords import refuse
from jscope_tl.attribution.paths import Path, Point
from jscope_tl.attribution.setup import Setup, set_up
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.inputs import Reduction
from jscope_tl.engine.progress import progress_bar
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.run import Run
from jscope_tl.engine.state import State
from jscope_tl.engine.vjp import Backward
from jscope_tl.errors import InputError
from jscope_tl.model.prompts import Prompt, to_position, to_tokens
from jscope_tl.results.base import PredictedToken
from jscope_tl.results.pattern import InfluencePattern
from jscope_tl.scopes.base import Scope, Score


@documented
def influence_pattern(
    model: Any,
    prompt: Prompt,
    scope: str | Scope | Callable[..., Any] = "semantic",
    positions: Iterable[int] | None = None,
    *,
    at: str = "hook_embed",
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    reduction: str | Reduction | None = None,
    path: str | Path | None = None,
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> InfluencePattern:
    """Score how strongly the prediction at each position depends on each earlier token, in a matrix like an attention pattern.

    ``scores[i, t]`` is the score of token ``t`` for the prediction at ``positions[i]``. One forward pass serves all rows (along a path,
    one for each position and point); additive scopes compute the vector-Jacobian products of many positions in one batch. Without a
    ``target``, the scores of each position explain the token that follows it in the prompt; those of the last one, its most probable token.

    Args:
        positions: the positions whose predictions are explained (negative numbers count from the end); None: all positions.
        {shared}

    Returns:
        An `InfluencePattern` with ``scores [dest, src]``.

    Raises:
        InputError: as in `attribute`; or ``positions`` is empty or contains a position twice.

    Example:
        >>> import jscope_tl as js
        >>> pattern = js.influence_pattern(js.load_pocket_model(), "the keys to the cabinet", "temperature")
        >>> pattern.scores.shape  # BOS and five words
        torch.Size([6, 6])
    """
    refuse("influence_pattern", options)
    setup = set_up(
        model, scope, options, at=at, one_point=True, per=None, fwd_hooks=fwd_hooks, reduction=reduction, path=path,
        gradient=gradient, frozen=frozen, chunk_size=chunk_size, matmul_precision=matmul_precision, progress=progress,
    )  # fmt: skip
    tokens = to_tokens(setup.view, prompt, prepend_bos)
    explained = _positions(positions, len(tokens))
    warnings = setup.warnings(tokens)
    with setup.run(tokens, explained) as (forward, backward):
        targets, scores = _explained(setup, forward, backward)
        dtype, name = forward.y.dtype, setup.view.name
        values, errors = torch.stack([score.values for score in scores]), _errors(scores)
        notes = dict.fromkeys([*backward.notes, *(warning for score in scores for warning in score.warnings)])
        seed = next((score.seed for score in scores if score.seed is not None), None)
        pattern = InfluencePattern(
            **about(setup, tokens, forward.activations[0], forward.passes, seed),
            position=max(explained),
            positions=tuple(explained),
            scores=finished(values, dtype, name),
            stderr=None if errors is None else finished(errors, dtype, name),
            targets=tuple(targets),
            options=_options(setup.options(), scores),
            warnings=[*warnings, *notes, *_nothing_moves(values, explained)],
        )
        return with_sink_warning(of_prompt(pattern, prompt))


def _positions(positions: Any, n_tokens: int) -> list[int]:
    if positions is None:
        return list(range(n_tokens))
    if isinstance(positions, str | bytes) or not isinstance(positions, Iterable):
        raise InputError(f"positions must be a list of positions to explain, or None for all; got {positions!r}.")
    explained = [to_position(position, n_tokens) for position in positions]
    if not explained or len(set(explained)) < len(explained):
        raise InputError(f"positions must be one or more different positions; got {explained}.")
    return explained


def _explained(setup: Setup, forward: Run, backward: Backward) -> tuple[list[PredictedToken], list[Score]]:
    """Targets and scores: all positions in one batch if the scope is additive, else position by position."""
    in_one_batch = setup.scope.additive and isinstance(setup.path, Point)
    targets, rows, scores = [], [], []
    shown = False if in_one_batch else backward.progress
    if not in_one_batch:
        backward.progress = False  # one bar for all positions
    for i in progress_bar(shown, "positions", "position", range(len(forward.positions))):
        state = forward.state(i)
        with _named(state, isinstance(setup.path, Point)):
            targets += predicted(state, forward.view, [setup.scope.target_id(state)])
            if in_one_batch:
                rows.append(setup.scope.rows(state))
            else:
                scores.append(setup.score(forward, backward, i))
    return targets, _batched(setup, rows, backward) if in_one_batch else scores


def _batched(setup: Setup, rows: list[Float[Tensor, "_ d_model"]], backward: Backward) -> list[Score]:
    n_rows = [len(of_one) for of_one in rows]
    starts = torch.tensor([i for i, n in enumerate(n_rows) for _ in range(n)], device="cpu")
    numbers = setup.numbers(backward, torch.cat(rows), max(n_rows), of=starts)
    return [setup.in_units(Score(setup.combined(of_one))) for of_one in numbers.split(n_rows)]


@contextmanager
def _named(state: State, choice: bool) -> Iterator[None]:
    """Add the position to the message of an error."""
    try:
        yield
    except InputError as error:
        cure = " Choose other positions, or pass a target that suits all." if choice else ""
        raise InputError(f"At position {state.position}: {error}{cure}") from error


def _errors(scores: list[Score]) -> Float[Tensor, "dest src"] | None:
    """Standard errors; 0 in rows that are exact."""
    if all(score.stderr is None for score in scores):
        return None
    return torch.stack([torch.zeros_like(s.values) if s.stderr is None else s.stderr for s in scores])


def _options(options: dict[str, Any], scores: list[Score]) -> dict[str, Any]:
    resolved = [score.resolved for score in scores]
    return {**options, "resolved": resolved} if any(resolved) else options


def _nothing_moves(values: Float[Tensor, "dest src"], positions: list[int]) -> list[str]:
    certain = [position for position, row in zip(positions, values, strict=True) if not row.any()]
    if not certain:
        return []
    return [f"Every score is 0 at positions {certain}: their predictions are so certain that the gradient is 0."]
