"""Rows averaged along a path, and whether their contributions add up."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.model.embeddings import embedding
from jscope_tl.engine.backward import Puller
from jscope_tl.errors import InputError
from jscope_tl.engine.forward import Run, run_again
from jscope_tl.engine.inputs import Inputs
from jscope_tl.model.view import ModelView
from jscope_tl.attribution.paths import Line, Path, Points
from jscope_tl.engine.progress import bar
from jscope_tl.scopes.base import Scope, Score
from jscope_tl.engine.state import State

INCOMPLETE = 0.05
MOST_BYTES = 2**31
"""Of the averaged rows."""


def to_baseline(view: ModelView, path: Path, at: Sequence[str], pos: int) -> Tensor | None:
    """``x0``; None is zero."""
    d_in = int(view.cfg.d_model)
    if isinstance(path.baseline, Tensor):
        if path.baseline.shape not in ((d_in,), (pos, d_in)) or not path.baseline.isfinite().all():
            raise InputError(
                f"A baseline tensor is finite and [d] or [pos, d], here [{d_in}] or [{pos}, {d_in}]; this one is "
                f"{list(path.baseline.shape)}."
            )
        return path.baseline.detach()
    if path.baseline == "zero":
        return None
    if list(at) != ["hook_embed"]:
        raise InputError(
            f"The baseline {path.baseline!r} is an embedding; at {', '.join(at)} give 'zero' or a tensor of your own."
        )
    return embedding(view, path.baseline, pos)


def averaged_score(path: Path, scope: Scope, end: Run, puller: Puller, hooks: list[Any]) -> Score:
    """The scope's score from rows that are averaged along the path; ``end`` is the prompt's own run."""
    state, x0 = end.state(), end.inputs.baseline
    fixed = scope.path_rows(state)
    _check_size(path, scope, fixed, end)
    origin = torch.zeros_like(state.x[0]) if x0 is None else x0.to(state.x)
    at_once = end.view.prompts_at_once(len(end.tokens), hooks)
    batches = [range(n, min(n + at_once, path.n_points())) for n in range(0, path.n_points(), at_once)]
    total: Tensor | float = 0.0
    for which in bar(batches, puller.progress if len(batches) > 1 else False, "points of the path", "batch"):
        place = partial(_place, path, origin, which)
        with run_again(end, len(which), hooks, Inputs(end.inputs.reduction, x0, place)) as run:
            own = Puller(
                run.xs,
                run.y,
                run.positions,
                puller.chunk_size,
                False,
                matmul_precision=puller.matmul_precision,
                rounding=puller.rounding,
            )
            rows = own.rows(_cotangents(scope, fixed, state, run))
            total = total + torch.cat([_summed(chunk, len(which)) for chunk in rows])
            puller.n_backward += len(which) * len(fixed) + (2 if own.rounding != puller.rounding else 0)
            puller.rounding = own.rounding
            puller.notes += [note for note in own.notes if note not in puller.notes]
    mean = torch.as_tensor(total) / path.n_points()
    mean[:, state.position + 1 :] = 0
    resolved, doubts = _completeness(path, scope, end, fixed, mean, origin, hooks)
    resolved["cotangents"] = "taken anew at each point" if scope.moves_along else "those of the prompt, at each point"
    return Score(scope.of_rows(mean), resolved=resolved, doubts=doubts)


def _place(path: Path, origin: Float[Tensor, "*pos d_in"], which: range, activation: Points) -> Points:
    points = path.points(activation[0], origin, which)
    if not isinstance(points, Tensor) or points.shape != activation.shape:
        raise InputError(
            f"{type(path).__name__}.points returned {list(getattr(points, 'shape', []))}; needed are {len(which)} points of the "
            f"shape of x, {list(activation.shape)}."
        )
    return points.to(activation)


def _cotangents(scope: Scope, fixed: Float[Tensor, "k d_model"], end: State, run: Run) -> Float[Tensor, "k n d_model"]:
    """At each point its own gradient, or the prompt's cotangents at all of them."""
    if not scope.moves_along:
        return fixed.unsqueeze(1).expand(-1, len(run.y), -1)
    # What is explained unless a target is given is the prompt's most probable token, not that of the point.
    states = [replace(run.state(i), to_id=end.to_id) for i in range(len(run.y))]
    rows = [scope.path_rows(state) for state in states]
    if any(len(of_one) != len(fixed) for of_one in rows):
        raise InputError(
            f"{scope.label} has {len(fixed)} cotangents at the prompt and another number elsewhere on the path. "
            "Register it with moves_along=False to keep those of the prompt."
        )
    return torch.stack(rows, 1)


def _check_size(path: Path, scope: Scope, fixed: Float[Tensor, "k d_model"], end: Run) -> None:
    if path.n_points() < 1:
        raise InputError(f"A path has one point or more; {type(path).__name__} has {path.n_points()}.")
    size = fixed.element_size() * len(fixed) * end.xs[0].numel()
    if size > MOST_BYTES:
        raise InputError(
            f"Along a path the rows of all positions are held at once: {size / 1e9:.1f} GB for the {len(fixed)} cotangents of "
            f"{scope.label}. Take fewer, for fisher with method='low_rank', or a shorter prompt."
        )


def _summed(rows: Float[Tensor, "chunk all_pos d_s"], n: int) -> Float[Tensor, "chunk pos d_s"]:
    """Over the ``n`` points that were run side by side."""
    return rows.unflatten(1, (n, -1)).sum(1)


def _completeness(
    path: Path,
    scope: Scope,
    end: Run,
    fixed: Float[Tensor, "k d_model"],
    rows: Float[Tensor, "k pos d_s"],
    origin: Float[Tensor, "*pos d_in"],
    hooks: list[Any],
) -> tuple[dict[str, Any], list[str]]:
    """The sum of all signed contributions beside the change of what is explained from baseline to prompt."""
    from_start_to_end = isinstance(path, Line) and path.alphas is None and end.inputs.reduction != "norm"
    if not (from_start_to_end and len(fixed) == 1 and _has_change(scope)):
        return {}, []
    start = partial(_place, Line(alphas=(0.0,)), origin, range(1))
    with run_again(end, 1, hooks, Inputs(place=start)) as baseline:
        change = _change(scope, fixed, end.state(), baseline.state())
    total = float(rows.sum())
    doubts = []
    if abs(total - change) > INCOMPLETE * abs(change):
        doubts = [
            f"The contributions along the line add up to {total:.4g}, but from the baseline to the prompt it changes by "
            f"{change:.4g}: {path.n_points()} steps are too few, or numbers are too coarse."
        ]
    return {"completeness": {"sum": total, "change": change}}, doubts


def _has_change(scope: Scope) -> bool:
    """Whether it is known of what the contributions are shares, in the unit of the score."""
    plain = type(scope).combined is Scope.combined and type(scope).score is Scope.score
    return plain and (not scope.moves_along or type(scope).effect_from is not Scope.effect_from)


def _change(scope: Scope, fixed: Float[Tensor, "1 d_model"], end: State, start: State) -> float:
    if scope.moves_along:
        return -float(scope.effect_from(end)(start.y.detach(), start.logits.detach()))
    return float(fixed[0] @ (end.y - start.y).detach().to(fixed))
