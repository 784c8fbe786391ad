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
"""Default numbers of leading directions and probes for the prediction of effects."""
METHODS = ("auto", "exact", "low_rank", "sampled", "krylov")


@register_scope("fisher")
@dataclass(frozen=True)
class FisherScope(Scope):
    """How strongly each token moves the whole next-token distribution (the paper's Fisher Scope, Eqs. 4-6).

    ``score_t = tr(J_t^T F_u J_t) = Σ_i λ_i ‖u_i^T J_t‖²`` with ``F_u = D^T (diag p - p p^T) D = Σ_i λ_i u_i u_i^T`` the
    Fisher information of the distribution with respect to ``y``, and ``D = ∂z/∂y``. ``ε²/(2 d)`` times the score is the expected
    KL divergence if ``x_t`` is moved by a small distance ``ε`` in a random direction (Eq. 11). Unit: 2 nats (KL) per
    unit of x squared, summed over directions.

    Args:
        method:
            ``"exact"``: all directions; at most ``d_model`` backward passes. No ``[pos, d, d]`` tensor is built.
            ``"low_rank"``: ``Σ_{i≤rank} λ_i ‖u_i^T J_t‖²``, a lower bound; ``rank`` backward passes. The ``u_i`` are computed from
            products with ``F_u``, to 1e-5 of ``λ_1`` in float32. The leading
            direction alone (``rank=1``) is the paper's second version.
            ``"sampled"``: the ``rank`` leading directions exactly, and the rest estimated from ``probes`` random sign combinations:
            unbiased, with a standard error.
            ``"krylov"``: like ``sampled``, but ``images`` further directions are also computed exactly: those to which ``J J^T``
            maps the leading ones. Each costs one product with ``J`` and one row. Unbiased, and at equal cost about half the error of
            ``sampled``.
            ``"auto"``: like ``krylov``, with as many probes as are needed to bring every position's standard error below ``rtol`` times
            its score or ``atol`` times the largest score; or all directions if that takes no more passes. The result's
            ``options["resolved"]`` says which. Stopping as soon as the estimated error is small makes the mean slightly too small, by a
            fifth of ``rtol`` at worst.
        rank: the number of leading directions; by default 1 for ``low_rank``, 16 for ``sampled``, 8 for ``krylov`` and ``auto`` (24
            for an ``rtol`` below 0.02, fewer if ``max_rows`` requires it).
        images: the number of further directions of ``krylov`` and ``auto``; at most ``rank``, by default one more than half of it
            (none below rank 4).
        probes: the number of random probes of ``sampled`` and ``krylov``, at least 2; by default 16 and 8.
        rtol: the relative standard error at which ``auto`` stops.
        atol: the standard error at which ``auto`` stops, relative to the largest score of the layer (the first token's excluded), if
            that is more than ``rtol`` times the score: by default 0.01, or a fifth of an ``rtol`` below 0.05. An error of one percent of
            the full scale is not visible in a figure. With 0, every position must reach ``rtol``.
        max_rows: the maximum number of backward rows of ``auto`` for one explained position; a result that reaches it has a warning.
        max_seconds: the maximum time of ``auto`` for one explained position after the forward pass, estimated from the first row; at
            least three rows are computed.
        seed: the seed of the probes. The global random generator is not touched.

    A low-rank score depends on the weight processing: folding the final norm rescales ``y`` and so changes the leading directions. The
    full trace does not change. Precision: ``F_u`` is accumulated in float32 (float64 for float64 models) from centred
    rows, ``Σ_v p_v (d_v - μ)(d_v - μ)^T``, which does not cancel for peaked ``p``.

    Raises:
        InputError: the method is unknown, or rank, probes or rtol is out of range.

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
            raise InputError(
                f"rtol is the relative standard error to reach and must be between 0 and 1; got {self.rtol!r}."
            )
        if self.atol is not None and (not _is_number(self.atol) or not 0 <= self.atol < 1):
            raise InputError(
                f"atol is the standard error to reach relative to the largest score, 0 or more and below 1; got {self.atol!r}."
            )
        for name in ("max_rows", "max_seconds"):
            if getattr(self, name) is not None and self.method != "auto":
                raise InputError(
                    f"{name} limits method='auto'; {self.method!r} takes a fixed number of passes. Leave out {name}, or the method."
                )
        if self.max_seconds is not None and (not _is_number(self.max_seconds) or not 0 < self.max_seconds < 1e9):
            raise InputError(
                f"max_seconds is the time that the backward passes may take and must be above 0; got {self.max_seconds!r}."
            )

    def cotangents(self, state: State) -> Float[Tensor, "k d_model"]:
        """``λ_i^{1/2} u_i^T`` in order of decreasing ``λ_i``: rows whose squared norms sum to the exact score."""
        S = fisher_factor(state)
        return S.principal() * S.size

    def score(self, state: State, vjp: VJP) -> Score:
        """The trace by the chosen method."""
        S = fisher_factor(state)
        return self._scored(S, self._rank(S.d_model), vjp).times(S.size**2)

    def score_span(self, states: Sequence[State], vjp: SpanVJP) -> Score:
        """The sum of the traces of several positions, as one trace; by the chain rule this is the score of the joint distribution."""
        S = Stacked(tuple(map(fisher_factor, states)))
        return self._scored(S, self._rank(S.d_model), vjp).times(S.size**2)

    def combined(self, squares: Float[Tensor, "k *layer pos"]) -> Float[Tensor, "*layer pos"]:
        """The trace: the sum of the squared norms."""
        return reduce(squares, "k ... -> ...", "sum")

    def path_rows(self, state: State) -> Float[Tensor, "k d_model"]:
        """The prompt's eigenvectors, also along a path: eigenvectors of other points could have another order and other signs."""
        if self.method not in ("low_rank", "exact"):
            raise InputError(
                f"Along a path the rows of Fisher Scope are averaged, but method={self.method!r} has no fixed rows. Use "
                "method='low_rank' with a rank, or 'exact'."
            )
        if self.method == "exact":
            return self.cotangents(state)
        S = fisher_factor(state)
        return S.leading(self._rank(S.d_model)) * S.size

    def at_input(self, score: Score) -> Score:
        """Half of the score: the second-order prediction of the KL divergence."""
        return score.times(0.5)

    @property
    def _tolerance(self) -> Tolerance:
        """The tolerance; the default ``atol`` is 0.01, or a fifth of ``rtol`` if that is less."""
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
        """``½ δ^T J_t^T F_u J_t δ``, the second-order prediction of the KL divergence, from the rows of the score."""
        if score.weights is None:
            return 0.5 * reduce(moved.square(), "k ... -> ...", "sum")
        return 0.5 * einsum(score.weights.to(moved), moved.square(), "k, k ... -> ...")

    def effect_rows(self, state: State) -> EffectRows:
        """Leading directions, by default 12, and 8 probes of the rest; all directions for ``"exact"``, no probes for ``"low_rank"``.

        The changes of the logits along the leading directions are known, so that their part of the KL divergence is computed from the
        distribution itself, not only to second order.
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
        """The unit of the KL divergence itself, not of twice its value."""
        return "nat (KL)"

    def check(self, basis: Basis) -> list[str]:
        """Warn if a low-rank score depends on the weight processing."""
        if self.method == "low_rank" and basis.ln_folded:
            return [
                "The final norm has no gain of its own. If that is because it was folded into W_U, the leading directions "
                "of F_u, and with them a low-rank score, differ from those on the unprocessed weights; the whole trace ('exact', "
                "'sampled') is the same."
            ]
        return []

    def _rank(self, d_model: int) -> int:
        if self.rank is None:
            adaptive = 8 if self.rtol >= 0.02 or self.method == "krylov" else 24
            if self.max_rows is not None:  # with images and the first probes, 2 rank + 12 rows are needed
                adaptive = min(adaptive, max(1, (self.max_rows - trace.BLOCK - 4) // 2))
            return min({"low_rank": 1, "sampled": 16}.get(self.method, adaptive), d_model)
        if self.rank > d_model:
            raise InputError(f"rank is {self.rank}, but y has only {d_model} directions (d_model).")
        return self.rank


@register_scope("fisher_input")
@dataclass(frozen=True)
class FisherInputScope(FisherScope):
    """How far removing each token would move the whole next-token distribution, to second order, in nats.

    ``score_t = ½ x_t^T J_t^T F_u J_t x_t``: the predicted KL divergence if the token's vector is set to zero (for another
    origin: ``path=js.Point(origin=...)``). This is Fisher Scope along the token's own vector instead of all directions; options
    and methods are those of ``fisher``. Random probes have a larger variance here, because each is the square of one number per
    position, so that ``auto`` takes more probes, and more often all directions. Unit: nat.

    Example:
        >>> import jscope_tl as js
        >>> js.attribute(js.load_pocket_model(), "the keys to the cabinet", "fisher_input").unit
        'nat (KL)'
    """

    reduction = "dot"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def fisher_factor(state: State) -> FisherFactor:
    """A factor of ``F_u``, divided by its size."""
    if not state.is_linear():
        raise InputError(
            "Fisher Scope needs logits that are W_U^T y, each of them biased, scaled or capped by itself; this model (or a "
            "hook) does more than that after the unembedding. Use a scope with one direction, such as 'log_prob'."
        )
    return FisherFactor(state.W_U, state.slope, state.log_probs.detach().exp(), state.dtype)
