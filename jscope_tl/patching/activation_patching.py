"""`compare`: the agreement of a scope with activation patching, and the cost of both."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.describe import attribution, of_prompt
from jscope_tl.attribution.keywords import refuse
from jscope_tl.attribution.setup import Setup, set_up
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.inputs import NORM
from jscope_tl.engine.rules import Rules
from jscope_tl.errors import InputError, count
from jscope_tl.model.pairs import Pair, need_patchable, source_activations, to_pair
from jscope_tl.model.prompts import Prompt, prompt_texts
from jscope_tl.model.running import Passes
from jscope_tl.patching.comparison import Comparison
from jscope_tl.patching.patched_runs import patched_effects
from jscope_tl.patching.predicted_effects import scored_and_predicted
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.cost import Cost
from jscope_tl.scopes.base import Effect, Scope


@documented
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
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Comparison:
    """Patch every (layer, position), and compare the effects with the scores and predictions of a scope.

    For ``"noising"`` the base run is the clean prompt: the scope explains its prediction, and corrupted activations are patched in. For
    ``"denoising"`` the base run is the corrupted prompt. The effect is the change of the quantity that the scope explains: the target's
    logit for ``semantic``, ``‖y‖`` for ``temperature``; for ``fisher`` it is the KL divergence ``KL(base ‖ patched)``. The predicted
    effect, ``C J_t (x_source - x_base)`` or ``½ δ^T J_t^T F_u J_t δ``, needs no further backward passes than the scores.

    Cells with the same activation in both runs and cells after the explained position have no effect and are not run. The others run
    in batches that start at the patched block; if any hooks of the user are active, they run one at a time through the whole model.

    Args:
        clean, corrupted: prompts of the same number of tokens.
        direction: ``"noising"`` or ``"denoising"``.
        at: ``"resid_pre"``, ``"resid_post"`` (``"resid_mid"`` on a HookedTransformer), or a list of hook points.
        only_top: patch only this number of cells at each hook point, the highest ones, and also all of them together (`held`).
        rank_by: the ranking for ``only_top``: the scope's ``"score"``, or the absolute ``"predicted"`` effect, which takes into account
            how much the two runs differ.
        cache: the `ActivationCache` of the source run, if you have it.
        frozen: ``"attn"`` holds attention patterns constant, ``"norm"`` normalisation scales. This applies to the scope and its
            predictions; the patched runs use the unchanged model.
        options: options of the scope, if it is given by name; the target refers to the base run.
        {shared}

    Returns:
        A `Comparison`.

    Raises:
        InputError: prompts of different length, or identical prompts; a cache of another model or prompt; hook points outside the
            residual stream; and the cases in which `attribute` raises it.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> js.patching.compare(model, "the keys near the door", "the key near the door", "log_prob").effects.shape
        torch.Size([4, 6])
    """
    refuse("patching.compare", options)
    setup = set_up(
        model, scope, options, at=at, fwd_hooks=fwd_hooks, reduction=NORM, gradient=gradient, frozen=frozen, chunk_size=chunk_size,
        matmul_precision=matmul_precision, progress=progress,
    )  # fmt: skip
    view, points = setup.view, setup.settings.at
    if len(points) == 1:
        setup = replace(setup, at=list(points))  # a layer map of one layer, and not a row of scores
    pair, explained = to_pair(view, clean, corrupted, direction, prepend_bos, position)
    need_patchable(view, points)
    only_top = _checked_top(only_top, rank_by)
    start, passes = time.perf_counter(), Passes()
    source = source_activations(view, pair, points, setup.settings.fwd_hooks, passes, cache)
    result, predicted, effect = _explained(setup, pair, explained, source)
    scope_cost = Cost.of(result.provenance, time.perf_counter() - start, passes)
    start, asked = time.perf_counter(), _asked(result, predicted, only_top, rank_by)
    hooks, jointly = setup.settings.fwd_hooks, only_top is not None
    found = patched_effects(view, pair, source, explained, effect, hooks, asked, jointly, progress)
    if cache is not None and not (predicted.any() or found.effects.nan_to_num().any()):
        raise InputError(
            "Patching in the activations of the cache changes nothing. The cache is probably that of the run that is patched; give the "
            "cache of the other prompt."
        )
    skipped = int((asked & ~found.ran).sum())
    return Comparison(
        scope=of_prompt(result, clean if direction == "noising" else corrupted),
        effects=found.effects,
        predicted=predicted,
        total=found.total,
        joint=found.joint,
        effect_unit=setup.scope.effect_unit,
        direction=direction,
        str_tokens=result.str_tokens,
        source_str_tokens=prompt_texts(view, pair.source.tolist()),
        costs={"scope": scope_cost, "patching": Cost(found.n_forward, 0, time.perf_counter() - start, skipped)},
    )


def _explained(
    setup: Setup, pair: Pair, position: int, source: dict[str, Float[Tensor, "1 pos d_in"]]
) -> tuple[Attribution, Float[Tensor, "layer pos"], Effect]:
    """The base run's layer map, the predicted effects, and the function that measures an effect. The graph is freed afterwards."""
    warnings = setup.warnings(pair.base)
    with setup.run(pair.base, [position]) as (forward, backward):
        setup.scope.target_id(forward.state())
        score, predicted = scored_and_predicted(forward, setup.scope, backward, list(source.values()))
        result = attribution(setup, forward, score, [*warnings, *backward.notes])
        return result, predicted, setup.scope.effect_from(forward.state())


def _checked_top(only_top: Any, rank_by: Any) -> int | None:
    if rank_by not in ("score", "predicted"):
        raise InputError(f"rank_by is 'score' or 'predicted', not {rank_by!r}.")
    return None if only_top is None else count("only_top", only_top, 1)


def _asked(
    result: Attribution, predicted: Float[Tensor, "layer pos"], only_top: int | None, rank_by: str
) -> Bool[Tensor, "layer pos"]:
    """The cells to patch: all, or the highest of each hook point up to the explained position."""
    if only_top is None:
        return torch.ones(predicted.shape, dtype=torch.bool, device="cpu")
    places = range(result.position + 1)
    ranking = result.scores.double() if rank_by == "score" else predicted.abs()
    candidates = torch.tensor([t for t in places if t not in result.bos_positions] or list(places), device="cpu")
    best = candidates[ranking[:, candidates].topk(min(only_top, len(candidates)), dim=1).indices]
    return torch.zeros(predicted.shape, dtype=torch.bool, device="cpu").scatter(1, best, True)
