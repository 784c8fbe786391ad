"""The effect of a change on a prediction, from the movements of rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from einops import einsum, reduce
from jaxtyping import Float
from scipy.special import chdtri
from torch import Tensor

LARGEST = 1024
"""Number of cells with the largest effects for which the KL divergence is computed; second order is as good for the others."""
BLOCK = 2**22
"""Number of logits computed at once, ``cells x d_vocab``."""
SMALL = 1.0
"""Change of a logit up to which the formula without cancellation is used; above it, the one that does not overflow."""

Exact: TypeAlias = Callable[[Float[Tensor, "k cell"]], Float[Tensor, "cell"]]


@dataclass(frozen=True)
class EffectRows:
    """Rows ``C`` whose movements ``m = C J δ`` predict the effect of a change ``δ``.

    Attributes:
        rows: the cotangents.
        n_probes: the number of probes: the last rows, random combinations of the directions that the other rows do not cover.
        exact: a function from the movements of the other rows to their effect if the network were linear, if this is known beyond
            leading order; else None.
    """

    rows: Float[Tensor, "k d_model"]
    n_probes: int = 0
    exact: Exact | None = None

    @property
    def signed(self) -> bool:
        """Whether effects have a sign: with one row they do; with several rows, squares are added."""
        return len(self.rows) == 1 and self.exact is None

    def leading_order(self, moved: Float[Tensor, "k *cell"]) -> Float[Tensor, "*cell"]:
        """``m`` for one row, or ``½ Σ m²``, with the mean over the probes."""
        if self.signed:
            return moved[0]
        return 0.5 * einsum(self._weights(moved), moved.square(), "k, k ... -> ...")

    def squares(self, moved: Float[Tensor, "chunk *cell"], first: int) -> Float[Tensor, "*cell"]:
        """The contribution of a chunk of rows, starting at row ``first``, to `leading_order`."""
        if self.signed:
            return moved[0]
        weights = self._weights(moved)[first : first + len(moved)]
        return 0.5 * einsum(weights, moved.square(), "k, k ... -> ...")

    def effects(self, moved: Float[Tensor, "k *cell"]) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"] | None]:
        """The effect of each cell and its standard error; the error is None if nothing is estimated."""
        values, stderr = self.leading_order(moved), self.stderr(moved)
        if self.exact is None:
            return values, stderr
        flat, known = values.flatten().clone(), len(self.rows) - self.n_probes
        cells = flat.topk(min(LARGEST, len(flat))).indices
        largest = moved.flatten(1)[:, cells]
        flat[cells] = self.exact(largest[:known]) + self._rest(largest)
        return flat.view_as(values), stderr

    def stderr(self, moved: Float[Tensor, "k *cell"]) -> Float[Tensor, "*cell"] | None:
        """The standard error of the mean over the probes.

        The probes are squares of nearly normal numbers, so a low mean comes with a low spread, and the usual standard error would be too
        small. The error is half the distance from the mean to the upper end of its chi-squared interval.
        """
        if not self.n_probes:
            return None
        return self._rest(moved) * (self.n_probes / float(chdtri(self.n_probes, 0.975)) - 1) / 2

    def _rest(self, moved: Float[Tensor, "k *cell"]) -> Float[Tensor, "*cell"]:
        if not self.n_probes:
            return moved.new_zeros(moved.shape[1:])
        return 0.5 * reduce(moved[-self.n_probes :].square(), "k ... -> ...", "mean")

    def _weights(self, like: Float[Tensor, "*shape"]) -> Float[Tensor, "k"]:
        weights = torch.ones(len(self.rows), dtype=like.dtype, device=like.device)
        if self.n_probes:
            weights[-self.n_probes :] = 1 / self.n_probes
        return weights


def divergence_of(logits: Float[Tensor, "k d_vocab"], log_p: Float[Tensor, "d_vocab"]) -> Exact:
    """``KL(p ‖ softmax(z + Σ_i m_i L_i))`` in nats, for the rows ``L`` of ``logits``.

    With ``d = Σ_i m_i L_i`` minus its mean under ``p``, it is ``log Σ p e^d = log(1 + Σ p (e^d - 1 - d))``. Its terms are not negative,
    so that nothing cancels for small ``d``.
    """
    p = log_p.exp()

    def exact(moved: Float[Tensor, "k cell"]) -> Float[Tensor, "cell"]:
        parts = [_divergence(part.T.to(logits) @ logits, p, log_p) for part in moved.split(max(1, BLOCK // len(p)), 1)]
        return torch.cat(parts).to(moved)

    return exact


def _divergence(
    change: Float[Tensor, "cell d_vocab"], p: Float[Tensor, "d_vocab"], log_p: Float[Tensor, "d_vocab"]
) -> Float[Tensor, "cell"]:
    change = change.to(p)
    change = change - (change @ p).unsqueeze(1)
    small = (change.clamp(max=SMALL).expm1() - change.clamp(max=SMALL)) @ p
    return torch.where(change.amax(1) <= SMALL, small.log1p(), (log_p + change).logsumexp(1)).clamp_min(0)
