"""``‖R J_t‖²`` for every position from fewer rows than ``R`` has: exactly, from below, or estimated with an error.

An estimate has three parts. The leading rows of ``R`` are pulled back exactly. They are also *sent round*: ``J`` times what
came back shows into which other directions the model carries them (one block-Krylov step on the pulled-back matrix
``Σ_t w_t R J_t J_t^T R^T``, whose spectrum falls faster than that of ``R R^T``), and these are pulled back exactly too. What
is left is measured with random signs (Hutchinson's estimator): unbiased, because no random number chose the directions.
"""

from dataclasses import dataclass
from math import ceil, isfinite

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from jscope_tl.engine import Pull
from jscope_tl.scopes.base import Score

BLOCK = 8
"""Probes pulled at once, and the fewest that `adaptive` draws."""


def exact(factor: Float[Tensor, "k d_model"], pull: Pull) -> Score:
    """All rows."""
    return Score(pull.energies(factor).sum(0))


def low_rank(factor: Float[Tensor, "k d_model"], rank: int, pull: Pull) -> Score:
    """The leading rows only: a lower bound."""
    share = factor[:rank].square().sum() / factor.square().sum().clamp_min(torch.finfo(factor.dtype).tiny)
    resolved = {"rank": min(rank, len(factor)), "share_of_trace_F_u": round(float(share), 4)}
    return Score(pull.energies(factor[:rank]).sum(0), resolved=resolved)


def sampled(factor: Float[Tensor, "k d_model"], rank: int, images: int, probes: int, seed: int, pull: Pull) -> Score:
    """Leading rows, their images, and a fixed number of probes of the rest."""
    known = _known(factor, rank, images, pull) if rank + images < len(factor) else None
    if known is None:
        return _all_rows(factor, pull)
    found = _Probes(known, torch.Generator("cpu").manual_seed(seed), pull)
    found.draw(probes, more_to_come=False)
    return found.score(seed)


def adaptive(
    factor: Float[Tensor, "k d_model"], rank: int, images: int, rtol: float, max_rows: int | None, seed: int, pull: Pull
) -> Score:
    """Probes until every position's standard error is below ``rtol``; all rows as soon as that is expected to cost no more."""
    if len(factor) <= rank + (2 * images + 2 if images else 0) + BLOCK:  # 2 for the pass that all products share
        return _all_rows(factor, pull)
    known = _known(factor, rank, images, pull)
    found = _Probes(known, torch.Generator("cpu").manual_seed(seed), pull)
    wanted = BLOCK
    while True:
        found.draw(wanted)
        worst, drawn = found.worst(), found.n
        wanted = ceil(drawn * (worst / rtol) ** 2) - drawn if isfinite(worst) else 0
        if wanted <= 0:  # what is not finite is refused with the finished scores
            return found.score(seed)
        if wanted >= len(known.rest) - len(known.images):
            break
        wanted = min(max(wanted, 2), drawn)
        if max_rows is not None and pull.puller.n_backward + wanted > max_rows:
            return found.score(seed, doubt=f"rtol={rtol} was not met within max_rows={max_rows}")
    if max_rows is not None and pull.puller.n_backward + len(known.rest) - len(known.images) > max_rows:
        return found.score(seed, doubt=f"rtol={rtol} was not met within max_rows={max_rows}")
    return _given_up(factor, known, found, pull)


def _all_rows(factor: Float[Tensor, "k d_model"], pull: Pull) -> Score:
    return Score(pull.energies(factor).sum(0), resolved={"method": "exact", "rank": len(factor)})


@dataclass(frozen=True)
class _Known:
    """What was pulled back exactly (its energy and number of rows), and what is left: orthonormal combinations ``images`` of
    the rows ``rest`` are known, all others are not."""

    energy: Float[Tensor, "*layer pos"]
    rank: int
    rest: Float[Tensor, "rest d_model"]
    images: Float[Tensor, "image rest"]


def _known(factor: Float[Tensor, "k d_model"], rank: int, images: int, pull: Pull) -> _Known:
    leading, rest = factor[:rank], factor[rank:]
    sent = min(images, rank, len(rest))
    if not sent:
        return _Known(pull.energies(leading, more_to_come=True).sum(0), rank, rest, rest.new_zeros(0, len(rest)))
    rows = pull.rows(leading[:sent], more_to_come=True)
    energy = rows.square().sum(-1).sum(0)
    if rank > sent:
        energy = energy + pull.energies(leading[sent:], more_to_come=True).sum(0)
    directions = _carried_to(
        rows if rows.ndim == 3 else rows[:, 0], energy if rows.ndim == 3 else energy[0], rest, pull
    )
    if len(directions):
        energy = energy + pull.energies(directions @ rest, more_to_come=True).sum(0)
    return _Known(energy, rank, rest, directions)


