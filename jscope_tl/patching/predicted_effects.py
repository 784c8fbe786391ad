"""Scores and predicted effects of patches from the same backward passes."""

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.one_position import VJP
from jscope_tl.engine.run import Run
from jscope_tl.engine.vjp import Backward
from jscope_tl.scopes.base import Scope, Score


def scored_and_predicted(
    forward: Run, scope: Scope, backward: Backward, source: list[Float[Tensor, "1 pos d_in"]]
) -> tuple[Score, Float[Tensor, "layer pos"]]:
    """The scope's score, and for every cell the predicted effect of patching it with the source's activation.

    The prediction is the first-order change ``C J_t (x_source - x)``, signed; for Fisher it is half the sum of its squares, the
    second-order KL divergence.
    """
    pairs = zip(source, forward.xs, strict=True)
    deltas = [(theirs.to(own.device, backward.dtype) - own.detach().to(backward.dtype))[0] for theirs, own in pairs]
    moved: list[Float[Tensor, "chunk layer pos"]] = []

    def capture(rows: list[Tensor]) -> None:
        products = [(row * delta).sum(-1).to(backward.y.device) for row, delta in zip(rows, deltas, strict=True)]
        moved.append(torch.stack(products, 1))

    backward.capture = capture
    score = scope.score(forward.state(), VJP(backward))
    predicted = scope.predicted_from(torch.cat(moved), score)
    predicted[:, forward.positions[0] + 1 :] = 0
    return score, predicted.detach().double().cpu()
