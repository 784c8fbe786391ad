"""`compare`: does a scope agree with activation patching, and what does each cost?"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.attribute import attribution
from jscope_tl.engine.backward import Puller, check_chunk_size
from jscope_tl.errors import InputError, whole
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.attribution.linearised import Linearised
from jscope_tl.model.view import ModelView
from jscope_tl.patching.comparison import Comparison, Cost
from jscope_tl.patching.prediction import scored_and_predicted
from jscope_tl.patching.pairs import Pair, source_activations, to_pair
from jscope_tl.patching.patched_runs import Cells, Patches
from jscope_tl.model.prompts import Prompt, prompt_warnings, to_str_tokens
from jscope_tl.results.attribution import Attribution
from jscope_tl.scopes.base import Effect, Scope
from jscope_tl.scopes.registry import resolve_scope


@torch.inference_mode(False)
def compare(
    model: Any,
    clean: Prompt,
    corrupted: Prompt,
    scope: str | Scope | Callable[..., Any] = "semantic",
    *,
    direction: str = "noising",
    position: int = -1,
    at: str | Sequence[str] = "resid_pre",
    only_top: int | None = None,
    rank_by: str = "score",
    cache: Any = None,
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    chunk_size: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Comparison:
    """Patch every (layer, position) and hold the effects against the scope that predicts them.

    The base run is the clean one for ``"noising"`` (the scope explains the clean prediction, corrupted activations are
    patched in), the corrupted one for ``"denoising"``. The effect is the change of what the scope explains: of the target's
    logit for ``semantic``, of ``‖y‖`` for ``temperature``, the KL divergence ``KL(base ‖ patched)`` for ``fisher``. Its
    prediction, ``C J_t (x_source - x_base)`` or ``½ δ^T J_t^T F_u J_t δ``, comes from the rows of the scope itself.

    Args:
        model, position, prepend_bos, fwd_hooks, chunk_size, progress: see `attribute`. The hooks are active in every run.
        clean, corrupted: prompts of the same number of tokens.
        scope, options: see `attribute`; the target refers to the base run.
        at: ``"resid_pre"``, ``"resid_post"`` (``"resid_mid"`` on a HookedTransformer), or a list of hook points.
        only_top: patch only so many cells of each hook point, those that rank first, and all of them together (`held`).
        rank_by: what ranks them: the scope's ``"score"``, or the absolute ``"predicted"`` effect, which knows where the two
            runs differ.
        cache: the source run's cache, where it is at hand.

    Returns:
        A `Comparison`.

    Raises:
        InputError: prompts of different length or the same, a cache of another model or prompt, hook points outside the
            residual stream, and what `attribute` refuses.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> js.patching.compare(model, "the keys near the door", "the key near the door", "log_prob").effects.shape
        torch.Size([4, 6])
    """
    scope = resolve_scope(scope, options)
    view = ModelView(model)
    pair, position = to_pair(view, clean, corrupted, direction, prepend_bos, position)
    points = _patchable(view, at)
    hooks = list(fwd_hooks or ())
    _check_top(only_top, rank_by)
    start = time.perf_counter()
    source = source_activations(view, pair, points, hooks, cache)
    how = {"chunk_size": check_chunk_size(chunk_size), "progress": progress}
    result, predicted, effect = _explained(view, scope, pair, position, at, source, hooks, how)
    scope_cost = Cost((1 if cache is not None else 2) + result.provenance.n_backward, time.perf_counter() - start)
    cells = _cells(result, predicted, only_top, rank_by)
    patches = Patches(view, pair, source, position, effect, hooks, progress)
    measured = _measured(patches, cells, joint=only_top is not None)
    if cache is not None and not (predicted.any() or measured.each.any()):
        raise InputError(
            "Patching in what the cache holds changes nothing: are these the activations of the run that is patched? Needed are "
            "those of the other prompt."
        )
    effects = torch.full(predicted.shape, torch.nan, dtype=torch.float64, device="cpu")
    effects[tuple(torch.tensor(cells, device="cpu").T)] = measured.each
    return Comparison(
        scope=result,
        effects=effects,
        predicted=predicted,
        total=measured.total,
        joint=measured.joint,
        effect_unit=scope.effect_unit,
        direction=direction,
        str_tokens=result.str_tokens,
        source_str_tokens=to_str_tokens(view, pair.source.tolist()),
        costs={"scope": scope_cost, "patching": measured.cost},
    )


def _explained(
    view: ModelView,
    scope: Scope,
    pair: Pair,
    position: int,
    at: Any,
    source: Any,
    hooks: list[Any],
    how: dict[str, Any],
) -> tuple[Attribution, Float[Tensor, "layer pos"], Effect]:
    """The base run's layer map, predictions from the same rows, and how to measure an effect; the graph ends here."""
    warnings = [*scope.check(view.basis), *prompt_warnings(view, pair.base)]
    plain = Linearised.checked(scope, "norm", None, (), hooks)  # predictions need whole rows
    with plain.run(view, pair.base, [position], list(source)) as forward:
        puller = Puller(forward.xs, forward.y, [position], **how)
        scope.explained_token(forward.state())
        score, predicted = scored_and_predicted(forward, scope, puller, list(source.values()))
        result = attribution(forward, scope, plain, score, puller, at, warnings)
        return result, predicted, scope.effect_from(forward.state())


@dataclass(frozen=True)
class _Measured:
    """Effects of the chosen cells, of all cells of a hook point together, and of the whole source run."""

    each: Float[Tensor, "cells"]
    joint: Float[Tensor, "layer"] | None
    total: float
    cost: Cost


def _measured(patches: Patches, cells: Cells, joint: bool) -> _Measured:
    start = time.perf_counter()
    with patches.measuring() as sweep:
        each, total = sweep.each(cells), sweep.whole()
        together = sweep.together(cells) if joint else None
    n_runs = 2 + len(cells) + (0 if together is None else len(together))
    return _Measured(each, together, total, Cost(n_runs, time.perf_counter() - start))


def _patchable(view: ModelView, at: Any) -> list[str]:
    points = view.hook_points(at)
    beside = [name for name in points if view.reads_beside(name)]
    if beside:
        raise InputError(
            f"On a TransformerBridge {beside[0]!r} is what the MLP reads, and a patch there would not reach the stream. Patch "
            "at 'resid_pre' or 'resid_post', or use a HookedTransformer."
        )
    return points


def _check_top(only_top: Any, rank_by: Any) -> None:
    if only_top is not None and ((whole(only_top) or 0) < 1):
        raise InputError(f"only_top is how many cells of each hook point to patch, 1 or more; got {only_top!r}.")
    if rank_by not in ("score", "predicted"):
        raise InputError(f"rank_by is 'score' or 'predicted', not {rank_by!r}.")


def _cells(
    result: Attribution, predicted: Float[Tensor, "layer pos"], only_top: int | None, rank_by: str
) -> list[tuple[int, int]]:
    places = range(result.position + 1)
    if only_top is None:
        return [(layer, t) for layer in range(len(predicted)) for t in places]
    ranking = result.scores.double() if rank_by == "score" else predicted.abs()
    candidates = torch.tensor([t for t in places if t not in result.bos_positions] or list(places), device="cpu")
    best = candidates[ranking[:, candidates].topk(min(only_top, len(candidates)), dim=1).indices]
    return [(layer, t) for layer, row in enumerate(best.tolist()) for t in sorted(row)]
