"""Fisher Scope: sensitivity of the whole predictive distribution, ``tr(J_t^T F_u J_t)`` (Eqs. 4-6 of the paper)."""

from dataclasses import dataclass
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError, nearest, whole
from jscope_tl.scopes.base import Effect, Energies, Scope, Score
from jscope_tl.scopes.registry import register_scope
from jscope_tl.state import Basis, State

METHODS = ("auto", "exact", "low_rank", "sampled")
PROBE_BLOCK = 16


@register_scope("fisher")
@dataclass(frozen=True)
class FisherScope(Scope):
    """How strongly each token moves the whole next-token distribution (the paper's Fisher Scope, Eqs. 4-6).

    ``score_t = tr(J_t^T F_u J_t) = Σ_i λ_i ‖u_i^T J_t‖²`` with ``F_u = D^T (diag p - p p^T) D = Σ_i λ_i u_i u_i^T`` the
    Fisher information of the distribution with respect to ``y``, and ``D = ∂z/∂y``. ``ε²/(2 d)`` times the score is the
    KL divergence to expect when ``x_t`` is moved by a small ``ε`` in a random direction (Eq. 11). Unit: 2 nats (KL) per
    unit of x squared, summed over directions.

    Args:
        method:
            ``"exact"``: all directions; at most ``d_model`` backward passes, never a ``[pos, d, d]`` tensor.
            ``"low_rank"``: ``Σ_{i≤rank} λ_i ‖u_i^T J_t‖²``, a lower bound; ``rank`` backward passes. The leading
            direction alone (``rank=1``) is the paper's second version.
            ``"sampled"``: the ``rank`` leading directions exactly, and ``probes`` random sign combinations of the
            others: unbiased, with a standard error.
            ``"auto"``: leading directions, then probes until every position's standard error is below ``rtol`` of its
            score; all directions instead where that is no dearer. The result's ``options["resolved"]`` tells.
        rank: leading directions; by default 1 for ``low_rank``, 16 otherwise.
        probes: random probes of ``sampled``, at least 2.
        rtol: relative standard error that ``auto`` stops at.
        seed: of the probes. The global random generator is not touched.

    Low rank changes with the weight processing: folding the final norm rescales ``y`` and so picks other directions. The
    whole trace does not change. Precision: ``F_u`` is accumulated in float32 (float64 for float64 models) from centred
    rows, ``Σ_v p_v (d_v - μ)(d_v - μ)^T``, which does not cancel for peaked ``p``.

    Raises:
        InputError: unknown method, or rank, probes or rtol out of range.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "english : the black dog sleeps . german : der schwarze"
        >>> js.attribute(model, prompt, "fisher", method="exact").top(1)[0].str_token
        ' dog'
    """

    method: str = "auto"
    rank: int | None = None
    probes: int = 16
    rtol: float = 0.1
    seed: int = 0
    unit = "2 nats (KL) per unit of x squared"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"Fisher has no method {self.method!r}.{nearest(self.method, METHODS)} Known: {METHODS}.")
        if self.rank is not None:
            _need_count("rank", self.rank, 1)
        _need_count("probes", self.probes, 2)
        _need_count("seed", self.seed, 0)
        if isinstance(self.rtol, bool) or not isinstance(self.rtol, int | float) or not 0 < self.rtol < 1:
            raise InputError(f"rtol is the relative standard error to reach, between 0 and 1; got {self.rtol!r}.")

    def cotangents(self, state: State) -> Float[Tensor, "k d_model"]:
        """``λ_i^{1/2} u_i^T`` in order of falling ``λ_i``: rows whose energies sum to the exact score."""
        return fisher_factor(logit_jacobian(state), state.log_probs.detach().exp().to(state.dtype))

    def score(self, state: State, energies: Energies) -> Score:
        """The trace by the chosen method."""
        factor = self.cotangents(state)
        rank = self._rank(state.y.shape[0])
        if self.method == "exact":
            return Score(energies(factor).sum(0))
        if self.method == "low_rank":
            return _low_rank(factor, rank, energies)
        if self.method == "sampled":
            return _sampled(factor, rank, self.probes, self.seed, energies)
        return _auto(factor, rank, self.rtol, self.seed, energies)

    def effect_from(self, base: State) -> Effect:
        """``KL(p_base ‖ p)`` of the two next-token distributions."""
        log_p = base.log_probs.detach()
        return lambda y, logits: (log_p.exp() * (log_p - logits.to(log_p).log_softmax(-1))).sum()

    def predicted_from(self, moved: Float[Tensor, "k *cell"], score: Score) -> Float[Tensor, "*cell"]:
        """``½ δ^T J_t^T F_u J_t δ``, the second-order prediction of the KL divergence, from the rows as they were pulled."""
        squares = 0.5 * moved.square()
        leading = self._rank(10**9) if self.method == "auto" else score.resolved.get("rank", len(moved))
        probes = len(moved) - leading if score.stderr is not None else 0
        given_up = score.resolved.get("probes_given_up", 0)
        if probes > 0:
            return squares[:leading].sum(0) + squares[leading:].mean(0)
        return squares.sum(0) - squares[leading : leading + given_up].sum(0)

    @property
    def effect_unit(self) -> str:
        """The KL divergence itself, not twice."""
        return "nat (KL)"

    def check(self, basis: Basis) -> list[str]:
        """Warn where low rank depends on the weight processing."""
        if self.method == "low_rank" and basis.ln_folded:
            return [
                "The final norm has no gain of its own. If that is because it was folded into W_U, the leading directions "
                "of F_u are others than on the unprocessed weights, and so is a low-rank score; the whole trace ('exact', "
                "'sampled') is the same."
            ]
        return []

    def _rank(self, d_model: int) -> int:
        rank = self.rank if self.rank is not None else (1 if self.method == "low_rank" else 16)
        if rank > d_model and self.rank is not None:
            raise InputError(f"rank is {rank}, but y has only {d_model} directions (d_model).")
        return min(rank, d_model)


