"""One scope for every position's prediction: the matrix ``[dest, src]`` that lies beside an attention pattern."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.attribute import finished, options_of, predicted, provenance
from jscope_tl.engine.backward import Puller, check_chunk_size
from jscope_tl.errors import InputError
from jscope_tl.engine.forward import FwdHooks, Run
from jscope_tl.attribution.linearised import Linearised
from jscope_tl.model.view import ModelView
from jscope_tl.model.prompts import Prompt, bos_positions, prompt_warnings, to_position, to_str_tokens, to_tokens
from jscope_tl.engine.vjp import Pull
from jscope_tl.results.attribution import InfluencePattern, PredictedToken
from jscope_tl.scopes.base import Scope, Score, checked_cotangents
from jscope_tl.scopes.registry import resolve_scope
from jscope_tl.engine.state import State


def influence_pattern(
    model: Any,
    prompt: Prompt,
    scope: str | Scope | Callable[..., Any] = "semantic",
    positions: Iterable[int] | None = None,
    *,
    at: str = "hook_embed",
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    reduction: str | None = None,
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> InfluencePattern:
    """How strongly each earlier token drove the prediction at each position: a scope laid out like an attention pattern.

    ``scores[i, t] = score_t`` of the prediction at ``positions[i]``. One forward pass for all rows; scopes with few
    cotangents pull the rows of many positions back in one batch.

    Args:
        positions: the predictions to explain (negative counts from the end); None is all of them.
        model, prompt, scope, at, prepend_bos, fwd_hooks, reduction, frozen, chunk_size, progress, options: see `attribute`. Without a
            ``target`` each position explains the token that follows it in the prompt, the last one its most probable.

    Returns:
        An `InfluencePattern` with ``scores [dest, src]``.

    Raises:
        InputError: as `attribute`, and where ``positions`` is empty or has one twice.

    Example:
        >>> import jscope_tl as js
        >>> pattern = js.influence_pattern(js.load_pocket_model(), "the keys to the cabinet", "temperature")
        >>> pattern.scores.shape  # BOS and five words
        torch.Size([6, 6])
    """
    scope = resolve_scope(scope, options)
    view = ModelView(model)
    tokens = to_tokens(view, prompt, prepend_bos)
    explained = _positions(positions, len(tokens))
    chunk_size = check_chunk_size(chunk_size)
    warnings = [*scope.check(view.basis), *prompt_warnings(view, tokens)]
    how = Linearised.checked(scope, reduction, None, frozen, fwd_hooks)
    with how.run(view, tokens, explained, [view.hook_point(at)]) as forward:
        puller = Puller(forward.xs, forward.y, explained, chunk_size, progress)
        targets, scores = _explained(scope, forward, puller)
        scores = [how.in_units(scope, score) for score in scores]
        values, errors = torch.stack([score.values for score in scores]), _errors(scores)
        return InfluencePattern(
            scores=finished(values, forward.y.dtype, view.name),
            positions=tuple(explained),
            targets=tuple(targets),
            tokens=tokens.cpu(),
            str_tokens=to_str_tokens(view, tokens.tolist()),
            scope=how.label(scope),
            options=_options({**options_of(scope), **how.says()}, scores),
            unit=how.unit(scope),
            stderr=None if errors is None else finished(errors, forward.y.dtype, view.name),
            basis=view.basis,
            provenance=provenance(view, forward.activations[0], at, puller.n_backward, _seed(scores)),
            warnings=[*warnings, *dict.fromkeys([*puller.notes, *_doubts(scores)]), *_nothing_moves(values, explained)],
            bos_positions=bos_positions(view, tokens),
        )


def _positions(positions: Any, n_tokens: int) -> list[int]:
    if positions is None:
        return list(range(n_tokens))
    if isinstance(positions, str | bytes) or not isinstance(positions, Iterable):
        raise InputError(f"positions are a list of positions to explain, or None for all; got {positions!r}.")
    explained = [to_position(position, n_tokens) for position in positions]
    if not explained or len(set(explained)) < len(explained):
        raise InputError(f"positions are one or more positions, each once; got {explained}.")
    return explained


def _explained(scope: Scope, forward: Run, puller: Puller) -> tuple[list[PredictedToken], list[Score]]:
    """Targets and scores: rows of all positions in one batch where the scope adds its rows up plainly."""
    in_one_batch = type(scope).score is Scope.score
    targets, rows, scores = [], [], []
    for i in _watch(forward.positions, puller, not in_one_batch):
        state = forward.state(i)
        with _named(state):
            targets += predicted(state, forward.view, [scope.explained_token(state)])
            if in_one_batch:
                rows.append(checked_cotangents(scope.cotangents(state), state, scope.label))
            else:
                scores.append(scope.score(state, Pull(puller, i)))
    return targets, _batched(scope, rows, puller) if in_one_batch else scores


def _batched(scope: Scope, rows: list[Float[Tensor, "_ d_model"]], puller: Puller) -> list[Score]:
    starts = torch.tensor([i for i, of_one in enumerate(rows) for _ in of_one], device="cpu")
    energies = puller.energies(torch.cat(rows), of=starts)
    return [Score(scope.combined(of_one)) for of_one in energies.split([len(of_one) for of_one in rows])]


@contextmanager
def _named(state: State) -> Iterator[None]:
    """Say at which position a scope cannot be used."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"At position {state.position}: {error} Choose other positions, or give a target that suits all."
        ) from error


def _errors(scores: list[Score]) -> Float[Tensor, "dest src"] | None:
    """Standard errors, 0 in rows that came out exact."""
    if all(score.stderr is None for score in scores):
        return None
    return torch.stack([torch.zeros_like(s.values) if s.stderr is None else s.stderr for s in scores])


def _options(options: dict[str, Any], scores: list[Score]) -> dict[str, Any]:
    resolved = [score.resolved for score in scores]
    return {**options, "resolved": resolved} if any(resolved) else options


def _seed(scores: list[Score]) -> int | None:
    return next((score.seed for score in scores if score.seed is not None), None)


def _doubts(scores: list[Score]) -> list[str]:
    return [doubt for score in scores for doubt in score.doubts]


def _nothing_moves(values: Float[Tensor, "dest src"], positions: list[int]) -> list[str]:
    certain = [position for position, row in zip(positions, values, strict=True) if not row.any()]
    if not certain:
        return []
    return [f"Every score is 0 at positions {certain}: their predictions are so certain that nothing moves them."]


def _watch(positions: Sequence[int], puller: Puller, one_by_one: bool) -> Iterator[int]:
    """Places in ``positions``, with one bar for all in place of a bar for each where they are pulled one by one."""
    wanted = puller.progress
    if wanted is False or not one_by_one:
        yield from range(len(positions))
        return
    from tqdm.auto import tqdm

    puller.progress = False
    yield from tqdm(range(len(positions)), desc="positions", delay=0 if wanted else 1, leave=False)