def _carried_to(
    rows: Float[Tensor, "m pos d_in"],
    energy: Float[Tensor, "pos"],
    rest: Float[Tensor, "rest d_model"],
    pull: Pull,
) -> Float[Tensor, "image rest"]:
    """Orthonormal directions in the space of ``rest`` that ``Σ_t R J_t J_t^T R^T / energy_t`` couples to these rows.

    Dividing by the energy makes each position count by its own size: the relative error matters, and the first token of a
    prompt often has most of the energy.
    """
    weights = torch.where(energy > 0, energy, torch.inf).reciprocal().to(rows.device)
    carried = pull.push(rows * weights.unsqueeze(-1))
    if carried is None or not carried.isfinite().all():
        return rest.new_zeros(0, len(rest))
    _, sizes, directions = torch.linalg.svd(carried.to(rest) @ rest.T, full_matrices=False)
    return directions[sizes > sizes[0] * 1e-6]


class _Probes:
    """Random signs over the unknown rows: energies, and how much they scatter."""

    def __init__(self, known: _Known, generator: torch.Generator, pull: Pull) -> None:
        self.known, self.generator, self.pull = known, generator, pull
        self.energies: list[Float[Tensor, "m *layer pos"]] = []
        self.products = torch.zeros_like(known.energy)
        self.pairs = 0

    @property
    def n(self) -> int:
        return sum(len(block) for block in self.energies)

    def draw(self, n: int, more_to_come: bool = True) -> None:
        blocks = random_signs(n, len(self.known.rest), self.generator).split(BLOCK)
        for i, block in enumerate(blocks):
            self._pull(block.to(self.known.rest), more_to_come or i + 1 < len(blocks))

    def _pull(self, signs: Float[Tensor, "m rest"], more_to_come: bool) -> None:
        unknown = signs - (signs @ self.known.images.T) @ self.known.images
        rows = self.pull.rows(unknown @ self.known.rest, more_to_come)
        grams = torch.einsum("m...d,n...d->mn...", rows, rows)
        energies = grams.diagonal().movedim(-1, 0)
        self.energies.append(energies.to(self.known.energy))
        self.products += (grams.square().sum((0, 1)) - energies.square().sum(0)).to(self.products) / 2
        self.pairs += len(signs) * (len(signs) - 1) // 2

    def stderr(self) -> Float[Tensor, "*layer pos"]:
        """From the products of all pairs of probes: ``E (ω M ω')² = ‖M‖_F²``, and a probe's variance is at most ``2 ‖M‖_F²``.

        The many pairs scatter less than the few energies themselves. Widened as Student's t is for few probes, so that two
        of it hold 95 % of the errors.
        """
        widened = float(stdtrit(self.n - 1, 0.975)) / 1.96
        return (2 * self.products / max(self.pairs, 1) / self.n).sqrt() * widened

    def values(self) -> Float[Tensor, "*layer pos"]:
        return self.known.energy + torch.cat(self.energies).mean(0)

    def worst(self) -> float:
        """The largest standard error relative to its score."""
        return float((self.stderr() / self.values().clamp_min(torch.finfo(self.products.dtype).tiny)).max())

    def score(self, seed: int, doubt: str | None = None) -> Score:
        done = {"rank": self.known.rank, "images": len(self.known.images), "probes": self.n}
        worst = round(self.worst(), 4)
        ones = torch.ones(self.known.rank + len(self.known.images), device="cpu")
        return Score(
            self.values(),
            self.stderr(),
            resolved=done | {"largest_relative_stderr": worst},
            seed=seed,
            weights=torch.cat([ones, torch.full((self.n,), 1 / self.n, device="cpu")]),
            doubts=[] if doubt is None else [f"{doubt}: the largest relative standard error is {worst}."],
        )


def _given_up(factor: Float[Tensor, "k d_model"], known: _Known, found: _Probes, pull: Pull) -> Score:
    """The exact score after all, from what is known and the rest of the directions; the probes do not count."""
    n = len(known.images)
    others = torch.linalg.qr(known.images.T, mode="complete").Q[:, n:].T if n else torch.eye(len(known.rest)).to(factor)
    values = known.energy + pull.energies(others @ known.rest).sum(0)
    exact_rows, dropped = torch.ones(known.rank + n, device="cpu"), torch.zeros(found.n, device="cpu")
    weights = torch.cat([exact_rows, dropped, torch.ones(len(others), device="cpu")])
    resolved = {"method": "exact", "rank": len(factor), "probes_given_up": found.n}
    return Score(values, resolved=resolved, weights=weights)


def random_signs(n: int, m: int, generator: torch.Generator) -> Float[Tensor, "n m"]:
    """Signs drawn on the CPU, so that a seed means the same on every device."""
    return torch.randint(0, 2, (n, m), generator=generator, device="cpu").float() * 2 - 1
