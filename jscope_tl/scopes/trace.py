"""``‖S J_t‖²`` for every position: exactly, as a lower bound, or estimated with a standard error.

An estimate has three parts, as in Hutch++ (Meyer, Musco, Musco and Woodruff 2021). The first two parts are the exact trace in a
subspace, the third is Hutchinson's estimator for the rest. (1) The rows of the leading directions of ``S``. (2) The rows of the
*images* of these directions: the products of ``J`` with the first rows are one block-Krylov step (Musco and Musco 2015) on the matrix
``Σ_t w_t S J_t J_t^T S^T``, whose spectrum decays faster than that of ``S S^T``. (3) Random sign vectors for the rest (Hutchinson
1989), which are unbiased because the directions were chosen independently of the signs. Directions are orthonormal combinations of
the rows of ``S [n, d_model]``, which is used through products only (`jscope_tl.scopes.factor`), so that no ``d x d`` matrix is needed.
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
"""Number of probes computed at once, and the minimum that `adaptive` draws."""
ROUNDING = 32
"""Rounding error of a score relative to the machine epsilon of its precision, as measured against float64."""


def exact(S: Factor, vjp: VJP) -> Score:
    """The exact score, from all directions."""
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
    """The cost in backward rows: an image takes a product and a row, and all products share a pass that takes as long as two rows."""
    return rank + (2 * images + 2 if images else 0) + probes


def adaptive(S: Factor, rank: int, images: int, enough: Tolerance, seed: int, vjp: VJP, budget: Budget) -> Score:
    """Draw probes until the standard error is small enough at all positions, or compute all rows if that is expected to cost no more.

    Stopping when the estimated error happens to be small makes the mean slightly too small: by up to a fifth of ``rtol`` if many
    blocks are drawn, and by a negligible amount if the first block is enough.
    """
    images = min(images, rank)
    least = cost(rank, images, BLOCK)
    if budget.max_rows is not None and budget.max_rows < min(least, S.n_directions):
        raise InputError(
            f"max_rows={budget.max_rows} is too few: rank={rank}, images={images} and the first probes take {least} rows. Set max_rows to at least "
            "that number, or lower rank and images."
        )
    affordable = budget.max_seconds is None and S.n_directions <= budget.left()
    if affordable and S.n_directions <= 1.5 * least:  # an estimate that has to be given up would cost more
        return _all_rows(S, vjp)
    vjp.expect(least)
    found = _Probes(_known(S, rank, images, vjp, budget), torch.Generator("cpu").manual_seed(seed), vjp)
    return _refined(found, enough, seed, vjp, budget)


def _refined(found: "_Probes", enough: Tolerance, seed: int, vjp: VJP, budget: Budget) -> Score:
    unknown = found.known.S.n_directions - len(found.known.directions)
    found.draw(int(max(2, min(BLOCK, budget.left()))))
    # NaN ends the loop, and is refused with the finished scores.
    while (worst := found.worst(enough)) > enough.rtol:
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
        f", or of {enough.atol / enough.rtol:.2g} times the largest score if that is more" if enough.atol else ""
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
    """The part of the trace in the ``directions`` of ``S`` whose rows were computed: ``rank`` leading directions, then images."""

    S: Factor
    energy: Float[Tensor, "*layer pos"]
    directions: Float[Tensor, "known n"]
    rank: int


def _known(S: Factor, rank: int, images: int, vjp: VJP, budget: Budget | None = None) -> _Known:
    """Compute the leading directions and images. The first row is computed alone, to measure how many rows the time allows."""
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
    """The numbers of leading directions and images for which ``left`` rows after the first suffice, including the first probes."""
    if cost(rank, images, BLOCK) - 1 <= left:
        return rank, images
    return max(1, min(rank, int(left) - BLOCK, int(left) // 2 + 1)), 0


def _carried(
    rows: Float[Tensor, "m pos d_in"], energy: Float[Tensor, "pos"], vjp: VJP
) -> Float[Tensor, "image d_model"]:
    """``Σ_t J_t J_t^T c / energy_t`` for the cotangent ``c`` of each row; empty if the model does not support the product.

    The division by the energy gives all positions the same weight: the relative error matters, and the first token of a
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
    """Orthonormal directions of ``S`` that span these vectors of the output space, without the known directions."""
    along = S.left(carried)
    along = without(along / along.norm(dim=1, keepdim=True).clamp_min(torch.finfo(along.dtype).tiny), known)
    _, sizes, directions = torch.linalg.svd(along, full_matrices=False)
    # A direction that is only rounding error of a known one loses most of its norm when the known ones are removed again.
    new = without(directions[sizes > sizes.sum() * 1e-6], known)
    return orthonormal(new[new.norm(dim=1) > 0.5])


class _Probes:
    """Random sign combinations of the rows of ``S`` without the known directions: the squared norms of their rows, and the errors."""

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
        """The standard error of `values`, from the products of all pairs of probes.

        ``E (ω M ω')² = ‖M‖_F²``, and a probe's variance is at most ``2 ‖M‖_F²``. The many pairs have a smaller variance than the few
        squared norms themselves. The error is widened by Student's t for few probes, so that two standard errors cover 95 % of the
        errors, and it includes the rounding error of the rows. If the input is one number at each position, probes are squares of
        normal numbers, and a low mean comes with a low spread; the error is then half the distance to the upper end of the
        chi-squared interval of the mean.
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
        """The largest standard error, relative to `Tolerance.sizes`."""
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
    """The exact score, from the known directions and all remaining ones; the probes are not used."""
    cotangents = known.S.right(known.directions)
    n_left = known.S.n_directions - len(cotangents)  # the others are rounding errors
    others = principal_rows(known.S.gram() - cotangents.T @ cotangents)[:n_left]
    values = known.energy + _over_rows(vjp.squared_norms(others))
    counts = [(len(cotangents), 1.0), (found.n, 0.0), (len(others), 1.0)]
    weights = torch.cat([torch.full((n,), weight, device="cpu") for n, weight in counts])
    resolved = {"method": "exact", "rank": len(cotangents) + len(others), "probes_given_up": found.n}
    return Score(values, resolved=resolved, weights=weights)


def _over_rows(squares: Float[Tensor, "k *layer pos"]) -> Float[Tensor, "*layer pos"]:
    return reduce(squares, "k ... -> ...", "sum")


def random_signs(n: int, m: int, generator: torch.Generator) -> Float[Tensor, "n m"]:
    """Random signs, drawn on the CPU, so that a seed gives the same signs on every device."""
    return torch.randint(0, 2, (n, m), generator=generator, device="cpu").float() * 2 - 1
