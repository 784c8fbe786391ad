"""`Spectrum`: the leading singular values and vectors of every position's Jacobian, and their decoding into tokens."""

from dataclasses import dataclass, field

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError, whole
from jscope_tl.model.prompts import to_position
from jscope_tl.results.base import Result
from jscope_tl.results.checks import need, need_finite, need_sizes
from jscope_tl.results.restoring import LATER
from jscope_tl.results.text import percent

MOST = 20
"""Number of tokens kept at each end (largest rises, largest falls) of a decoded direction."""
SHOWN = 5
"""Number of tokens at each end whose share of the change is measured."""
MOSTLY = 0.5
"""Share from which the tokens count as meaningful even if those of random directions have as large a share."""
BEYOND = 5.0
"""Number of standard deviations above the share of random directions from which a share is not chance."""


@dataclass(frozen=True)
class DecodedDirection:
    """The effect on the tokens, to first order, of a step of size one along an output direction.

    Attributes:
        position: the position of the input that moves the output along this direction.
        i: the number of the direction; 0 is the leading one.
        singular_value: the gain of the direction.
        rises: the tokens that rise most and their changes, largest first; a change is negative if fewer tokens rise.
        falls: the tokens that fall most and their changes, largest fall first.
        unit: the unit of the changes.
        share: the share of the squared change in the five tokens that rise most and the five that fall most; None in results of
            older versions.
        noise: whether this share is no larger than for random directions, and less than half: then these tokens are not evidence
            about the direction.
    """

    position: int
    i: int
    singular_value: float
    rises: list[tuple[str, float]]
    falls: list[tuple[str, float]]
    unit: str
    share: float | None = None
    noise: bool = False


