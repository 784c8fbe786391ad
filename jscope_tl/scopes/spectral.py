"""Spectral Scope: the largest gain from a token to the prediction, over all directions."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.one_position import VJP
from jscope_tl.engine.state import State
from jscope_tl.errors import InputError, nearest
from jscope_tl.model.basis import Basis
from jscope_tl.scopes.base import Effect, Scope, Score, checked_cotangents
from jscope_tl.scopes.fisher import FisherScope
from jscope_tl.scopes.registry import register_scope
from jscope_tl.scopes.singular import collected, largest

OF = {
    "jacobian": "gain (unit of y per unit of x)",
    "fisher": "sqrt(2 nats) per unit of x",
}
SEED = 0
DOUBTFUL = 0.01
"""Relative error of a largest singular value above which a warning is given."""


def check_of(of: Any) -> str:
    """The name of the matrix, if it is known; else an error."""
    if not isinstance(of, str) or of not in OF:
        raise InputError(
            f"There is no spectrum of {of!r}.{nearest(of, OF)} Known: 'jacobian' (of J_t) and 'fisher' (of J_t^T F_u J_t)."
        )
    return of


@register_scope("spectral")
@dataclass(frozen=True)
class SpectralScope(Scope):
    """How far each token moves the final hidden state, or the whole distribution, along the direction with the largest gain.

    ``score_t = σ_1(J_t) = max_‖δ‖=1 ‖J_t δ‖``; with ``of="fisher"`` the root of the largest eigenvalue of ``J_t^T F_u J_t``,
    ``max_‖δ‖=1 (δ^T J_t^T F_u J_t δ)^{1/2}``. Half of its square is the largest KL divergence, to second order, of a step of size
    one. The trace (``fisher``) adds up all directions, so ``score_t² ≤ fisher_t ≤ rank · score_t²``; `js.spectrum` has the
    other singular values and the directions themselves. ``of="jacobian"`` measures how far ``y`` moves, whether or not that
    changes the prediction.

    Cost: ``d_model`` backward rows (for fisher: the rank of ``F_u``). If all rows of all positions take more memory than
    `jscope_tl.scopes.singular.BUDGET`, additional rows are needed (from 33 to half as many again) and the score is a lower bound; a
    warning is given if it may be more than 1 % too low.

    Folding the final norm (``fold_ln=True``) rescales ``y`` and changes the score for ``of="jacobian"``, which then has a warning;
    ``of="fisher"`` stays the same.

    Args:
        of: ``"jacobian"`` or ``"fisher"``.

    Unit: gain (unit of y per unit of x); for fisher sqrt(2 nats) per unit of x. The effect that activation patching compares it
    with is ``‖y - y_base‖``, or ``sqrt(2 KL(base ‖ patched))``.

    Raises:
        InputError: ``of`` is unknown; for fisher, as in Fisher Scope.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> js.attribute(model, prompt, "spectral", of="fisher").top(1)[0].str_token
        ' columbia'
    """

    of: str = "jacobian"
    needs_vectors = True

    def __post_init__(self) -> None:
        check_of(self.of)

    @property
    def unit(self) -> str:  # type: ignore[override]  # a class constant in most other scopes
        """The unit for ``of``."""
        return OF[self.of]

    @property
    def effect_unit(self) -> str:
        """The unit of the distance from the base run."""
        return "unit of y" if self.of == "jacobian" else "sqrt(2 nats)"

    def cotangents(self, state: State) -> Float[Tensor, "k d_model"]:
        """The identity, or the rows of a root of ``F_u``."""
        if self.of == "fisher":
            return FisherScope().cotangents(state)
        return torch.eye(len(state.y), dtype=state.dtype, device=state.y.device)

    def score(self, state: State, vjp: VJP) -> Score:
        """The largest singular value of ``C J_t``."""
        rows = self.path_rows(state)
        found = collected(rows, None, vjp, wanted=1, seed=SEED)
        if not found.energy.isfinite().all():  # refused with the finished scores
            return Score(_filled(found.energy, vjp))
        sigma = largest(found.M)
        if found.basis is None:
            return Score(_filled(sigma, vjp))
        width = found.rows.shape[-1]
        counts = torch.cat([torch.zeros(width, device="cpu"), torch.ones(len(rows), device="cpu")])
        return Score(
            _filled(sigma, vjp),
            resolved={"sketch": width},
            seed=SEED,
            weights=counts,
            warnings=_warnings(sigma, found.missed),
        )

    def of_rows(self, rows: Float[Tensor, "k *layer pos d_in"]) -> Float[Tensor, "*layer pos"]:
        """The largest singular value of rows that are averaged along a path."""
        return largest(rearrange(rows, "k ... d -> ... k d"))

    def path_rows(self, state: State) -> Float[Tensor, "k d_model"]:
        """All cotangents, those of the prompt."""
        return checked_cotangents(self.cotangents(state), state, self.label)

    def effect_from(self, base: State) -> Effect:
        """``‖y - y_base‖``, or ``sqrt(2 KL(p_base ‖ p))``."""
        if self.of == "fisher":
            divergence = FisherScope().effect_from(base)
            return lambda y, logits: (2 * divergence(y, logits)).clamp_min(0).sqrt()
        before = base.y.detach().to(base.dtype)
        return lambda y, logits: (y.to(before) - before).norm()

    def predicted_from(self, moved: Float[Tensor, "k *cell"], score: Score) -> Float[Tensor, "*cell"]:
        """``‖C J_t δ‖`` over all rows, not only along the leading direction, which differs between positions."""
        if score.weights is None:
            return moved.norm(dim=0)
        return einsum(score.weights.to(moved), moved.square(), "k, k ... -> ...").sqrt()

    def check(self, basis: Basis) -> list[str]:
        """Warn if ``y`` is rescaled."""
        if self.of == "fisher" or not basis.ln_folded:
            return []
        return [
            "The final norm has no gain of its own. If that is because it was folded into W_U, y is rescaled, and the singular "
            "values and vectors of its Jacobian differ from those on the unprocessed weights; of='fisher' has the same values on "
            "both."
        ]


def _filled(values: Float[Tensor, "*layer seen"], vjp: VJP) -> Float[Tensor, "*layer pos"]:
    """The values, filled up with 0 after the explained position."""
    return torch.nn.functional.pad(values, (0, vjp.backward.xs[0].shape[1] - values.shape[-1]))


def _warnings(sigma: Float[Tensor, "*layer seen"], missed: Float[Tensor, "*layer seen"]) -> list[str]:
    most = (1 + missed / sigma.square().clamp_min(torch.finfo(sigma.dtype).tiny)).sqrt().max() - 1
    if most <= DOUBTFUL:
        return []
    return [f"Scores are lower bounds from a sketch of the rows: they may be up to {float(most):.0%} too low."]