def _need_count(name: str, value: object, least: int) -> None:
    number = whole(value)
    if number is None or not least <= number < 2**63:
        raise InputError(f"{name} is a whole number, {least} or more; got {value!r}.")


def logit_jacobian(state: State) -> Float[Tensor, "d_vocab d_model"]:
    """``D = ∂z/∂y``: the unembedding's rows, each scaled by what soft-cap and logit scale do to its logit."""
    if not state.is_linear():
        raise InputError(
            "Fisher Scope needs logits that are W_U^T y, each by itself biased, scaled or capped; what this model (or a "
            "hook) does after the unembedding is more than that. The scopes with one direction work on it."
        )
    return (state.W_U.to(state.dtype) * state.slope).T


def fisher_factor(D: Float[Tensor, "d_vocab d_model"], p: Float[Tensor, "d_vocab"]) -> Float[Tensor, "rank d_model"]:
    """``R`` with ``R^T R = F_u = Σ_v p_v (d_v - μ)(d_v - μ)^T``: rows ``λ_i^{1/2} u_i^T``, falling, zeros left out."""
    p = p.detach()
    centred = (D - p @ D) * p.sqrt().unsqueeze(-1)
    eigenvalues, eigenvectors = torch.linalg.eigh(centred.T @ centred)
    # Not the usual d * eps: F_u's spectrum has a long tail, and J may be large along it.
    kept = eigenvalues > eigenvalues[-1].clamp_min(0) * torch.finfo(D.dtype).eps
    if not kept.any():  # p is one token for certain: nothing moves it
        return torch.zeros_like(D[:1])
    return (eigenvectors[:, kept] * eigenvalues[kept].sqrt()).T.flip(0)


