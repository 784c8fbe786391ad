"""The linear prediction: products of rows (vector-Jacobian products) with the changes of components, from one forward pass and its backward passes."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.attribution.describe import about, asked, prediction
from jscope_tl.attribution.setup import Setup
from jscope_tl.components.edges import Edges, predicted_edges
from jscope_tl.components.kinds import to_sites
from jscope_tl.components.sites import Sites
from jscope_tl.components.sources import Source
from jscope_tl.engine.run import Run
from jscope_tl.engine.vjp import Backward
from jscope_tl.scopes.base import Effect
from jscope_tl.scopes.effects import EffectRows


@dataclass(frozen=True)
class Found:
    """The results of the backward passes.

    Attributes:
        moved: the product of each row with the change of each component.
        streams: the rows at the residual stream, by hook point.
        y: the final hidden state of the unchanged prompt.
        refined: places of the components that were refined.
        measured: measured effects, by place, of components whose changes are too large for a linear prediction.
    """

    sites: Sites
    effect_rows: EffectRows
    moved: Float[Tensor, "k *axes"]
    streams: dict[str, Float[Tensor, "k pos d_model"]]
    effect: Effect
    y: Float[Tensor, "d_model"]
    described: dict[str, Any]
    notes: list[str]
    refined: tuple[int, ...] = ()
    measured: dict[int, float] = field(default_factory=dict)
    resolved: dict[str, Any] | None = None


def linear(
    setup: Setup,
    source: Source,
    tokens: Int[Tensor, "pos"],
    explained: int,
    of: str,
    points: tuple[str, ...],
    sae: Any,
    each: bool,
) -> Found:
    """The linear prediction, from one forward pass and the backward passes of the scope's rows."""
    warnings = setup.warnings(tokens)
    with setup.run(tokens, [explained]) as (forward, backward):
        state = forward.state()
        target = setup.scope.target_id(state)
        effect_rows = setup.scope.effect_rows(state)
        sites = to_sites(setup, source, forward, of, points, sae, each)
        rows = _rows(forward, backward, effect_rows)
        at_points = [rows[name] for name in points]
        if isinstance(sites, Edges):
            sites, moved = predicted_edges(sites, forward, at_points, effect_rows)
        else:
            moved = sites.moved(at_points)
        described = about(setup, tokens, state.x, forward.passes, None)
        described |= {"asked": asked(setup, state), "prediction": prediction(state, setup.view, target)}
        streams = {name: row for name, row in rows.items() if name.endswith("hook_resid_post")}
        effect, y = setup.scope.effect_from(state), state.y.detach()
    return Found(sites, effect_rows, moved, streams, effect, y, described, [*warnings, *backward.notes])


def _rows(forward: Run, backward: Backward, effect_rows: EffectRows) -> dict[str, Float[Tensor, "k pos ..."]]:
    """The rows at every watched hook point; the graph is kept for the gradients of patterns."""
    names, kept = list(forward.watched), list[list[Tensor]]()
    watching = replace(backward, xs=list(forward.watched.values()), arrange=lambda rows: rows[:1], capture=kept.append)
    for _ in watching.rows(effect_rows.rows, retain_graph=True):
        pass
    return {name: torch.cat(parts) for name, parts in zip(names, zip(*kept, strict=True), strict=True)}
