"""Rows of ``M_t = diag(w) R J_t`` for singular value decompositions: all of them, or their coordinates in a small basis.

The size of all rows of all positions grows with ``d_model² x pos``. If it exceeds a budget, a few random combinations of rows
are computed first; for each position, an orthonormal basis of these contains the leading right singular vectors (the
randomised range finder of Halko, Martinsson and Tropp 2011, for the transpose). Then the rows are computed once, chunk by chunk,
and only their coordinates in the basis are kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.one_position import VJP

BUDGET = 256 * 2**20
"""Maximum size in bytes of rows that are kept unprojected."""
OVERSAMPLING = 32
"""Minimum number of random combinations in addition to the number of wanted singular values."""


@dataclass(frozen=True)
class Collected:
    """The rows ``R J_t`` up to the explained position, or their coordinates in a basis.

    Attributes:
        rows: the rows themselves, or their coordinates in ``basis``.
        weights: ``w``; ``M_t = diag(w) R J_t``.
        basis: orthonormal columns of the input space, or None.
        energy: ``‖M_t‖_F²``, over all rows and all directions.
    """

    rows: Float[Tensor, "k *layer seen width"]
    weights: Float[Tensor, "k"]
    basis: Float[Tensor, "*layer seen d_in width"] | None
    energy: Float[Tensor, "*layer seen"]

    @property
    def M(self) -> Float[Tensor, "*layer seen k width"]:
        """The matrix ``M_t`` of each position, in the coordinates of ``rows``."""
        weighted = rearrange(self.weights.to(self.rows), "k -> k 1")
        return rearrange(self.rows, "k ... width -> ... k width") * weighted

    @property
    def missed(self) -> Float[Tensor, "*layer seen"]:
        """The energy outside the basis: ``σ̂_i² ≤ σ_i² ≤ σ̂_i² + missed`` (Weyl's inequality for ``M M^T``)."""
        if self.basis is None:
            return torch.zeros_like(self.energy)
        # Row by row: multiplying all rows by their weights at once would make a second copy.
        kept = sum((w * row).square().sum(-1) for w, row in zip(self.weights.to(self.rows), self.rows, strict=True))
        return (self.energy - kept).clamp_min(0)


def collected(
    directions: Float[Tensor, "k d_model"], weights: Float[Tensor, "k"] | None, vjp: VJP, wanted: int, seed: int
) -> Collected:
    """The rows needed for the ``wanted`` leading singular values and vectors of ``M_t = diag(w) R J_t``; the graph is freed."""
    weights = torch.ones_like(directions[:, 0]) if weights is None else weights
    n_rows, d_in = len(directions), vjp.backward.xs[0].shape[-1]
    size = size_in_bytes(n_rows, vjp)
    # A wider basis is more accurate. Its coordinates have the same budget, and more than half as many extra rows do not pay off.
    width = max(wanted + OVERSAMPLING, min(BUDGET * d_in // size, n_rows // 2))
    if size <= BUDGET or width >= min(n_rows, d_in):
        return _streamed(directions, weights, None, vjp)
    draws = torch.randn(width, n_rows, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    combined = (draws.to(directions) * weights) @ directions
    first = _joined(vjp.chunks(combined, retain_graph=True), width)
    return _streamed(directions, weights, torch.linalg.qr(rearrange(first, "width ... d -> ... d width")).Q, vjp)


def size_in_bytes(k: int, vjp: VJP) -> int:
    """The size of ``k`` rows at every position and hook point."""
    puller = vjp.backward
    numbers = k * sum(x.shape[-1] for x in puller.xs) * (vjp.position + 1)
    return numbers * torch.finfo(puller.dtype).bits // 8


def _joined(chunks: Iterator[Float[Tensor, "chunk *layer seen d_in"]], k: int) -> Float[Tensor, "k *layer seen d_in"]:
    """One tensor, filled chunk by chunk, because a concatenation would need twice the memory."""
    rows, start = torch.empty(0, device="cpu"), 0
    for chunk in chunks:
        rows = rows if start else chunk.new_empty(k, *chunk.shape[1:])
        rows[start : start + len(chunk)] = chunk
        start += len(chunk)
    return rows


def _streamed(
    directions: Float[Tensor, "k d_model"],
    weights: Float[Tensor, "k"],
    basis: Float[Tensor, "*layer seen d_in width"] | None,
    vjp: VJP,
) -> Collected:
    energies: list[Tensor] = []

    def kept() -> Iterator[Tensor]:
        left = weights
        for chunk in vjp.chunks(directions):
            now, left = left[: len(chunk)].to(chunk), left[len(chunk) :]
            energies.append(einsum(now.square(), chunk.square().sum(-1), "k, k ... -> ..."))
            yield chunk if basis is None else einsum(chunk, basis, "k ... d, ... d width -> k ... width")

    rows = _joined(kept(), len(directions))
    return Collected(rows, weights, basis, torch.stack(energies).sum(0))


def largest(M: Float[Tensor, "*cells k width"]) -> Float[Tensor, "*cells"]:
    """The largest singular value of each matrix."""
    return torch.linalg.matrix_norm(M, 2)


@dataclass(frozen=True)
class Factors:
    """Leading singular values and vectors of ``M_t``, up to the explained position.

    Attributes:
        values: singular values in decreasing order; values that are only rounding errors are set to 0.
        outputs: unit vectors of ``y``: the left singular vectors, or the movement ``J_t v``; 0 if the value is 0.
        inputs: the right singular vectors ``v``; 0 if the value is 0.
        effective_rank: ``(Σ σ²)² / Σ σ⁴``.
        captured: share of the energy in the basis.
    """

    values: Float[Tensor, "seen wanted"]
    outputs: Float[Tensor, "seen wanted d_model"]
    inputs: Float[Tensor, "seen wanted d_in"]
    effective_rank: Float[Tensor, "seen"]
    captured: Float[Tensor, "seen"]


def factors(found: Collected, directions: Float[Tensor, "k d_model"], wanted: int, movement: bool) -> Factors:
    """The decompositions, computed position by position, because all at once would need the memory of the rows again.

    ``movement``: outputs are ``J_t v``, for which the rows of ``R`` must be a complete orthonormal basis.
    """
    cells = [_factored(found, t, directions, wanted, movement) for t in range(len(found.energy))]
    values, outputs, inputs, ranks = (torch.stack(parts) for parts in zip(*cells, strict=True))
    energy = found.energy.cpu().double()
    shares = 1 - found.missed.cpu().double() / energy.clamp_min(torch.finfo(energy.dtype).tiny)
    return Factors(values, outputs, inputs, ranks, shares)


def _factored(
    found: Collected, t: int, directions: Float[Tensor, "k d_model"], wanted: int, movement: bool
) -> tuple[Float[Tensor, "wanted"], Float[Tensor, "wanted d_model"], Float[Tensor, "wanted d_in"], Float[Tensor, ""]]:
    P, weights = found.rows[:, t], rearrange(found.weights.to(found.rows), "k -> k 1")
    U, sigma, Vh = torch.linalg.svd(weights * P, full_matrices=False)
    real = sigma[:wanted] > sigma[0] * torch.finfo(sigma.dtype).eps * max(P.shape)
    inputs = Vh[:wanted] if found.basis is None else Vh[:wanted] @ found.basis[t].T
    moved = (P @ Vh[:wanted].T if movement else U[:, :wanted]).T.to(directions) @ directions
    outputs = moved / moved.norm(dim=1, keepdim=True).clamp_min(torch.finfo(moved.dtype).tiny)
    kept = rearrange(real.to(sigma), "wanted -> wanted 1")
    return (
        sigma[:wanted] * real,
        outputs * kept.to(outputs),
        inputs * kept,
        _effective_rank(sigma.cpu(), found.energy[t].cpu()),
    )


def _effective_rank(sigma: Float[Tensor, "n"], energy: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """``(Σ σ²)² / Σ σ⁴``, relative to the largest value, because fourth powers over- or underflow; on the CPU, which has float64."""
    largest_square = sigma[0].double().square()
    if largest_square == 0:
        return torch.zeros_like(energy, dtype=torch.float64)
    return (energy.double() / largest_square).square() / (sigma / sigma[0]).double().pow(4).sum()
