"""Scores and predicted effects from the same backward rows."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribute import attribution
from jscope_tl.engine import Puller
from jscope_tl.forward import Run
from jscope_tl.result import Attribution
from jscope_tl.scopes.base import Scope, Score


@dataclass
class Doubled:
    """Energies of rows for scores, and beside them the squares of ``C_i J_t δ_t`` for predictions.

    A scope adds rows up by its own rule (exactly, by rank, by probes); handed both, it treats both alike, so that a
    prediction is by the same rule as the score.
    """

    puller: Puller
    delta: Float[Tensor, "layer pos d_in"]
    moved: list[Float[Tensor, "k layer pos"]] = field(default_factory=list)

    def energies(
        self, cotangents: Float[Tensor, "k d_model"], more_to_come: bool = False
    ) -> Float[Tensor, "k two_layer pos"]:
        """``[‖C_i J_t‖², (C_i J_t δ_t)²]``, one below the other."""
        both = []
        for rows in self.puller.rows(cotangents, more_to_come=more_to_come):
            rows = rows.unsqueeze(1) if rows.ndim == 3 else rows
            self.moved.append((rows * self.delta.to(rows)).sum(-1))
            both.append(torch.cat([rows.square().sum(-1), self.moved[-1].square()], 1))
        return torch.cat(both).to(self.puller.y.device)


def explained_and_predicted(
    forward: Run, scope: Scope, puller: Puller, at: Any, source: list[Float[Tensor, "1 pos d_in"]], warnings: list[str]
) -> tuple[Attribution, Float[Tensor, "layer pos"]]:
    """The layer map of a run, and for every cell the effect to expect when it is patched with the source's activation.

    To first order ``C J_t (x_source - x)``, signed; for Fisher ``½ (C J_t δ)²`` summed, the second-order KL divergence.
    """
    delta = torch.stack([(theirs.to(own) - own.detach())[0] for theirs, own in zip(source, forward.xs, strict=True)])
    doubled = Doubled(puller, delta.to(puller.dtype))
    both = scope.score(forward.state(), doubled.energies)
    n = len(forward.xs)
    stderr = None if both.stderr is None else both.stderr[:n]
    score = Score(both.values[:n], stderr, both.resolved, both.seed)
    result = attribution(forward, scope, score, puller, at, warnings)
    moved = torch.cat(doubled.moved)
    if type(scope).score is Scope.score:
        predicted = scope.predicted(moved)
    else:
        predicted = 0.5 * both.values[n:]
    predicted[:, result.position + 1 :] = 0
    return result, predicted.detach().double().cpu()
