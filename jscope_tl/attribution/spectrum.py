"""`spectrum`: the leading singular values and vectors of every position's Jacobian, and what they say in tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.attribution.attribute import finished, provenance
from jscope_tl.attribution.decoding import MOST, DecodedDirection, Decodings, decoded
from jscope_tl.engine.backward import Puller, check_chunk_size
from jscope_tl.errors import InputError, whole
from jscope_tl.engine.forward import FwdHooks, run
from jscope_tl.engine.constant import Frozen, check_frozen
from jscope_tl.model.view import ModelView
from jscope_tl.model.prompts import Prompt, bos_positions, prompt_warnings, to_position, to_str_tokens, to_tokens
from jscope_tl.engine.vjp import Pull
from jscope_tl.results.attribution import Provenance
from jscope_tl.scopes.spectral import OF, SEED, SpectralScope
from jscope_tl.scopes.singular import Factors, collected, factors
from jscope_tl.engine.state import Basis, State

if TYPE_CHECKING:
    import pandas as pd

CAPTURED = 0.99
"""Share of the energy below which singular values from a sketch are doubted."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Leading singular values and vectors of ``M_t`` at every position ``t``: which directions move the prediction, and how far.

    ``M_t = J_t``, or ``F_u^{1/2} J_t`` for ``of="fisher"``, whose squared singular values are the eigenvalues of
    ``J_t^T F_u J_t``. The sign of a singular vector is arbitrary: it is chosen so that the largest decoded change is a rise (of two that
    are alike within 1 %, that of the more probable token).
    Everything is float32 on the CPU and 0 after the explained position; so are directions whose singular value is rounding.

    Attributes:
        singular_values: ``[pos, k]``, falling; in ``unit``.
        output_directions: ``[pos, k, d_model]``, unit vectors: where ``y`` goes when ``x_t`` moves along the input direction.
            For the Jacobian the left singular vectors, for Fisher ``J_t v / ‖J_t v‖``, which are not orthogonal.
        input_directions: ``[pos, k, d_in]``, the right singular vectors ``v``.
        energy: ``[pos]``, ``‖M_t‖_F² = Σ σ²`` of all singular values, also those beyond ``k``; for Fisher the score of
            Fisher Scope.
        effective_rank: ``[pos]``, the participation ratio ``(Σ σ²)² / Σ σ⁴`` (Gao et al. 2017): 1 where one direction does
            everything, n where n do equally much. Of all singular values; from a sketch (``captured < 1``) those outside it
            are left out of the denominator, and the number is an upper bound; the effective rank of Roy and Vetterli (2007),
            an entropy, would have no bound.
        captured: ``[pos]``, share of the energy in the space that was searched: 1 where all rows were kept. Then
            ``σ² ≤ true σ² ≤ σ² + (1 - captured) energy``.
        of: ``"jacobian"`` or ``"fisher"``.
        tokens, str_tokens, position, unit, basis, provenance, warnings, bos_positions: as in `Attribution`.
    """

    singular_values: Float[Tensor, "pos k"]
    output_directions: Float[Tensor, "pos k d_model"]
    input_directions: Float[Tensor, "pos k d_in"]
    energy: Float[Tensor, "pos"]
    effective_rank: Float[Tensor, "pos"]
    captured: Float[Tensor, "pos"]
    of: str
    tokens: Int[Tensor, "pos"]
    str_tokens: list[str]
    position: int
    unit: str
    basis: Basis
    provenance: Provenance
    warnings: list[str] = field(default_factory=list)
    bos_positions: tuple[int, ...] = ()
    _decodings: Decodings | None = field(default=None, repr=False)

    @property
    def shares(self) -> Float[Tensor, "pos k"]:
        """Share of each direction in the energy (for Fisher: in the trace): ``σ_i² / Σ σ²``."""
        energy = self.energy.unsqueeze(1)
        return torch.where(energy > 0, self.singular_values.square() / energy, 0.0)

    def decode(self, pos: int, i: int = 0, k: int = 5) -> DecodedDirection:
        """The ``k`` tokens that rise and fall most when ``y`` takes a step of size one along an output direction.

        To first order, through the unembedding, logit scale and soft-cap: ``D u`` with ``D = ∂z/∂y``, less its mean over the
        vocabulary; for Fisher the probabilities, ``p ⊙ (D u - p·D u)``.

        Args:
            pos: the position; negative counts from the end.
            i: which direction, 0 is the leading one.
            k: how many tokens at each end, 20 at most.

        Raises:
            InputError: there is no such position or direction, ``k`` is out of range, or the model mixes logits.
        """
        pos, n = to_position(pos, len(self.str_tokens)), self.singular_values.shape[1]
        which, count = whole(i), whole(k)
        if which is None or not 0 <= which < n:
            raise InputError(
                f"i is which direction, 0 to {n - 1} in this result; got {i!r}. k of js.spectrum gives more."
            )
        if count is None or not 1 <= count <= MOST:
            raise InputError(f"k is how many tokens to show at each end, 1 to {MOST}; got {k!r}.")
        if self._decodings is None:
            raise InputError("This model (or a hook) mixes logits after the unembedding: directions have no tokens.")
        if pos > self.position:
            raise InputError(f"Position {pos} is after the explained one, {self.position}, and moves nothing.")
        rises, falls = self._decodings.ends(pos * n + which, count)
        unit = f"{'probability' if self.of == 'fisher' else 'logit'} per unit of y"
        return DecodedDirection(pos, which, float(self.singular_values[pos, which]), rises, falls, unit)

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per position and direction: singular value, share, the three tokens that rise and fall most; up to ``position``."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas.") from error
        n = self.singular_values.shape[1]
        frame = pd.DataFrame([self._row(pos, i) for pos in range(self.position + 1) for i in range(n)])
        frame.attrs = {"of": self.of, "unit": self.unit, "model": self.provenance.model_name}
        return frame.set_index(["position", "direction"])

    def _row(self, pos: int, i: int) -> dict[str, Any]:
        rises, falls = ([], []) if self._decodings is None else self._texts(pos, i, 3)
        return {
            "position": pos,
            "direction": i,
            "str_token": self.str_tokens[pos],
            "singular_value": float(self.singular_values[pos, i]),
            "share": float(self.shares[pos, i]),
            "rises": rises,
            "falls": falls,
            "effective_rank": float(self.effective_rank[pos]),
            "is_bos": pos in self.bos_positions,
        }

    def _texts(self, pos: int, i: int, k: int) -> tuple[list[str], list[str]]:
        found = self.decode(pos, i, k)
        return [token for token, _ in found.rises], [token for token, _ in found.falls]

    def __repr__(self) -> str:
        what = "Jacobian" if self.of == "jacobian" else "pulled-back Fisher matrix"
        lines = [f"Spectrum of the {what} at {self.provenance.hook_point}, position {self.position}, in {self.unit}:"]
        ranked = self.singular_values[:, 0].argsort(descending=True, stable=True).tolist()
        for pos in [t for t in ranked if t not in self.bos_positions and t <= self.position][:5]:
            sizes = ", ".join(f"{value:.3g}" for value in self.singular_values[pos, :3].tolist())
            rank = f"effective rank {float(self.effective_rank[pos]):.1f}"
            lines.append(f"  {self.str_tokens[pos]!r} at {pos}: {sizes}; {rank}{self._in_tokens(pos)}")
        return "\n".join([*lines, *(f"  doubt: {warning}" for warning in self.warnings)])

    def _in_tokens(self, pos: int) -> str:
        if self._decodings is None:
            return ""
        rises, falls = self._texts(pos, 0, 2)
        return f"; {' '.join(map(repr, rises))} against {' '.join(map(repr, falls))}"


def spectrum(
    model: Any,
    prompt: Prompt,
    *,
    of: str = "jacobian",
    k: int = 8,
    position: int = -1,
    at: str = "hook_embed",
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    progress: bool | None = None,
) -> Spectrum:
    """In which directions each token moves the prediction, how strongly, and what that says in tokens.

    Singular value decompositions of ``J_t = ∂y/∂x_t``, or of ``F_u^{1/2} J_t``, at every position ``t``. Where the trace
    (``fisher``) says how far a token moves the distribution, this says in how many ways, and which.

    ``d_model`` backward rows. Where they take more than 256 MB at once, random combinations of them come first (``k + 32`` at
    least, up to half as many as rows where there is room) and the values are lower bounds from the space that these span, by
    the randomised range finder of Halko, Martinsson and Tropp (2011). The result's ``captured`` says how much of the energy is
    in it, and its warnings where that is less than 99 %: a slowly falling spectrum is then seen several per cent too low.

    Args:
        of: ``"jacobian"``, gains from ``x_t`` to ``y`` whatever they do to the prediction; or ``"fisher"``, those to the
            next-token distribution.
        k: how many singular values and vectors.
        model, prompt, position, at, prepend_bos, fwd_hooks, frozen, chunk_size, progress: see `attribute`.

    Returns:
        A `Spectrum`.

    Raises:
        InputError: as `attribute`; there is no such matrix, or ``k`` is more than its size.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> found = js.spectrum(model, prompt, of="fisher").decode(10, k=1)
        >>> [token for token, _ in found.rises + found.falls]
        [' liberal', ' conservative']
    """
    scope = SpectralScope(of)
    view = ModelView(model)
    tokens = to_tokens(view, prompt, prepend_bos)
    position = to_position(position, len(tokens))
    point, n = view.hook_point(at), _count(k, view)
    chunk_size, held = check_chunk_size(chunk_size), Frozen(check_frozen(frozen))
    warnings = [*scope.check(view.basis), *prompt_warnings(view, tokens)]
    with run(view, tokens, [position], [point], fwd_hooks, frozen=held) as forward:
        state = forward.state()
        puller = Puller(forward.xs, forward.y, [position], chunk_size, progress)
        linear = state.is_linear()
        directions, weights = _directions(scope, state)
        found = collected(directions, weights, Pull(puller), n, SEED)
        energy = _finished(found.energy, len(tokens), view, state)
        factored = factors(found, directions, n, movement=of == "fisher")
        decodings = decoded(factored.outputs.flatten(0, 1), state, view, of == "fisher") if linear else None
        numbers = _numbers(factored, decodings, len(tokens), view, state)
        return Spectrum(
            **numbers,
            energy=energy,
            of=of,
            tokens=tokens.cpu(),
            str_tokens=to_str_tokens(view, tokens.tolist()),
            position=position,
            unit=OF[of],
            basis=view.basis,
            provenance=provenance(view, state.x, at, puller.n_backward, None if found.basis is None else SEED),
            warnings=[*warnings, *puller.notes, *_doubts(numbers["captured"][: position + 1], linear)],
            bos_positions=bos_positions(view, tokens),
            _decodings=decodings,
        )


def _count(k: Any, view: ModelView) -> int:
    number, most = whole(k), int(view.cfg.d_model)
    if number is None or not 1 <= number <= most:
        raise InputError(f"k is how many singular values to compute, 1 to {most} (d_model) for {view.name}; got {k!r}.")
    return number


def _directions(
    scope: SpectralScope, state: State
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model"] | None]:
    """A complete orthonormal basis of ``y`` and the weight of each of its vectors: for Fisher eigenvectors and ``λ^{1/2}``."""
    rows = scope.cotangents(state)
    if scope.of == "jacobian":
        return rows, None
    sizes = rows.norm(dim=1)
    known = rows[sizes > 0] / sizes[sizes > 0].unsqueeze(1)
    # What moves nothing is part of the movement all the same.
    rest = torch.linalg.qr(known.T, mode="complete").Q[:, len(known) :].T
    weights = torch.cat([sizes[sizes > 0], rest.new_zeros(len(rest))])
    return torch.cat([known, rest]), weights


def _finished(
    values: Float[Tensor, "seen *rest"], pos: int, view: ModelView, state: State
) -> Float[Tensor, "pos *rest"]:
    """Off the device, in float32, 0 after the explained position; what is not finite is refused."""
    filled = values.new_zeros(pos, *values.shape[1:])
    filled[: len(values)] = values
    return finished(filled.movedim(0, -1), state.x.dtype, view.name).movedim(-1, 0)


def _numbers(
    factored: Factors, decodings: Decodings | None, pos: int, view: ModelView, state: State
) -> dict[str, Tensor]:
    """The result's tensors, with the sign of each direction chosen."""
    outputs = factored.outputs
    signs = _signs(outputs) if decodings is None else decodings.signs.view(outputs.shape[:2]).to(outputs)
    signed = {
        "singular_values": factored.values,
        "output_directions": outputs * signs.unsqueeze(-1),
        "input_directions": factored.inputs * signs.unsqueeze(-1).to(factored.inputs),
        "effective_rank": factored.effective_rank,
        "captured": factored.captured,
    }
    return {name: _finished(values, pos, view, state) for name, values in signed.items()}


def _signs(outputs: Float[Tensor, "seen k d_model"]) -> Float[Tensor, "seen k"]:
    """Where nothing can be decoded, the largest entry is positive."""
    largest = outputs.gather(-1, outputs.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return torch.where(largest < 0, -1.0, 1.0).to(outputs)


def _doubts(captured: Float[Tensor, "seen"], linear: bool) -> list[str]:
    doubts = []
    if (worst := float(captured.min())) < CAPTURED:
        doubts.append(
            f"Singular values are lower bounds from a sketch that holds {worst:.1%} of the energy where it holds least; the "
            "squares of the true ones are larger by the rest at most."
        )
    if not linear:
        doubts.append("The model (or a hook) mixes logits after the unembedding: directions have no tokens.")
    return doubts
