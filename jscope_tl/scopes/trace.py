"""``‖S J_t‖²`` for every position from fewer rows than ``S`` has directions: exactly, from below, or estimated with an error.

An estimate has three parts, as in Hutch++ (Meyer, Musco, Musco and Woodruff 2021): a subspace whose part of the trace is
computed exactly, and Hutchinson's estimator for the rest. The subspace has two parts. The leading directions of ``S`` are pulled back
exactly. The products of ``J`` with these rows, their *images*, show into which other directions the model carries them: one
block-Krylov step (Musco and Musco 2015) on the pulled-back matrix ``Σ_t w_t S J_t J_t^T S^T``, whose spectrum falls faster than
that of ``S S^T``; these are pulled back exactly too. The rest is measured with random sign vectors (Hutchinson 1989): unbiased,
because the signs had no part in choosing the directions. Directions are orthonormal combinations of the rows of
``S [n, d_model]``, which is seen through products only (`jscope_tl.scopes.factor`), so that no ``d x d`` matrix is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from scipy.special import chdtri, stdtrit
from torch import Tensor

from jscope_tl.engine.one_position import VJP
from jscope_tl.errors import InputError
from jscope_tl.scopes.base import Score
from jscope_tl.scopes.budget import Budget, Tolerance
from jscope_tl.scopes.factor import Factor, orthonormal, principal_rows, without

BLOCK = 8
"""Probes pulled at once, and the fewest that `adaptive` draws."""
ROUNDING = 32
"""Relative error of a score in units of the precision that it is computed in, as seen against float64."""


def exact(S: Factor, vjp: VJP) -> Score:
    """All directions."""
    return _sum_of(S.principal(), vjp)


def low_rank(S: Factor, rank: int, vjp: VJP) -> Score:
    """The leading directions only: a lower bound."""
    rows = S.leading(rank)
    return replace(_sum_of(rows, vjp), resolved={"rank": len(rows)})


def sampled(S: Factor, rank: int, images: int, probes: int, seed: int, vjp: VJP) -> Score:
    """Leading directions, their images (of ``rank`` at most), and a fixed number of probes of the rest."""
    images = min(images, rank)
    if rank + images >= S.n_directions:
        return _all_rows(S, vjp)
    vjp.expect(cost(rank, images, probes))
    found = _Probes(_known(S, rank, images, vjp), torch.Generator("cpu").manual_seed(seed), vjp)
    found.draw(probes, retain_graph=False)
    return found.score(seed)


def cost(rank: int, images: int, probes: int) -> int:
    """Backward rows: an image takes a product and a row, and all products share a pass that takes as long as two."""
    return rank + (2 * images + 2 if images else 0) + probes


def adaptive(S: Factor, rank: int, images: int, enough: Tolerance, seed: int, vjp: VJP, budget: Budget) -> Score:
    """Probes until the standard error is small enough everywhere; all rows as soon as that is expected to cost no more.

    To stop where the stated error happens to be small makes the mean slightly too small: by up to a fifth of ``rtol`` where
    many blocks are drawn, unnoticeably where the first is enough.
    """
    images = min(images, rank)
    least = cost(rank, images, BLOCK)
    if budget.max_rows is not None and budget.max_rows < min(least, S.n_directions):
        raise InputError(
            f"max_rows={budget.max_rows} is too few: rank={rank}, images={images} and the first probes take {least} rows. Give at least "
            "so many, or lower rank and images."
        )
    affordable = budget.max_seconds is None and S.n_directions <= budget.left()
    if affordable and S.n_directions <= 1.5 * least:  # an estimate that falls short would cost more
        return _all_rows(S, vjp)
    vjp.expect(least)
    found = _Probes(_known(S, rank, images, vjp, budget), torch.Generator("cpu").manual_seed(seed), vjp)
    return _refined(found, enough, seed, vjp, budget)


def _refined(found: "_Probes", enough: Tolerance, seed: int, vjp: VJP, budget: Budget) -> Score:
    unknown = found.known.S.n_directions - len(found.known.directions)
    found.draw(int(max(2, min(BLOCK, budget.left()))))
    while (worst := found.worst(enough)) > enough.rtol:  # what is not finite is refused with the finished scores
        wanted, left = ceil(found.n * (worst / enough.rtol) ** 2) - found.n, budget.left()
        if wanted >= unknown and unknown <= left:
            return _given_up(found.known, found, vjp)
        vjp.expect(int(min(max(wanted, 2), left)))
        more = int(min(max(wanted, 2), found.n, left))
        if more < 2:
            return found.score(seed, [_stopped(budget.spent(), enough, worst)])
        found.draw(more)
    return found.score(seed)


def _stopped(by: str, enough: Tolerance, worst: float) -> str:
    or_of_top = (
        f", or of {enough.atol / enough.rtol:.2g} times the largest score where that is more" if enough.atol else ""
    )
    return (
        f"Stopped by {by}, before rtol={enough.rtol:g} and atol={enough.atol:g} were met: the largest standard error is {worst:.1%} "
        f"of its score{or_of_top}."
    )


def _all_rows(S: Factor, vjp: VJP) -> Score:
    rows = S.principal()
    return replace(_sum_of(rows, vjp), resolved={"method": "exact", "rank": len(rows)})


def _sum_of(rows: Float[Tensor, "k d_model"], vjp: VJP) -> Score:
    return Score(_over_rows(vjp.squared_norms(rows)), weights=torch.ones(len(rows), device="cpu"))


@dataclass(frozen=True)
class _Known:
    """The part of the trace in the ``directions`` of ``S`` that were pulled back; the first ``rank`` are leading ones, then images."""

    S: Factor
    energy: Float[Tensor, "*layer pos"]
    directions: Float[Tensor, "known n"]
    rank: int


def _known(S: Factor, rank: int, images: int, vjp: VJP, budget: Budget | None = None) -> _Known:
    """The first row comes alone: the time that it takes says how many can be afforded."""
    leading = S.leading_directions(rank)
    cotangents = S.right(leading)
    rows = vjp.rows(cotangents[:1], retain_graph=True)
    rank, images = (rank, images) if budget is None else _afforded(rank, images, budget.left())
    if images > 1:
        rows = torch.cat([rows, vjp.rows(cotangents[1:images], retain_graph=True)])
    energy = _over_rows(rows.square().sum(-1)).to(cotangents.device)
    if rank > len(rows):
        energy = energy + _over_rows(vjp.squared_norms(cotangents[len(rows) : rank], retain_graph=True))
    if not images:
        return _Known(S, energy, leading[:rank], rank)
    first = slice(None) if rows.ndim == 3 else 0
    carried = _carried(rows[:, first] if rows.ndim == 4 else rows, energy[first], vjp)
    found = _new_directions(carried, S, leading[:rank])
    if len(found):
        energy = energy + _over_rows(vjp.squared_norms(S.right(found), retain_graph=True))
    return _Known(S, energy, torch.cat([leading[:rank], found]), rank)


def _afforded(rank: int, images: int, left: float) -> tuple[int, int]:
    """The rank and images for which ``left`` rows beside the first are enough, with probes to follow."""
    if cost(rank, images, BLOCK) - 1 <= left:
        return rank, images
    return max(1, min(rank, int(left) - BLOCK, int(left) // 2 + 1)), 0


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
        return rows.new_zeros(0, vjp.d_output)
    return carried


def _new_directions(
    carried: Float[Tensor, "image d_model"], S: Factor, known: Float[Tensor, "known n"]
) -> Float[Tensor, "new n"]:
    """Orthonormal directions of ``S`` along which these vectors of the output space lie, without those that are known."""
    along = S.left(carried)
    along = without(along / along.norm(dim=1, keepdim=True).clamp_min(torch.finfo(along.dtype).tiny), known)
    _, sizes, directions = torch.linalg.svd(along, full_matrices=False)
    # What rounding made of a direction that was known loses most of itself when the known are taken out once more.
    new = without(directions[sizes > sizes.sum() * 1e-6], known)
    return orthonormal(new[new.norm(dim=1) > 0.5])


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
        blocks = random_signs(n, self.known.S.n, self.generator).split(BLOCK)
        for i, block in enumerate(blocks):
            self._add(block.to(self.known.directions), retain_graph or i + 1 < len(blocks))

    def _add(self, signs: Float[Tensor, "m n"], retain_graph: bool) -> None:
        rows = self.vjp.rows(self.known.S.right(without(signs, self.known.directions)), retain_graph)
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

    def worst(self, enough: Tolerance) -> float:
        """The largest standard error relative to its score, or to the size from which on scores count."""
        return enough.worst(self.values(), self.stderr())

    def score(self, seed: int, warnings: Sequence[str] = ()) -> Score:
        n_known = len(self.known.directions)
        done = {"rank": self.known.rank, "images": n_known - self.known.rank, "probes": self.n}
        ones = torch.ones(n_known, device="cpu")
        worst = float(f"{self.worst(Tolerance(1.0)):.3g}")
        return Score(
            self.values(),
            self.stderr(),
            resolved=done | {"largest_relative_stderr": worst},
            seed=seed,
            weights=torch.cat([ones, torch.full((self.n,), 1 / self.n, device="cpu")]),
            warnings=list(warnings),
        )


def _given_up(known: _Known, found: _Probes, vjp: VJP) -> Score:
    """The exact score after all, from what is known and the directions of the rest; the probes do not count."""
    cotangents = known.S.right(known.directions)
    n_left = known.S.n_directions - len(cotangents)  # the others are rounding
    others = principal_rows(known.S.gram() - cotangents.T @ cotangents)[:n_left]
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
