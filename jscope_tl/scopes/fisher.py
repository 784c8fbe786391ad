"""Fisher Scope: sensitivity of the whole predictive distribution, ``tr(J_t^T F_u J_t)`` (Eqs. 4-6 of the paper)."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.one_position import VJP, SpanVJP
from jscope_tl.engine.state import State, divergence
from jscope_tl.errors import InputError, count, nearest
from jscope_tl.model.basis import Basis
from jscope_tl.scopes import trace
from jscope_tl.scopes.base import Effect, Scope, Score
from jscope_tl.scopes.budget import Budget, Tolerance
from jscope_tl.scopes.effects import EffectRows, divergence_of
from jscope_tl.scopes.factor import Factor, FisherFactor, without
from jscope_tl.scopes.registry import register_scope
from jscope_tl.scopes.stacked_factor import Stacked

EFFECT_RANK, EFFECT_PROBES = 12, 8
"""Leading directions and probes by which effects are predicted, where the options leave it open."""
METHODS = ("auto", "exact", "low_rank", "sampled", "krylov")


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
            ``"low_rank"``: ``Σ_{i≤rank} λ_i ‖u_i^T J_t‖²``, a lower bound; ``rank`` backward passes. The ``u_i`` are found by products
            with ``F_u``, to 1e-5 of ``λ_1`` in float32. The leading
            direction alone (``rank=1``) is the paper's second version.
            ``"sampled"``: the ``rank`` leading directions exactly, and ``probes`` random sign combinations of the
            others: unbiased, with a standard error.
            ``"krylov"``: also the ``images`` directions into which the model carries the leading ones, exactly: one
            product with ``J`` and one row each. Unbiased, and at equal cost about half the error of ``sampled``.
            ``"auto"``: as ``krylov``, with as many probes as bring every position's standard error below ``rtol`` of its
            score or ``atol`` of the largest one; all directions instead where that takes no more passes. The result's
            ``options["resolved"]`` tells. Stopping where the stated error is small makes the mean slightly too small, by a fifth of
            ``rtol`` at worst.
        rank: leading directions; by default 1 for ``low_rank``, 16 for ``sampled``, 8 for ``krylov`` and ``auto`` (24 for
            an ``rtol`` below 0.02, fewer where ``max_rows`` asks for it).
        images: of ``krylov`` and ``auto``; at most as many as ``rank``, by default one more than half of it (none below rank 4).
        probes: random probes of ``sampled`` and ``krylov``, at least 2; by default 16 and 8.
        rtol: relative standard error that ``auto`` stops at.
        atol: standard error that ``auto`` stops at, relative to the largest score (of the layer; the first token's aside), where that
            is more: by default 0.01, or a fifth of an ``rtol`` below 0.05. An error of one percent of the full scale is less than a
            picture shows. With 0 every position is held to ``rtol``.
        max_rows: backward passes that ``auto`` may take for an explained position; a result that they stop says so in its warnings.
        max_seconds: time that ``auto`` may take for an explained position after the forward pass, as far as the first row tells; at
            least three rows.
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
    images: int | None = None
    probes: int | None = None
    rtol: float = 0.05
    atol: float | None = None
    max_rows: int | None = None
    max_seconds: float | None = None
    seed: int = 0
    unit = "2 nats (KL) per unit of x squared"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"Fisher has no method {self.method!r}.{nearest(self.method, METHODS)} Known: {METHODS}.")
        for name, least in (("rank", 1), ("images", 0), ("probes", 2), ("max_rows", 1)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, count(name, getattr(self, name), least))
        object.__setattr__(self, "seed", count("seed", self.seed, 0))
        if not _is_number(self.rtol) or not 0 < self.rtol < 1:
            raise InputError(f"rtol is the relative standard error to reach, between 0 and 1; got {self.rtol!r}.")
        if self.atol is not None and (not _is_number(self.atol) or not 0 <= self.atol < 1):
            raise InputError(
                f"atol is the standard error to reach relative to the largest score, from 0 to below 1; got {self.atol!r}."
            )
        for name in ("max_rows", "max_seconds"):
            if getattr(self, name) is not None and self.method != "auto":
                raise InputError(
                    f"{name} ends method='auto'; {self.method!r} takes a fixed number of passes. Leave {name} out, or the method."
                )
        if self.max_seconds is not None and (not _is_number(self.max_seconds) or not 0 < self.max_seconds < 1e9):
            raise InputError(
                f"max_seconds is how long the backward passes may take, above 0; got {self.max_seconds!r}."
            )

    def cotangents(self, state: State) -> Float[Tensor, "k d_model"]:
        """``λ_i^{1/2} u_i^T`` in order of falling ``λ_i``: rows whose squared norms sum to the exact score."""
        S = fisher_factor(state)
        return S.principal() * S.size

    def score(self, state: State, vjp: VJP) -> Score:
        """The trace by the chosen method."""
        S = fisher_factor(state)
        return self._scored(S, self._rank(S.d_model), vjp).times(S.size**2)

    def score_span(self, states: Sequence[State], vjp: SpanVJP) -> Score:
        """The sum of the traces of several positions, as one trace: what the chain rule gives for the joint distribution."""
        S = Stacked(tuple(map(fisher_factor, states)))
        return self._scored(S, self._rank(S.d_model), vjp).times(S.size**2)

    def combined(self, squares: Float[Tensor, "k *layer pos"]) -> Float[Tensor, "*layer pos"]:
        """The trace is their plain sum."""
        return reduce(squares, "k ... -> ...", "sum")

    def path_rows(self, state: State) -> Float[Tensor, "k d_model"]:
        """Along a path eigenvectors are those of the prompt: recomputed at each point they would change places and signs."""
        if self.method not in ("low_rank", "exact"):
            raise InputError(
                f"Along a path the rows of Fisher Scope are averaged, which method={self.method!r} does not write out. Use "
                "method='low_rank' with a rank, or 'exact'."
            )
        if self.method == "exact":
            return self.cotangents(state)
        S = fisher_factor(state)
        return S.leading(self._rank(S.d_model)) * S.size

    def at_input(self, score: Score) -> Score:
        """Half of it: the second-order prediction of the KL divergence."""
        return score.times(0.5)

    @property
    def _tolerance(self) -> Tolerance:
        """One percent of the largest score for an ``rtol`` of five, and as much less as ``rtol`` is."""
        return Tolerance(float(self.rtol), min(0.01, self.rtol / 5) if self.atol is None else float(self.atol))

    def _scored(self, S: Factor, rank: int, vjp: VJP) -> Score:
        if self.method == "exact":
            return trace.exact(S, vjp)
        if self.method == "low_rank":
            return trace.low_rank(S, rank, vjp)
        if self.method == "sampled":
            return trace.sampled(S, rank, 0, self.probes or 16, self.seed, vjp)
        images = (rank // 2 + 1 if rank >= 4 else 0) if self.images is None else self.images
        if self.method == "krylov":
            return trace.sampled(S, rank, images, self.probes or 8, self.seed, vjp)
        budget = Budget(vjp, self.max_rows, self.max_seconds)
        return trace.adaptive(S, rank, images, self._tolerance, self.seed, vjp, budget)

    def effect_from(self, base: State) -> Effect:
        """``KL(p_base ‖ p)`` of the two next-token distributions."""
        log_p = base.log_probs.detach()
        return lambda y, logits: divergence(log_p, logits.to(log_p).log_softmax(-1))

    def predicted_from(self, moved: Float[Tensor, "k *cell"], score: Score) -> Float[Tensor, "*cell"]:
        """``½ δ^T J_t^T F_u J_t δ``, the second-order prediction of the KL divergence, from the rows as they were pulled."""
        if score.weights is None:
            return 0.5 * reduce(moved.square(), "k ... -> ...", "sum")
        return 0.5 * einsum(score.weights.to(moved), moved.square(), "k, k ... -> ...")

    def effect_rows(self, state: State) -> EffectRows:
        """Leading directions, by default 12, and 8 probes of the rest; all directions of ``"exact"``, no probes for ``"low_rank"``.

        The logits go with the leading directions, so that their part of the KL divergence is that of the distribution itself, and not
        only its second order.
        """
        S = fisher_factor(state)
        rank = S.d_model if self.method == "exact" else self.rank or EFFECT_RANK
        probes = 0 if self.method in ("exact", "low_rank") else self.probes or EFFECT_PROBES
        if rank + probes >= S.n_directions:
            rank, probes = S.n_directions, 0
        known = S.leading(rank) * S.size
        directions = known / known.norm(dim=1, keepdim=True).clamp_min(torch.finfo(known.dtype).tiny)
        signs = trace.random_signs(probes, S.n, torch.Generator("cpu").manual_seed(self.seed))
        rest = without(S.right(signs.to(known.device)) * S.size, directions)
        exact = divergence_of(S.logits(known, directions), state.log_probs.detach())
        return EffectRows(torch.cat([known, rest]), probes, exact)

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
        if self.rank is None:
            adaptive = 8 if self.rtol >= 0.02 or self.method == "krylov" else 24
            if self.max_rows is not None:  # with its images and the first probes it takes 2 rank + 12
                adaptive = min(adaptive, max(1, (self.max_rows - trace.BLOCK - 4) // 2))
            return min({"low_rank": 1, "sampled": 16}.get(self.method, adaptive), d_model)
        if self.rank > d_model:
            raise InputError(f"rank is {self.rank}, but y has only {d_model} directions (d_model).")
        return self.rank


@register_scope("fisher_input")
@dataclass(frozen=True)
class FisherInputScope(FisherScope):
    """How far removing each token would move the whole next-token distribution, to second order, in nats.

    ``score_t = ½ x_t^T J_t^T F_u J_t x_t``: the KL divergence to expect when the token's vector is set to zero (to another
    origin: ``path=js.Point(origin=...)``). Fisher Scope at the token's own vector in place of all directions; options
    and methods are those of ``fisher``. Random probes scatter further here, where they are squares of one number at each
    position, so that ``auto`` takes more of them and more often all directions. Unit: nat.

    Example:
        >>> import jscope_tl as js
        >>> js.attribute(js.load_pocket_model(), "the keys to the cabinet", "fisher_input").unit
        'nat (KL)'
    """

    reduction = "dot"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def fisher_factor(state: State) -> FisherFactor:
    """A factor of ``F_u``, up to its size."""
    if not state.is_linear():
        raise InputError(
            "Fisher Scope needs logits that are W_U^T y, each by itself biased, scaled or capped; what this model (or a "
            "hook) does after the unembedding is more than that. The scopes with one direction work on it."
        )
    return FisherFactor(state.W_U, state.slope, state.log_probs.detach().exp(), state.dtype)
