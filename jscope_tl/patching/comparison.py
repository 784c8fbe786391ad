"""`compare`: does a scope agree with activation patching, and what does each cost?"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.agreement import spearman
from jscope_tl.attribute import Prompt
from jscope_tl.engine import Puller, check_chunk_size
from jscope_tl.errors import InputError, whole
from jscope_tl.forward import FwdHooks, run
from jscope_tl.model import ModelView
from jscope_tl.patching.first_order import explained_and_predicted
from jscope_tl.patching.pairs import source_activations, to_pair
from jscope_tl.patching.sweep import Cells, Patches
from jscope_tl.prompts import prompt_warnings, to_position, to_str_tokens
from jscope_tl.result import Attribution
from jscope_tl.scopes.base import Scope
from jscope_tl.scopes.registry import resolve_scope

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cost:
    """What something took: forward-pass equivalents (a backward row counts as one) and seconds."""

    forward_equivalents: int
    seconds: float


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation with the absolute effect of patching over ``n`` cells, and overlap of the ``k`` highest.

    ``score`` is that of the scope's score, ``predicted`` that of the absolute predicted effect.
    """

    hook_point: str
    score: float
    predicted: float
    top_score: float
    top_predicted: float
    k: int
    n: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """A scope beside activation patching, cell by cell.

    Attributes:
        scope: the layer map of the base run's scores.
        effects: ``[layer, pos]``, actual effect of patching each cell, NaN where it was not patched; in `effect_unit`.
        predicted: ``[layer, pos]``, what the scope's rows predict for it, to first order (Fisher: second).
        total: the effect of the whole source run.
        joint: ``[layer]``, effect of patching the cells ``only_top`` together; None without it.
        effect_unit: unit of effects; signed except for Fisher, whose effect is a KL divergence.
        direction: ``"noising"`` (corrupted activations into the clean run) or ``"denoising"``.
        str_tokens: text of the base run's tokens.
        source_str_tokens: text of the source run's tokens.
        costs: of the ``"scope"`` with its predictions, and of ``"patching"``.
    """

    scope: Attribution
    effects: Float[Tensor, "layer pos"]
    predicted: Float[Tensor, "layer pos"]
    total: float
    joint: Float[Tensor, "layer"] | None
    effect_unit: str
    direction: str
    str_tokens: list[str]
    source_str_tokens: list[str]
    costs: dict[str, Cost]

    @property
    def held(self) -> Float[Tensor, "layer"] | None:
        """Share of the total effect that the cells of ``only_top`` hold together, at each hook point."""
        return None if self.joint is None else self.joint / self.total

    def agreement(self, k: int = 5) -> list[Agreement]:
        """How scores and predictions agree with patching: for each hook point, and for all cells together (last).

        Over the cells that were patched, BOS left out.
        """
        if whole(k) is None or k < 1:
            raise InputError(f"k is how many of the highest cells to compare, 1 or more; got {k!r}.")
        rows = [self._agreement(name, [i], k) for i, name in enumerate(self.scope.hook_points)]
        return [*rows, self._agreement("all", list(range(len(rows))), k)]

    def _agreement(self, name: str, layers: list[int], k: int) -> Agreement:
        kept = self.effects[layers].isfinite()
        kept[:, list(self.scope.bos_positions)] = False
        effects, predicted, scores = (
            values[layers][kept].double().abs() for values in (self.effects, self.predicted, self.scope.scores)
        )
        n = min(k, len(effects))
        return Agreement(
            name,
            float(spearman(scores.numpy(), effects.numpy())) if n else 0.0,
            float(spearman(predicted.numpy(), effects.numpy())) if n else 0.0,
            _overlap(scores, effects, n),
            _overlap(predicted, effects, n),
            n,
            len(effects),
        )

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per cell: score, predicted and actual effect."""
        frame = self.scope.to_dataframe()
        frame["predicted"] = self.predicted.flatten().numpy()
        frame["effect"] = self.effects.flatten().numpy()
        frame["source_str_token"] = self.source_str_tokens * len(self.scope.hook_points)
        frame.attrs["effect_unit"] = self.effect_unit
        return frame

    def __repr__(self) -> str:
        overall = self.agreement()[-1]
        costs = "; ".join(
            f"{name} {cost.forward_equivalents} forward passes, {cost.seconds:.2f} s"
            for name, cost in self.costs.items()
        )
        lines = [
            f"Comparison: {self.scope.scope} scope and {self.direction} patching of {overall.n} cells, effects in "
            f"{self.effect_unit} (whole source run: {self.total:.4g})",
            f"  rank correlation with the effect: score {overall.score:.2f}, predicted {overall.predicted:.2f}; of the "
            f"{overall.k} highest: {overall.top_score:.0%}, {overall.top_predicted:.0%}",
            f"  cost: {costs}",
        ]
        if self.held is not None:
            shares = ", ".join(f"{share:.0%}" for share in self.held.tolist())
            lines.append(f"  share of the whole effect that the patched cells of a hook point hold together: {shares}")
        return "\n".join(lines)


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
    pair = to_pair(view, clean, corrupted, direction, prepend_bos)
    position = to_position(position, len(pair.base))
    points = _patchable(view, at)
    hooks = list(fwd_hooks)
    _check_top(only_top, rank_by)
    warnings = [*scope.check(view.basis), *prompt_warnings(view, pair.base)]
    start = time.perf_counter()
    source = source_activations(view, pair, points, hooks, cache)
    with run(view, pair.base, [position], points, hooks) as forward:
        puller = Puller(forward.xs, forward.y, [position], check_chunk_size(chunk_size), progress)
        result, predicted = explained_and_predicted(forward, scope, puller, points, list(source.values()), warnings)
        seconds = time.perf_counter() - start
        patches = Patches(view, pair, source, position, partial(scope.effect, forward.state()), hooks, progress)
        cells = _cells(result, predicted, only_top, rank_by)
        measured = _measured(patches, cells, joint=only_top is not None)
    effects = torch.full(predicted.shape, torch.nan, dtype=torch.float64)
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
        costs={"scope": Cost(2 + puller.n_backward, seconds), "patching": measured.cost},
    )


@dataclass(frozen=True)
class _Measured:
    """Effects of the chosen cells, of all cells of a hook point together, and of the whole source run."""

    each: Float[Tensor, "cells"]
    joint: Float[Tensor, "layer"] | None
    total: float
    cost: Cost


def _measured(patches: Patches, cells: Cells, joint: bool) -> _Measured:
    start = time.perf_counter()
    each, total = patches.each(cells), patches.whole()
    together = patches.together(cells) if joint else None
    n_runs = len(cells) + 1 + (0 if together is None else len(together))
    return _Measured(each, together, total, Cost(n_runs, time.perf_counter() - start))


def _overlap(a: Float[Tensor, "n"], b: Float[Tensor, "n"], k: int) -> float:
    """Share of the ``k`` highest of one that are among the ``k`` highest of the other."""
    return len(set(a.topk(k).indices.tolist()) & set(b.topk(k).indices.tolist())) / max(k, 1)


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
    n = result.position + 1
    if only_top is None:
        return [(layer, t) for layer in range(len(predicted)) for t in range(n)]
    ranking = (result.scores.double() if rank_by == "score" else predicted.abs())[:, :n].clone()
    ranking[:, list(result.bos_positions)] = -1
    best = ranking.topk(min(only_top, n), dim=1).indices.tolist()
    return [(layer, t) for layer, row in enumerate(best) for t in sorted(row)]
