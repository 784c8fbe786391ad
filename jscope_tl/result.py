"""What an attribution returns: scores with their unit, error, prediction, weight basis, provenance and doubts.

Files and views are rooms of their own, which read results; the methods here that open them import them when called.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError, whole
from jscope_tl.state import Basis

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScoredToken:
    """One position of a result: where, which token, how strong, how sure."""

    position: int
    token: int
    str_token: str
    score: float
    stderr: float | None


@dataclass(frozen=True)
class PredictedToken:
    """A candidate for the next token and its probability."""

    token: int
    str_token: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The next-token distribution at the explained position: most probable tokens first, and the target's place in it."""

    top: tuple[PredictedToken, ...]
    target: PredictedToken
    target_rank: int


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from.

    ``n_backward`` counts backward passes (rows pulled back). ``seed`` is that of the random probes, where there are any.
    """

    model_name: str
    model_class: str
    dtype: str
    device: str
    hook_point: str
    n_backward: int
    seed: int | None
    versions: dict[str, str]


@dataclass(frozen=True, eq=False)
class Attribution:
    """Scores of every position of a prompt for one prediction.

    A score is an unsigned norm in the unit that ``unit`` names. It is not a share of anything: scores of several
    positions do not add up, and scores of two units do not compare.

    Attributes:
        scores: ``[pos]``, float32 on the CPU; 0 after the explained position. BOS is scored like any other token.
        tokens: ``[pos]``, the prompt as ids.
        str_tokens: the same as text.
        position: the position whose next-token prediction is explained (not negative).
        scope: name of the scope.
        options: what the scope was asked, and under ``"resolved"`` what it did where it had a choice.
        unit: unit of the scores and of ``stderr``.
        stderr: ``[pos]``, standard error of estimated scores; None for exact ones.
        prediction: the distribution that is explained.
        basis: weight processing of the model.
        provenance: model, versions, hook point, cost.
        warnings: doubts about these numbers, in sentences.
        bos_positions: positions of BOS tokens, which `top` leaves out by default.
    """

    scores: Float[Tensor, "pos"]
    tokens: Int[Tensor, "pos"]
    str_tokens: list[str]
    position: int
    scope: str
    options: dict[str, Any]
    unit: str
    stderr: Float[Tensor, "pos"] | None
    prediction: Prediction
    basis: Basis
    provenance: Provenance
    warnings: list[str] = field(default_factory=list)
    bos_positions: tuple[int, ...] = ()

    def top(self, k: int = 5, include_bos: bool = False) -> list[ScoredToken]:
        """The ``k`` positions with the highest scores, highest first; BOS (often an attention sink) only if asked for."""
        count = whole(k)
        if count is None or count < 1:
            raise InputError(f"k is how many positions to return, 1 or more; got {k!r}.")
        order = self.scores[: self.position + 1].argsort(descending=True, stable=True).tolist()
        return [self.scored(i) for i in order if include_bos or i not in self.bos_positions][:count]

    def scored(self, position: int) -> ScoredToken:
        """The score of one position."""
        stderr = None if self.stderr is None else float(self.stderr[position])
        score = float(self.scores[position])
        return ScoredToken(position, int(self.tokens[position]), self.str_tokens[position], score, stderr)

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per position: token, text, score, standard error, BOS or not, explained or not; the rest in ``attrs``."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas.") from error
        rows = [vars(self.scored(i)) for i in range(len(self.str_tokens))]
        frame = pd.DataFrame(rows).set_index("position")
        frame["stderr"] = frame["stderr"].astype(float)
        frame["is_bos"] = [i in self.bos_positions for i in frame.index]
        frame["is_explained"] = frame.index == self.position
        frame.attrs = {"scope": self.scope, "unit": self.unit, "model": self.provenance.model_name}
        return frame

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file that `load` reads back: tensors as they are, everything else as JSON in its header."""
        from jscope_tl.storage import save

        return save(self, path)

    @staticmethod
    def load(path: str | Path) -> "Attribution":
        """Read what `save` wrote. Nothing in the file is executed.

        Raises:
            InputError: there is no such file, it is not one of ours, or a newer version wrote it.
        """
        from jscope_tl.storage import load

        return load(path)

    def __repr__(self) -> str:
        from jscope_tl.views.terminal import summary

        return summary(self)

    def _repr_html_(self) -> str:
        from jscope_tl.views.html import fragment

        return fragment(self)
