"""Rows averaged along a path, and whether their contributions add up."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.paths import Line, Path, Points
from jscope_tl.engine.forward import run_again
from jscope_tl.engine.inputs import NORM, Inputs
from jscope_tl.engine.progress import progress_bar
from jscope_tl.engine.run import Run
from jscope_tl.engine.state import State
from jscope_tl.engine.vjp import Backward
from jscope_tl.errors import InputError
from jscope_tl.model.embeddings import embedding
from jscope_tl.model.running import Passes
from jscope_tl.model.view import ModelView
from jscope_tl.scopes.base import Scope, Score

INCOMPLETE = 0.05
"""Relative difference between sum and change above which a warning says that contributions do not add up."""
MOST_BYTES = 2**31
"""Maximum size of the averaged rows."""


def to_origin(
    view: ModelView, origin: str | Float[Tensor, "*some d_in"], at: Sequence[str], pos: int, passes: Passes
) -> Float[Tensor, "*pos d_in"] | None:
    """The origin ``x0`` of a path; None means zero.

    Raises:
        InputError: the tensor has another shape, or the origin is a named embedding and the hook point is not the embedding.
    """
    d_in = int(view.cfg.d_model)
    if isinstance(origin, Tensor):
        if origin.shape not in ((d_in,), (pos, d_in)) or not origin.isfinite().all():
            raise InputError(
                f"An origin tensor must be finite and have shape [d] or [pos, d], here [{d_in}] or [{pos}, {d_in}]; got "
                f"{list(origin.shape)}."
            )
        return origin.detach()
    if origin == "zero":
        return None
    if list(at) != ["hook_embed"]:
        raise InputError(
            f"The origin {origin!r} is an embedding; at {', '.join(at)} pass 'zero' or a tensor of your own."
        )
    return embedding(view, origin, pos, passes)


def averaged_score(path: Path, scope: Scope, end: Run, backward: Backward, i: int = 0) -> Score:
    """The score of the ``i``-th explained position from rows that are averaged along the path.

    Args:
        end: the run of the prompt itself, the end point of the path.
        backward: holds the settings of the backward passes, and collects their passes and notes.
    """
    state = end.state(i)
    fixed = scope.path_rows(state)
    _check_size(path, scope, fixed, end)
    x0 = torch.zeros_like(state.x[0]) if end.inputs.origin is None else end.inputs.origin.to(state.x)
    rows = _averaged_rows(path, scope, fixed, x0, end, backward, i)
    rows[:, state.position + 1 :] = 0
    resolved, warnings = _completeness(path, scope, fixed, rows, x0, end, i)
    resolved["cotangents"] = "recomputed at each point" if scope.moves_along else "those of the prompt, at each point"
    return Score(scope.of_rows(rows), resolved=resolved, warnings=warnings)


def _averaged_rows(
    path: Path,
    scope: Scope,
    fixed: Float[Tensor, "k d_model"],
    x0: Float[Tensor, "*pos d_in"],
    end: Run,
    backward: Backward,
    i: int,
) -> Float[Tensor, "k pos d_s"]:
    """The mean of the rows over the points of the path, several of which run in one batch."""
    n_points, at_once = path.n_points(), end.view.prompts_at_once(len(end.prompts[end.rows[i]]), end.settings.fwd_hooks)
    batches = [range(n, min(n + at_once, n_points)) for n in range(0, n_points, at_once)]
    shown = backward.progress if len(batches) > 1 else False
    state = end.state(i)
    total: Tensor | float = 0.0
    for which in progress_bar(shown, "points of the path", "batch", batches):
        inputs = Inputs(end.inputs.reduction, end.inputs.origin, partial(_placed, path, x0, which))
        with run_again(end, len(which), inputs, i) as run:
            here = backward.elsewhere(run.xs, run.y, run.positions)
            rows = here.rows(_cotangents(scope, fixed, state, run))
            total = total + torch.cat([_over_points(chunk, len(which)) for chunk in rows])
        backward.rounding = here.rounding
        backward.notes += [note for note in here.notes if note not in backward.notes]
    return torch.as_tensor(total) / n_points


def _placed(path: Path, x0: Float[Tensor, "*pos d_in"], which: range, activation: Points) -> Points:
    points = path.points(activation[0], x0, which)
    if not isinstance(points, Tensor) or points.shape != activation.shape:
        raise InputError(
            f"{type(path).__name__}.points returned {list(getattr(points, 'shape', []))}; it must return {len(which)} points of the "
            f"shape of x, {list(activation.shape)}."
        )
    return points.to(activation)


def _cotangents(scope: Scope, fixed: Float[Tensor, "k d_model"], end: State, run: Run) -> Float[Tensor, "k n d_model"]:
    """The cotangents at each point: those of the point itself, or those of the prompt at all points."""
    if not scope.moves_along:
        return repeat(fixed, "k d_model -> k n d_model", n=len(run.y))
    # Without a target, the prompt's most probable token is explained at every point, not the point's own.
    states = [replace(run.state(i), to_id=end.to_id) for i in range(len(run.y))]
    rows = [scope.path_rows(state) for state in states]
    if any(len(of_one) != len(fixed) for of_one in rows):
        raise InputError(
            f"{scope.label} has {len(fixed)} cotangents at the prompt and another number at other points of the path. "
            "Register it with moves_along=False to use the prompt's cotangents at all points."
        )
    return rearrange(rows, "n k d_model -> k n d_model")


def _check_size(path: Path, scope: Scope, fixed: Float[Tensor, "k d_model"], end: Run) -> None:
    if path.n_points() < 1:
        raise InputError(f"A path needs at least one point; {type(path).__name__} has {path.n_points()}.")
    size = fixed.element_size() * len(fixed) * end.xs[0].numel()
    if size > MOST_BYTES:
        raise InputError(
            f"Along a path the rows of all positions are held in memory at once: {size / 1e9:.1f} GB for the {len(fixed)} cotangents of "
            f"{scope.label}. Use fewer cotangents (for fisher: method='low_rank') or a shorter prompt."
        )


def _over_points(rows: Float[Tensor, "chunk all_pos d_s"], n: int) -> Float[Tensor, "chunk pos d_s"]:
    """The sum over the ``n`` points that were run in one batch."""
    return reduce(rows, "chunk (n pos) d_s -> chunk pos d_s", "sum", n=n)


def _completeness(
    path: Path,
    scope: Scope,
    fixed: Float[Tensor, "k d_model"],
    rows: Float[Tensor, "k pos d_s"],
    x0: Float[Tensor, "*pos d_in"],
    end: Run,
    i: int,
) -> tuple[dict[str, Any], list[str]]:
    """The sum of all signed contributions, and the change of the explained quantity from the path's origin to the prompt.

    Integrated gradients are complete: both are equal up to the error of the sum over steps (Sundararajan et al. 2017,
    Proposition 1). The two are compared if the path covers the whole line, rows are multiplied by the input, there is one
    cotangent, and the quantity whose gradient it is is known.
    """
    whole_line = isinstance(path, Line) and path.alphas is None and end.inputs.reduction is not NORM
    known = scope.additive and (scope.exact_effect or not scope.moves_along)
    if not (whole_line and known and len(fixed) == 1):
        return {}, []
    start = Inputs(place=partial(_placed, Line(alphas=(0.0,)), x0, range(1)))
    with run_again(end, 1, start, i) as at_origin:
        change = _change(scope, fixed, end.state(i), at_origin.state())
    total = float(rows.sum())
    warnings = []
    if abs(total - change) > INCOMPLETE * abs(change):
        warnings = [
            f"The contributions along the line add up to {total:.4g}, but the explained quantity changes by {change:.4g} from the "
            f"origin to the prompt: {path.n_points()} steps are too few, or the precision is too low."
        ]
    return {"completeness": {"sum": total, "change": change}}, warnings


def _change(scope: Scope, fixed: Float[Tensor, "1 d_model"], end: State, start: State) -> float:
    if scope.moves_along:
        return -float(scope.effect_from(end)(start.y.detach(), start.logits.detach()))
    return float(fixed[0] @ (end.y - start.y).detach().to(fixed))