def probe_rows(factor: Float[Tensor, "rest d_model"], n: int, generator: torch.Generator) -> Float[Tensor, "n d_model"]:
    """Random sign combinations of the factor's rows: ``E‖probe J_t‖² = Σ_i ‖factor_i J_t‖²``."""
    return random_signs(n, len(factor), generator).to(factor) @ factor


def random_signs(n: int, m: int, generator: torch.Generator) -> Float[Tensor, "n m"]:
    """Signs drawn on the CPU, so that a seed means the same on every device."""
    return torch.randint(0, 2, (n, m), generator=generator, device="cpu").float() * 2 - 1


def _low_rank(factor: Float[Tensor, "k d_model"], rank: int, energies: Energies) -> Score:
    share = factor[:rank].square().sum() / factor.square().sum().clamp_min(torch.finfo(factor.dtype).tiny)
    resolved = {"rank": min(rank, len(factor)), "share_of_trace_F_u": round(float(share), 4)}
    return Score(energies(factor[:rank]).sum(0), resolved=resolved)


def _estimate(
    leading: Float[Tensor, "*layer pos"], probes: Float[Tensor, "m *layer pos"]
) -> tuple[Float[Tensor, "*layer pos"], Float[Tensor, "*layer pos"]]:
    """Sum of the exact part and the mean of the probes, and its standard error."""
    return leading + probes.mean(0), probes.std(0) / len(probes) ** 0.5


def _largest_relative(stderr: Float[Tensor, "*layer pos"], values: Float[Tensor, "*layer pos"]) -> float:
    return float((stderr / values.clamp_min(torch.finfo(values.dtype).tiny)).max())


def _sampled(factor: Float[Tensor, "k d_model"], rank: int, m: int, seed: int, energies: Energies) -> Score:
    if rank >= len(factor):
        return Score(energies(factor).sum(0), resolved={"method": "exact", "rank": len(factor), "probes": 0})
    probes = probe_rows(factor[rank:], m, torch.Generator("cpu").manual_seed(seed))
    rows = energies(torch.cat([factor[:rank], probes]))
    values, stderr = _estimate(rows[:rank].sum(0), rows[rank:])
    return Score(values, stderr, {"rank": rank, "probes": m}, seed=seed)


def _auto(factor: Float[Tensor, "k d_model"], rank: int, rtol: float, seed: int, energies: Energies) -> Score:
    """Probes in blocks until ``rtol`` is met; exact as soon as that is expected to cost no more.

    Stopping where the stated error happens to be small makes it slightly too small: two standard errors then hold 87 to
    94 % of the errors where they should hold 95 % (rank-one J, the worst case; rtol 0.3 to 0.1).
    """
    if len(factor) <= rank + PROBE_BLOCK:
        return Score(energies(factor).sum(0), resolved={"method": "exact", "rank": len(factor)})
    generator = torch.Generator("cpu").manual_seed(seed)
    leading = energies(factor[:rank], more_to_come=True).sum(0)
    probes = factor.new_empty(0, *leading.shape)
    remaining = len(factor) - rank
    while len(probes) < remaining:
        block = energies(probe_rows(factor[rank:], PROBE_BLOCK, generator), more_to_come=True)
        probes = torch.cat([probes, block])
        values, stderr = _estimate(leading, probes)
        worst = _largest_relative(stderr, values)
        if worst <= rtol or not isfinite(worst):  # what is not finite is refused with the finished scores
            done = {
                "method": "sampled",
                "rank": rank,
                "probes": len(probes),
                "largest_relative_stderr": round(worst, 4),
            }
            return Score(values, stderr, done, seed=seed)
        expected = len(probes) * (worst / rtol) ** 2 - len(probes)
        if expected >= remaining:
            break
    exact = leading + energies(factor[rank:]).sum(0)
    return Score(exact, resolved={"method": "exact", "rank": len(factor), "probes_given_up": len(probes)})
