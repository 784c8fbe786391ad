"""`ContextEffects`: how much each token of an answer depends on each part of its prompt."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError, count, whole
from jscope_tl.model.basis import Basis
from jscope_tl.model.text import Text
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.base import PredictedToken, Provenance
from jscope_tl.results.checks import need
from jscope_tl.results.cost import Cost
from jscope_tl.results.files import Saved
from jscope_tl.results.ranks import spearman
from jscope_tl.results.sources import Source
from jscope_tl.results.text import percent, shortened

KINDS = ("removed", "zeroed", "predicted")


@dataclass(frozen=True)
class DependentToken:
    """A token of the answer and a part of the prompt that it depends on.

    Attributes:
        out: the number of the token in the answer.
        str_token: the text of the token.
        part: the number of the part.
        source: the part.
        kl: the KL divergence of the prediction of this token when the part is removed from the text, in nats.
        probability, without: the probability of the token with the part, and without it.
        instead: the most probable token without the part.
    """

    out: int
    str_token: str
    part: int
    source: Source
    kl: float
    probability: float
    without: float
    instead: PredictedToken


@dataclass(frozen=True, eq=False)
class ContextEffects(Saved):
    """How much the prediction of each token of an answer changes when a part of the prompt is left out.

    Attributes:
        tokens, str_tokens: the tokens of prompt and answer.
        text: the place of every token in the text.
        parts: the parts of the prompt, which are left out one at a time.
        removed: ``[part, out]``, measured ``KL(p ‖ p without the part)`` in nats, with the tokens of the part removed from the text.
        zeroed: ``[part, out]``, the same with the part's vectors at ``hook_embed`` set to 0 and all positions unchanged.
        predicted: ``[part, out]``, the prediction of ``zeroed`` by Fisher information, ``½ δ^T J^T F_u J δ``, in which ``δ`` has all
            vectors of the part; None if the model cannot be differentiated twice, or if memory is short.
        probabilities: ``[out]``, the probabilities of the tokens of the answer.
        without: ``[part, out]``, the same with the part removed.
        instead: the most probable token without the part, for each part and token of the answer.
        continued: the origin of the answer, in words.
        basis, provenance: the basis of the residual stream, and the model, versions and cost.
        costs: the cost of ``"removed"``, ``"zeroed"`` and ``"predicted"``.
        warnings: sentences about the limits of these numbers.
    """

    tokens: Int[Tensor, "pos"]
    str_tokens: list[str]
    text: Text
    parts: tuple[Source, ...]
    removed: Float[Tensor, "part out"]
    zeroed: Float[Tensor, "part out"]
    predicted: Float[Tensor, "part out"] | None
    probabilities: Float[Tensor, "out"]
    without: Float[Tensor, "part out"]
    instead: tuple[tuple[PredictedToken, ...], ...]
    continued: str
    basis: Basis
    provenance: Provenance
    costs: dict[str, Cost]
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together, as in a damaged file."""
        n, shape = len(self.str_tokens), (len(self.parts), len(self.str_tokens) - self.text.n_prompt)
        need(len(self.tokens) == n == len(self.text.offsets) and min(shape) > 0, "there is a prompt and an answer")
        need(len(self.text.roles) == len(self.text.messages) == n, "every token has its place")
        need(all(0 <= t < self.text.n_prompt for part in self.parts for t in part.positions), "parts are of the prompt")
        for values in (self.removed, self.zeroed, self.without, *([] if self.predicted is None else [self.predicted])):
            need(
                values.shape == shape and bool((values.isfinite() & (values >= 0)).all()),
                f"effects are {list(shape)}, not negative",
            )
        need(
            self.probabilities.shape == shape[1:] and bool((self.probabilities <= 1).all()),
            "probabilities are at most 1",
        )
        need([len(row) for row in self.instead] == [shape[1]] * shape[0], f"alternatives are {list(shape)}")
        need({*KINDS} >= self.costs.keys(), f"there are costs of {', '.join(KINDS)} only")

    @property
    def answer(self) -> list[str]:
        """The tokens of the answer."""
        return self.str_tokens[self.text.n_prompt :]

    def top(self, k: int = 5, part: int | None = None) -> list[DependentToken]:
        """The ``k`` tokens of the answer that depend most on a part of the prompt, as measured by removing it.

        Args:
            k: how many tokens.
            part: the number of the part; None: all parts.

        Raises:
            InputError: ``k`` is not 1 or more, or the part does not exist.
        """
        k, parts = count("k", k, 1), range(len(self.parts)) if part is None else [self._part(part)]
        places = sorted(
            ((i, j) for i in parts for j in range(len(self.answer))), key=lambda place: -float(self.removed[place])
        )
        return [self._found(i, j) for i, j in places[:k]]

    def _part(self, part: Any) -> int:
        number, n = whole(part), len(self.parts)
        if number is None or not -n <= number < n:
            raise InputError(f"There is no part {part!r}; this result has {n}, counted from 0.")
        return number % n

    def _found(self, i: int, j: int) -> DependentToken:
        p, q = float(self.probabilities[j]), float(self.without[i, j])
        return DependentToken(j, self.answer[j], i, self.parts[i], float(self.removed[i, j]), p, q, self.instead[i][j])

    def cues(self, out: int, part: int) -> Attribution:
        """The scores of all tokens before a token of the answer: why the model predicts it, and not the token that it predicts without the part.

        This is the second step of PECoRe (Sarti et al., ICLR 2024), which calls the tokens with high scores cues: the ``contrastive``
        scope of the token against `instead` (``log_prob`` if the two are the same).

        Args:
            out: the number of the token in the answer.
            part: the number of the part.
        """
        cue: Cues | None = getattr(self, "_cues", None)
        number, n = whole(out), len(self.answer)
        if number is None or not -n <= number < n:
            raise InputError(f"There is no token {out!r}; the answer has {n}, counted from 0.")
        if cue is None:
            raise InputError("This result comes from a file, which has no model. Call js.patching.context again.")
        return cue(self, number % n, self._part(part))

    def correlation(self) -> float:
        """Spearman's correlation of the predicted and the measured effects of setting a part's vectors to 0; NaN without predictions."""
        if self.predicted is None:
            return float("nan")
        return float(spearman(self.predicted.flatten().numpy(), self.zeroed.flatten().numpy()))

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each part and token: all effects, probabilities, and the most probable token without the part."""
        lines = [
            {
                "part": i, "out": j, "source": part.text, "role": part.role, "str_token": token,
                **{kind: float("nan") if (values := getattr(self, kind)) is None else float(values[i, j]) for kind in KINDS},
                "probability": float(self.probabilities[j]), "without": float(self.without[i, j]),
                "instead": self.instead[i][j].str_token,
            }
            for i, part in enumerate(self.parts) for j, token in enumerate(self.answer)
        ]  # fmt: skip
        return pd.DataFrame(lines).set_index(["part", "out"])

    def __repr__(self) -> str:
        head = f"ContextEffects: {len(self.parts)} parts of the prompt, {len(self.answer)} tokens of the answer ({self.continued}), KL in nats"
        lines = [head]
        for i, part in enumerate(self.parts):
            best = "; ".join(
                f"{t.str_token!r} {t.kl:.3g} ({percent(t.probability)}, without {percent(t.without)}: {t.instead.str_token!r})"
                for t in self.top(3, i)
            )
            lines.append(f"  without {shortened(part.text)!r}: mean {float(self.removed[i].mean()):.3g}; {best}")
        if self.predicted is not None:
            lines.append(f"  predicted against measured (vectors set to 0): rank correlation {self.correlation():.2f}")
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])


Cues = Callable[[ContextEffects, int, int], Attribution]
"""A function from effects, a token and a part to the scores of `ContextEffects.cues`."""


def with_cues(effects: ContextEffects, cues: Cues) -> ContextEffects:
    """The effects with a function for `ContextEffects.cues`. It is no field, because files cannot contain it."""
    object.__setattr__(effects, "_cues", cues)
    return effects
