"""`Result`: the base of all results of one prompt."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError, whole
from jscope_tl.model.basis import Basis
from jscope_tl.results.checks import need, need_sizes
from jscope_tl.results.files import Saved
from jscope_tl.results.text import score_text


@dataclass(frozen=True)
class ScoredToken:
    """The score of one token.

    Attributes:
        position: of the token.
        token: its id.
        str_token: its text.
        score: how strong.
        stderr: its standard error; None where it is exact.
        explained: the position whose prediction is explained.
        hook_point: the row of a layer map; None otherwise.
    """

    position: int
    token: int
    str_token: str
    score: float
    stderr: float | None
    explained: int
    hook_point: str | None = None


@dataclass(frozen=True)
class PredictedToken:
    """A candidate for the next token and its probability."""

    token: int
    str_token: str
    probability: float


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from, and what it cost.

    Attributes:
        model_name, model_class, dtype, device: of the model.
        hook_point: where scores refer to.
        n_forward: forward passes, counted where they happen; prompts that run side by side count one each.
        n_backward: backward passes (rows of ``C J`` and products with ``J``), counted alike.
        seed: of the random numbers, where there are any.
        versions: of the packages.
    """

    model_name: str
    model_class: str
    dtype: str
    device: str
    hook_point: str
    n_forward: int
    n_backward: int
    seed: int | None
    versions: dict[str, str]


@dataclass(frozen=True, eq=False, kw_only=True)
class Result(Saved, ABC):
    """What a scope says about one prompt, and what is known about these numbers.

    Attributes:
        tokens: ``[pos]``, the prompt as ids.
        str_tokens: the same as text.
        position: the explained position (not negative), of several the last one; nothing after it has a score.
        scope: name of the scope, and what is not the paper's about its settings.
        options: options of the scope, and under ``"resolved"`` what was done where they left it open.
        unit: of the scores.
        basis: weight processing of the model.
        provenance: model, versions, hook point, cost.
        warnings: doubts about these numbers, in sentences.
        bos_positions: positions of BOS tokens, which `top` and colour scales leave out.
    """

    tokens: Int[Tensor, "pos"]
    str_tokens: list[str]
    position: int
    scope: str
    options: dict[str, Any]
    unit: str
    basis: Basis
    provenance: Provenance
    warnings: list[str] = field(default_factory=list)
    bos_positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together, as a damaged file may hold."""
        n, (scores, stderr), explained = len(self.str_tokens), self._rows(), [at for _, at in self._labels()]
        need(self.tokens.shape == (n,), f"{list(self.tokens.shape)} tokens have as many texts, not {n}")
        need(scores.shape == (len(explained), n), f"scores {list(scores.shape)} are [{len(explained)}, {n}]")
        need(stderr is None or stderr.shape == scores.shape, "standard errors have the shape of the scores")
        need_sizes("scores", scores)
        need_sizes("standard errors", stderr)
        places = [self.position, *explained, *self.bos_positions]
        need(
            max(explained, default=-1) == self.position and all(0 <= t < n for t in places), f"positions are below {n}"
        )

    @abstractmethod
    def _rows(self) -> tuple[Float[Tensor, "row pos"], Float[Tensor, "row pos"] | None]:
        """Scores in rows, and their standard errors."""

    @abstractmethod
    def _labels(self) -> list[tuple[str | None, int]]:
        """Hook point (of a layer map) and explained position of each row."""

    @abstractmethod
    def _index(self) -> list[str]:
        """Which of ``"hook_point"`` and ``"explained"`` tells rows apart."""

    @abstractmethod
    def headline(self) -> str:
        """What was explained, in one line."""

    def top(self, k: int = 5, include_bos: bool = False) -> list[ScoredToken]:
        """The ``k`` highest scores, highest first.

        Args:
            k: how many.
            include_bos: whether BOS, often an attention sink, is among them.

        Raises:
            InputError: ``k`` is not 1 or more.
        """
        if (count := whole(k)) is None or count < 1:
            raise InputError(f"k is how many positions to return, 1 or more; got {k!r}.")
        (scores, _), labels, pos = self._rows(), self._labels(), len(self.str_tokens)
        order = rearrange(scores, "row pos -> (row pos)").argsort(descending=True, stable=True).tolist()
        places = (divmod(i, pos) for i in order)
        seen = [(row, t) for row, t in places if t <= labels[row][1] and (include_bos or t not in self.bos_positions)]
        return [self.scored(t, row) for row, t in seen[:count]]

    def scored(self, position: int, row: int = 0) -> ScoredToken:
        """The score of one token, in one row of a map or a pattern.

        Args:
            position: of the token.
            row: the hook point or the explained position, counted from 0.
        """
        (scores, stderr), (hook_point, explained) = self._rows(), self._labels()[row]
        return ScoredToken(
            position=position,
            token=int(self.tokens[position]),
            str_token=self.str_tokens[position],
            score=float(scores[row, position]),
            stderr=None if stderr is None else float(stderr[row, position]),
            explained=explained,
            hook_point=hook_point,
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each score: token, text, score, standard error, BOS or not, explained or not; the rest in ``attrs``.

        The index is ``position``, of a layer map ``hook_point`` and ``position``, of a pattern ``explained`` and ``position``.
        """
        (scores, stderr), labels, pos = self._rows(), self._labels(), len(self.str_tokens)
        hook_points, explained = (np.repeat([label[i] for label in labels], pos) for i in (0, 1))
        position = repeat(np.arange(pos), "pos -> (row pos)", row=len(labels))
        columns = {
            "hook_point": hook_points,
            "explained": explained,
            "position": position,
            "token": self.tokens.numpy()[position],
            "str_token": np.array(self.str_tokens, dtype=object)[position],
            "score": scores.flatten().double().numpy(),
            "stderr": np.nan if stderr is None else stderr.flatten().double().numpy(),
            "is_bos": np.isin(position, self.bos_positions),
            "is_explained": position == explained,
        }
        frame = pd.DataFrame(columns)
        frame.attrs = {"scope": self.scope, "unit": self.unit, "model": self.provenance.model_name}
        dropped = {"hook_point", "explained"} - {*self._index()}
        return frame.drop(columns=[*dropped]).set_index([*self._index(), "position"])

    def _repr_html_(self) -> str:
        from jscope_tl.views.html import (
            fragment,  # the one import against the direction of the data: notebooks ask here
        )

        return fragment(self)

    def _strongest(self, k: int) -> list[str]:
        """Lines of text for the ``k`` highest scores."""
        lines = []
        for rank, token in enumerate(self.top(k), start=1):
            place = f"{token.str_token!r} at {token.position}" + (f", {token.hook_point}" if token.hook_point else "")
            lines.append(f"  {rank}. {place:<24} {score_text(token.score, token.stderr)}")
        return lines