@dataclass(frozen=True)
class Decodings:
    """For every direction the tokens at both ends of its decoded change: those that rise most and those that fall most.

    Attributes:
        signs: the signs that make the largest change of each direction positive.
        ids: the ids of the tokens that rise most, then of those that fall most.
        changes: the changes of these tokens, in the same order, for the direction with this sign.
        texts: the text of every token that occurs.
        shares: for each direction, the share of its squared change in the `SHOWN` first tokens of both ends.
        control: the mean and the standard deviation of these shares over random directions.
    """

    signs: Float[Tensor, "n"]
    ids: Int[Tensor, "n 2 most"]
    changes: Float[Tensor, "n 2 most"]
    texts: dict[int, str]
    shares: Float[Tensor, "n"] | None = field(default=None, metadata=LATER)
    control: tuple[float, float] | None = field(default=None, metadata=LATER)

    def noise(self, row: int) -> bool:
        """Whether the tokens at the ends have no larger a share than those of a random direction."""
        if self.shares is None or self.control is None:
            return False
        mean, deviation = self.control
        return float(self.shares[row]) < min(MOSTLY, mean + BEYOND * deviation)

    def __post_init__(self) -> None:
        """Refuse tokens without a text."""
        need(set(self.ids.flatten().tolist()) <= self.texts.keys(), "every token has a text")
        need_finite("changes", self.changes)

    def ends(self, row: int, k: int) -> list[list[tuple[str, float]]]:
        """The ``k`` first tokens of both ends, as text."""
        return [
            [(self.texts[token], change) for token, change in zip(ids[:k], changes[:k], strict=True)]
            for ids, changes in zip(self.ids[row].tolist(), self.changes[row].tolist(), strict=True)
        ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Spectrum(Result):
    """The leading singular values and vectors of ``M_t`` at every position ``t``: which directions move the prediction, and how far.

    ``M_t = J_t``, or ``F_u^{1/2} J_t`` for ``of="fisher"``, whose squared singular values are the eigenvalues of
    ``J_t^T F_u J_t``. The sign of a singular vector is arbitrary; it is chosen so that the largest decoded change is positive (if several
    changes agree within 1 %, that of the most probable token).
    All tensors are float32 on the CPU and 0 after the explained position. Directions whose singular value is only rounding error are 0.
    `top` and the scores of `Result` are those of the leading direction, the largest singular value.

    Attributes:
        singular_values: ``[pos, k]``, in decreasing order, in ``unit``.
        output_directions: ``[pos, k, d_model]``, unit vectors: the direction in which ``y`` moves if ``x_t`` moves along the input
            direction. For the Jacobian the left singular vectors; for Fisher ``J_t v / ‖J_t v‖``, which are not orthogonal.
        input_directions: ``[pos, k, d_in]``, the right singular vectors ``v``.
        energy: ``[pos]``, ``‖M_t‖_F² = Σ σ²`` over all singular values, not only the first ``k``; for Fisher this is the score of
            Fisher Scope.
        effective_rank: ``[pos]``, the participation ratio ``(Σ σ²)² / Σ σ⁴`` (Gao et al. 2017) over all singular values: 1 if a single
            direction has all the energy, n if n directions have equal shares. From a sketch (``captured < 1``) the denominator lacks
            the values outside it, and the number is an upper bound; the effective rank of Roy and Vetterli (2007), an entropy, would
            have no bound.
        captured: ``[pos]``, the share of the energy in the sketched subspace; 1 if all rows were kept. The true singular values
            satisfy ``σ² ≤ true σ² ≤ σ² + (1 - captured) energy``.
        of: ``"jacobian"`` or ``"fisher"``.
        tokens, str_tokens, position, scope, options, unit, basis, provenance, warnings, bos_positions, baseline: as in `Result`.
    """

    singular_values: Float[Tensor, "pos k"]
    output_directions: Float[Tensor, "pos k d_model"]
    input_directions: Float[Tensor, "pos k d_in"]
    energy: Float[Tensor, "pos"]
    effective_rank: Float[Tensor, "pos"]
    captured: Float[Tensor, "pos"]
    of: str
    decodings: Decodings | None = None

    def __post_init__(self) -> None:
        """Refuse inconsistent fields, which a damaged file may have."""
        super().__post_init__()
        for name in ("singular_values", "energy", "effective_rank", "captured"):
            need_sizes(name, getattr(self, name))
        n = (self.position + 1) * self.singular_values.shape[1]
        need(self.decodings is None or len(self.decodings.ids) == n, f"all {n} directions are decoded, or none")
        need(self.of in ("jacobian", "fisher"), "of is 'jacobian' or 'fisher'")

    def _rows(self) -> tuple[Float[Tensor, "row pos"], None]:
        return rearrange(self.singular_values[:, 0], "pos -> 1 pos"), None

    def _labels(self) -> list[tuple[str | None, int]]:
        return [(None, self.position)]

    def _index(self) -> list[str]:
        return []

    @property
    def shares(self) -> Float[Tensor, "pos k"]:
        """The share of each direction in the energy (for Fisher: in the trace): ``σ_i² / Σ σ²``."""
        energy = rearrange(self.energy, "pos -> pos 1")
        return torch.where(energy > 0, self.singular_values.square() / energy, 0.0)

    def decode(self, pos: int, i: int = 0, k: int = 5) -> DecodedDirection:
        """The ``k`` tokens that rise most and the ``k`` that fall most if ``y`` takes a step of size one along an output direction.

        The changes are to first order, through the unembedding, logit scale and soft-cap: those of the logits, ``D u`` with
        ``D = ∂z/∂y``, minus their mean over the vocabulary; for Fisher those of the probabilities, ``p ⊙ (D u - p·D u)``.

        In a vocabulary of 50,000 tokens a direction moves nearly every logit, and the tokens at its ends may be due to chance:
        ``share`` is their share of the squared change, and ``noise`` says whether it is no larger than for random directions. Text,
        tables and figures omit the tokens in this case.

        Args:
            pos: the position; negative numbers count from the end.
            i: the number of the direction; 0 is the leading one.
            k: the number of tokens at each end, at most 20.

        Raises:
            InputError: the position or direction does not exist, ``k`` is out of range, or the model mixes logits.
        """
        pos, n = to_position(pos, len(self.str_tokens)), self.singular_values.shape[1]
        which, count = whole(i), whole(k)
        if which is None or not 0 <= which < n:
            raise InputError(
                f"i is the number of a direction, 0 to {n - 1} in this result; got {i!r}. For more directions, raise k of js.spectrum."
            )
        if count is None or not 1 <= count <= MOST:
            raise InputError(f"k is the number of tokens to show at each end, 1 to {MOST}; got {k!r}.")
        if self.decodings is None:
            raise InputError(
                "This model (or a hook) mixes logits after the unembedding: directions cannot be decoded into tokens."
            )
        if pos > self.position:
            raise InputError(
                f"Position {pos} is after the explained position {self.position} and cannot affect it; choose an earlier one."
            )
        row, shares = pos * n + which, self.decodings.shares
        rises, falls = self.decodings.ends(row, count)
        return DecodedDirection(
            pos, which, float(self.singular_values[pos, which]), rises, falls,
            unit=f"{self._decoded_unit} per unit of y", share=None if shares is None else float(shares[row]),
            noise=self.decodings.noise(row),
        )  # fmt: skip

    @property
    def _decoded_unit(self) -> str:
        return "probability" if self.of == "fisher" else "logit"

    def to_dataframe(self) -> pd.DataFrame:
        """One row per position up to ``position`` and direction: singular value, share, the three tokens that rise and fall most.

        Tokens are omitted if their share is no larger than for random directions; ``decoded_share`` is their share of the change.
        """
        pos, k = self.position + 1, self.singular_values.shape[1]
        places = [(t, i) for t in range(pos) for i in range(k)]
        ends = [self.texts(t, i, 3) for t, i in places]
        columns = {
            "position": [t for t, _ in places],
            "direction": [i for _, i in places],
            "str_token": [self.str_tokens[t] for t, _ in places],
            "singular_value": self.singular_values[:pos].flatten().double().numpy(),
            "share": self.shares[:pos].flatten().double().numpy(),
            "rises": [rises for rises, _ in ends],
            "falls": [falls for _, falls in ends],
            "decoded_share": [None if self.decodings is None else self.decode(t, i, 1).share for t, i in places],
            "effective_rank": [float(self.effective_rank[t]) for t, _ in places],
            "is_bos": [t in self.bos_positions for t, _ in places],
        }
        frame = pd.DataFrame(columns).set_index(["position", "direction"])
        frame.attrs = {"of": self.of, "unit": self.unit, "model": self.provenance.model_name}
        return frame

    def texts(self, pos: int, i: int, k: int) -> tuple[list[str], list[str]]:
        """The ``k`` tokens that rise and the ``k`` that fall most; empty if their share is no larger than chance."""
        if self.decodings is None:
            return [], []
        found = self.decode(pos, i, k)
        if found.noise:
            return [], []
        return [token for token, _ in found.rises], [token for token, _ in found.falls]

    def decoding_line(self) -> str:
        """The share of the change in the tokens that are shown, and the number of directions without tokens; or an empty string."""
        found = self.decodings
        if found is None or found.shares is None or found.control is None:
            return ""
        n = (self.position + 1) * self.singular_values.shape[1]
        shares, noise = found.shares[:n], sum(found.noise(row) for row in range(n))
        low, high = (percent(float(end)) for end in (shares.min(), shares.max()))
        held = f"the {SHOWN} tokens at each end of a direction hold {low} to {high} of its squared change in {self._decoded_unit}"
        line = f"decoded: {held}, of random directions {percent(found.control[0])}"
        none = f"; no tokens are shown for {noise} of {n} directions, where they say no more than chance"
        return line + none if noise else line

    def headline(self) -> str:
        """Matrix, hook point, explained position and unit in one line."""
        what = "Jacobian" if self.of == "jacobian" else "pulled-back Fisher matrix"
        place = f"{self.provenance.hook_point}, position {self.position}"
        return f"Spectrum of the {what} at {place}, in {self.unit}{self.prepended}"

    def __repr__(self) -> str:
        lines = [f"{self.headline()}:"]
        for token in self.top(5):
            pos = token.position
            sizes = ", ".join(f"{value:.3g}" for value in self.singular_values[pos, :3].tolist())
            rises, falls = self.texts(pos, 0, 2)
            says = f"; {' '.join(map(repr, rises))} against {' '.join(map(repr, falls))}" if rises else ""
            rank = f"effective rank {float(self.effective_rank[pos]):.1f}"
            lines.append(f"  {token.str_token!r} at {pos}: {sizes}; {rank}{says}")
        lines += [f"  {self.decoding_line()}"] if self.decoding_line() else []
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])
