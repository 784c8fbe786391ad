"""`ContextEffects`: which tokens of an answer depend on which part of its prompt."""

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
        out: number of the token in the answer.
        str_token: its text.
        part: number of the part.
        source: the part.
        kl: of the prediction of this token, when the part is taken out of the text, in nats.
        probability, without: of the token, with and without the part.
        instead: what the model finds most probable without it.
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
    """For every token of an answer how far its prediction moves when a part of the prompt is left out.

    Attributes:
        tokens, str_tokens: prompt and answer.
        text: where every token stands.
        parts: what is left out, one at a time.
        removed: ``[part, out]``, ``KL(p ‖ p without the part)`` in nats, its tokens taken out of the text, measured.
        zeroed: ``[part, out]``, the same with its vectors at ``hook_embed`` set to 0 and every token where it was, measured.
        predicted: ``[part, out]``, what Fisher information says of the latter, ``½ δ^T J^T F_u J δ`` for ``δ`` the vectors of the part
            together; None where the model cannot be differentiated twice, or memory is short.
        probabilities: ``[out]``, of the tokens of the answer.
        without: ``[part, out]``, these with the part taken out.
        instead: for each part and token what the model finds most probable without the part.
        continued: where the answer comes from, in words.
        basis, provenance: of the model.
        costs: of ``"removed"``, ``"zeroed"`` and ``"predicted"``.
        warnings: doubts about these numbers, in sentences.
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
        """Refuse parts that do not belong together, as a damaged file may hold."""
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
        need({*KINDS} >= self.costs.keys(), f"costs are those of {', '.join(KINDS)}")

    @property
    def answer(self) -> list[str]:
        """The tokens of the answer."""
        return self.str_tokens[self.text.n_prompt :]

    def top(self, k: int = 5, part: int | None = None) -> list[DependentToken]:
        """The ``k`` tokens of the answer that depend most on a part of the prompt, measured by taking it out.

        Args:
            k: how many.
            part: of one part; None: of all.

        Raises:
            InputError: ``k`` is not 1 or more, or there is no such part.
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
        """Why this token and not what the model would say without the part: the scores of all tokens before it.

        The second step of PECoRe (Sarti et al., ICLR 2024): ``contrastive`` scope of the token against `instead` (``log_prob`` where
        the two are the same).

        Args:
            out: number of the token in the answer.
            part: number of the part.

        Raises:
            InputError: there is no such token or part, or this result comes from a file, which has no model.
        """
        cue: Cues | None = getattr(self, "_cues", None)
        number, n = whole(out), len(self.answer)
        if number is None or not -n <= number < n:
            raise InputError(f"There is no token {out!r}; the answer has {n}, counted from 0.")
        if cue is None:
            raise InputError("This result comes from a file, which has no model. Call js.patching.context again.")
        return cue(self, number % n, self._part(part))

    def correlation(self) -> float:
        """Spearman's correlation of predicted and measured effects of setting a part's vectors to 0; NaN without predictions."""
        if self.predicted is None:
            return float("nan")
        return float(spearman(self.predicted.flatten().numpy(), self.zeroed.flatten().numpy()))

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each part and token: all effects, probabilities, and what the model says instead."""
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
"""From effects, a token and a part to the scores of why this token."""


def with_cues(effects: ContextEffects, cues: Cues) -> ContextEffects:
    """The effects, whose cues can be asked for from now on; beside the fields, as a file cannot hold it."""
    object.__setattr__(effects, "_cues", cues)
    return effects
