"""``‖S J_t‖²`` for every position from fewer rows than ``S`` has directions: exactly, from below, or estimated with an error.

An estimate has three parts, as in Hutch++ (Meyer, Musco, Musco and Woodruff 2021): a subspace whose part of the trace is
computed exactly, and Hutchinson's estimator for the rest. The subspace has two parts. The leading directions of ``S`` are pulled back
exactly. The products of ``J`` with these rows, their *images*, show into which other directions the model carries them: one
block-Krylov step (Musco and Musco 2015) on the pulled-back matrix ``Σ_t w_t S J_t J_t^T S^T``, whose spectrum falls faster than
that of ``S S^T``; these are pulled back exactly too. The rest is measured with random sign vectors (Hutchinson 1989): unbiased,
because the signs had no part in choosing the directions. Directions are orthonormal combinations of the rows of
``S [n, d_model]``, so that no ``d x d`` matrix is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from scipy.special import chdtri, stdtrit
from torch import Tensor

from jscope_tl.engine.one_position import VJP
from jscope_tl.errors import InputError
from jscope_tl.scopes.base import Score

BLOCK = 8
"""Probes pulled at once, and the fewest that `adaptive` draws."""
ROUNDING = 32
"""Relative error of a score in units of the precision that it is computed in, as seen against float64."""


def exact(rows: Float[Tensor, "k d_model"], vjp: VJP) -> Score:
    """All directions."""
    return Score(_over_rows(vjp.squared_norms(rows)))


def low_rank(rows: Float[Tensor, "k d_model"], rank: int, vjp: VJP) -> Score:
    """The leading directions only: a lower bound."""
    share = rows[:rank].square().sum() / rows.square().sum().clamp_min(torch.finfo(rows.dtype).tiny)
    resolved = {"rank": min(rank, len(rows)), "share_of_trace_F_u": round(float(share), 4)}
    return Score(_over_rows(vjp.squared_norms(rows[:rank])), resolved=resolved)


def sampled(S: Float[Tensor, "n d_model"], rank: int, images: int, probes: int, seed: int, vjp: VJP) -> Score:
    """Leading directions, their images (of ``rank`` at most), and a fixed number of probes of the rest."""
    images = min(images, rank)
    if rank + images >= min(S.shape):
        return _all_rows(S, vjp)
    found = _Probes(_known(S, rank, images, vjp), torch.Generator("cpu").manual_seed(seed), vjp)
    found.draw(probes, retain_graph=False)
    return found.score(seed)


def adaptive(
    S: Float[Tensor, "n d_model"], rank: int, images: int, rtol: float, max_rows: int | None, seed: int, vjp: VJP
) -> Score:
    """Probes until every position's standard error is below ``rtol``; all rows as soon as that is expected to cost no more.

    To stop where the stated error happens to be small makes the mean slightly too small: by up to a fifth of ``rtol`` where
    many blocks are drawn, unnoticeably where the first is enough.
    """
    images = min(images, rank)
    least = rank + (2 * images + 2 if images else 0) + BLOCK  # 2 for the pass that all products share
    n_directions = min(S.shape)
    if max_rows is not None and max_rows < min(least, n_directions):
        raise InputError(
            f"max_rows={max_rows} is too few: rank={rank}, images={images} and the first probes take {least} rows. Lower them, or "
            "raise max_rows."
        )
    if n_directions <= least:
        return _all_rows(S, vjp)
    end = inf if max_rows is None else float(vjp.backward.passes.n_backward + max_rows)
    found = _Probes(_known(S, rank, images, vjp), torch.Generator("cpu").manual_seed(seed), vjp)
    return _refined(found, rtol, end, seed, vjp)


def _refined(found: "_Probes", rtol: float, end: float, seed: int, vjp: VJP) -> Score:
    unknown = min(found.known.S.shape) - len(found.known.directions)
    found.draw(BLOCK)
    while (worst := found.worst()) > rtol:  # what is not finite is refused with the finished scores
        wanted, left = ceil(found.n * (worst / rtol) ** 2) - found.n, end - vjp.backward.passes.n_backward
        if wanted >= unknown and unknown <= left:
            return _given_up(found.known, found, vjp)
        more = int(min(max(wanted, 2), found.n, left))
        if more < 2:
            return found.score(seed, doubt=f"rtol={rtol} was not met within max_rows")
        found.draw(more)
    return found.score(seed)


def at_unit_size(S: Float[Tensor, "n d_model"], estimate: Callable[[Tensor], Score]) -> Score:
    """``estimate(S)``, with ``S`` scaled in place meanwhile: certain predictions have a tiny one, which must not be squared."""
    size = max(float(S.max()), -float(S.min())) or 1.0
    score = estimate(S.div_(size)).times(size**2)
    S.mul_(size)
    return score


def principal_rows(F: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "rank d_model"]:
    """``R`` with ``R^T R = F``: rows ``λ_i^{1/2} u_i^T``, falling, zeros left out."""
    eigenvalues, eigenvectors = torch.linalg.eigh(F)
    # Not the usual d * eps: F_u's spectrum has a long tail, and J may be large along it.
    kept = eigenvalues > eigenvalues[-1].clamp_min(0) * torch.finfo(F.dtype).eps
    if not kept.any():  # p is one token for certain: nothing moves it
        return torch.zeros_like(F[:1])
    return (eigenvectors[:, kept] * eigenvalues[kept].sqrt()).T.flip(0)


def leading_directions(S: Float[Tensor, "n d_model"], rank: int, rounds: int = 3) -> Float[Tensor, "rank n"]:
    """Left singular vectors of ``S``, by subspace iteration: products with ``S`` only. Approximate ones do as well."""
    wide = min(rank + 8, *S.shape)
    start = torch.randn(wide, S.shape[1], generator=torch.Generator("cpu").manual_seed(2**40), device="cpu").to(S)
    for _ in range(rounds):
        start = torch.linalg.qr((start @ S.T @ S).T).Q.T
    left, _, _ = torch.linalg.svd(S @ start.T, full_matrices=False)
    return left[:, :rank].T


def _all_rows(S: Float[Tensor, "n d_model"], vjp: VJP) -> Score:
    rows = principal_rows(S.T @ S)
    done = {"method": "exact", "rank": len(rows)}
    values = _over_rows(vjp.squared_norms(rows))
    return Score(values, resolved=done, weights=torch.ones(len(rows), device="cpu"))


@dataclass(frozen=True)
class _Known:
    """The part of the trace in the ``directions`` of ``S`` that were pulled back; the first ``rank`` are leading ones, then images."""

    S: Float[Tensor, "n d_model"]
    energy: Float[Tensor, "*layer pos"]
    directions: Float[Tensor, "known n"]
    rank: int


def _known(S: Float[Tensor, "n d_model"], rank: int, images: int, vjp: VJP) -> _Known:
    leading = leading_directions(S, rank)
    cotangents, n_images = leading @ S, min(images, rank)
    if not n_images:
        return _Known(S, _over_rows(vjp.squared_norms(cotangents, retain_graph=True)), leading, rank)
    rows = vjp.rows(cotangents[:n_images], retain_graph=True)
    energy = _over_rows(rows.square().sum(-1)).to(cotangents.device)
    if rank > n_images:
        energy = energy + _over_rows(vjp.squared_norms(cotangents[n_images:], retain_graph=True))
    first = slice(None) if rows.ndim == 3 else 0
    carried = _carried(rows[:, first] if rows.ndim == 4 else rows, energy[first], vjp)
    found = _new_directions(carried, S, leading)
    if len(found):
        energy = energy + _over_rows(vjp.squared_norms(found @ S, retain_graph=True))
    return _Known(S, energy, torch.cat([leading, found]), rank)


def _carried(
    rows: Float[Tensor, "m pos d_in"], energy: Float[Tensor, "pos"], vjp: VJP
) -> Float[Tensor, "image d_model"]:
    """``Σ_t J_t J_t^T c / energy_t`` for the cotangent ``c`` of each row; none where the model cannot give it.

    Dividing by the energy makes each position count by its own size: the relative error matters, and the first token of a
    prompt often has most of the energy.
    """
    weights = torch.where(energy > 0, energy, torch.inf).reciprocal().to(rows.device)
    carried = vjp.jvp(rows * rearrange(weights, "pos -> pos 1"))
    if carried is None or not carried.isfinite().all():
        return rows.new_zeros(0, vjp.backward.y.shape[-1])
    return carried


def _new_directions(
    carried: Float[Tensor, "image d_model"], S: Float[Tensor, "n d_model"], known: Float[Tensor, "known n"]
) -> Float[Tensor, "new n"]:
    """Orthonormal directions of ``S`` along which these vectors of the output space lie, without those that are known."""
    along = carried.to(S) @ S.T
    along = _without(along / along.norm(dim=1, keepdim=True).clamp_min(torch.finfo(S.dtype).tiny), known)
    _, sizes, directions = torch.linalg.svd(along, full_matrices=False)
    # What rounding made of a direction that was known loses most of itself when the known are taken out once more.
    new = _without(directions[sizes > sizes.sum() * 1e-6], known)
    return torch.linalg.qr(new[new.norm(dim=1) > 0.5].T).Q.T


def _without(vectors: Float[Tensor, "m n"], known: Float[Tensor, "known n"]) -> Float[Tensor, "m n"]:
    return vectors - (vectors @ known.T) @ known


class _Probes:
    """Random sign combinations of the rows of ``S`` without the known directions: squared norms of what is pulled back, and how much they scatter."""

    def __init__(self, known: _Known, generator: torch.Generator, vjp: VJP) -> None:
        self.known, self.generator, self.vjp = known, generator, vjp
        self.squares: list[Float[Tensor, "m *layer pos"]] = []
        self.products = torch.zeros_like(known.energy, dtype=torch.float64, device="cpu")
        self.one_number = False  # at each position: the input is moved along one direction
        self.pairs = 0

    @property
    def n(self) -> int:
        return sum(len(block) for block in self.squares)

    def draw(self, n: int, retain_graph: bool = True) -> None:
        blocks = random_signs(n, len(self.known.S), self.generator).split(BLOCK)
        for i, block in enumerate(blocks):
            self._add(block.to(self.known.S), retain_graph or i + 1 < len(blocks))

    def _add(self, signs: Float[Tensor, "m n"], retain_graph: bool) -> None:
        rows = self.vjp.rows(_without(signs, self.known.directions) @ self.known.S, retain_graph)
        self.one_number = rows.shape[-1] == 1
        grams = einsum(rows, rows, "m ... d, n ... d -> m n ...")
        squares = rearrange(grams.diagonal(), "... m -> m ...")
        self.squares.append(squares.to(self.known.energy))
        precise = grams.detach().cpu().double()
        self.products += (precise.square().sum((0, 1)) - precise.diagonal().square().sum(-1)) / 2
        self.pairs += len(signs) * (len(signs) - 1) // 2

    def stderr(self) -> Float[Tensor, "*layer pos"]:
        """From the products of all pairs of probes: ``E (ω M ω')² = ‖M‖_F²``, and a probe's variance is at most ``2 ‖M‖_F²``.

        The many pairs scatter less than the few squared norms themselves. Widened as Student's t is for few probes, so that two
        of it hold 95 % of the errors; and never below what the rounding of the rows leaves. Where the input is one number at each
        position, probes are squares of normal numbers, whose mean is low where their spread is: half of where the upper end of
        their chi-squared interval lies.
        """
        values = self.values()
        if self.one_number:
            drawn = (values - self.known.energy) * (self.n / float(chdtri(self.n, 0.975)) - 1) / 2
        else:
            widened = float(stdtrit(self.n - 1, 0.975)) / 1.96
            drawn = (2 * self.products / max(self.pairs, 1) / self.n).sqrt().to(values) * widened
        return torch.hypot(drawn, ROUNDING * torch.finfo(values.dtype).eps * values)

    def values(self) -> Float[Tensor, "*layer pos"]:
        return self.known.energy + reduce(torch.cat(self.squares), "m ... -> ...", "mean")

    def worst(self) -> float:
        """The largest standard error relative to its score."""
        values = self.values()
        return float((self.stderr() / values.clamp_min(torch.finfo(values.dtype).tiny)).max())

    def score(self, seed: int, doubt: str | None = None) -> Score:
        n_known = len(self.known.directions)
        done = {"rank": self.known.rank, "images": n_known - self.known.rank, "probes": self.n}
        worst = float(f"{self.worst():.3g}")
        ones = torch.ones(n_known, device="cpu")
        return Score(
            self.values(),
            self.stderr(),
            resolved=done | {"largest_relative_stderr": worst},
            seed=seed,
            weights=torch.cat([ones, torch.full((self.n,), 1 / self.n, device="cpu")]),
            warnings=[] if doubt is None else [f"{doubt}: the largest relative standard error is {worst}."],
        )


def _given_up(known: _Known, found: _Probes, vjp: VJP) -> Score:
    """The exact score after all, from what is known and the directions of the rest; the probes do not count."""
    cotangents = known.directions @ known.S
    n_left = min(known.S.shape) - len(cotangents)  # the others are rounding
    others = principal_rows(known.S.T @ known.S - cotangents.T @ cotangents)[:n_left]
    values = known.energy + _over_rows(vjp.squared_norms(others))
    counts = [(len(cotangents), 1.0), (found.n, 0.0), (len(others), 1.0)]
    weights = torch.cat([torch.full((n,), weight, device="cpu") for n, weight in counts])
    resolved = {"method": "exact", "rank": len(cotangents) + len(others), "probes_given_up": found.n}
    return Score(values, resolved=resolved, weights=weights)


def _over_rows(squares: Float[Tensor, "k *layer pos"]) -> Float[Tensor, "*layer pos"]:
    return reduce(squares, "k ... -> ...", "sum")


def random_signs(n: int, m: int, generator: torch.Generator) -> Float[Tensor, "n m"]:
    """Signs drawn on the CPU, so that a seed means the same on every device."""
    return torch.randint(0, 2, (n, m), generator=generator, device="cpu").float() * 2 - 1
