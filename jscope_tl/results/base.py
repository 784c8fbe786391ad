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
from jscope_tl.results.restoring import LATER
from jscope_tl.results.sink import adds_up, sink_size
from jscope_tl.results.text import percent, score_text


@dataclass(frozen=True)
class ScoredToken:
    """The score of one token.

    Attributes:
        position: the position of the token.
        token: its id.
        str_token: its text.
        score: its score.
        stderr: the standard error of the score; None if it is exact.
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
    """The origin of a result, and its cost.

    Attributes:
        model_name, model_class, dtype, device: properties of the model.
        hook_point: the hook point that the scores refer to.
        n_forward: the number of forward passes that were run; each prompt of a batch counts as one.
        n_backward: the number of backward passes (rows of ``C J`` and products with ``J``), counted in the same way.
        seed: the seed of the random numbers, if there are any.
        versions: the versions of the packages.
        prepended: the BOS token that was prepended to a prompt given as text; None if nothing was prepended or ids were given.
        model_revision: the commit of the model's weights on the hub, if transformers stores it in the configuration (5.24 does not).
        transformer_lens_version, processing, hook_convention: the same fields as in TransformerLens' own analyses. ``processing``: whether
            a bridge is in compatibility mode, and the weight processing. ``hook_convention``: the hook point with ``{layer}`` for the
            layer.
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
    prepended: str | None = field(default=None, metadata=LATER)
    model_revision: str | None = field(default=None, metadata=LATER)
    transformer_lens_version: str | None = field(default=None, metadata=LATER)
    processing: dict[str, Any] | None = field(default=None, metadata=LATER)
    hook_convention: str | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, eq=False, kw_only=True)
class Result(Saved, ABC):
    """The scores of a scope for one prompt, with all information that is needed to interpret them.

    Attributes:
        tokens: ``[pos]``, the prompt as ids.
        str_tokens: the text of each token.
        position: the explained position (not negative); if there are several, the last one. Later tokens score 0.
        scope: the name of the scope, and the settings that differ from the paper's.
        options: the options of the scope; ``"resolved"`` has the choices that were made automatically.
        unit: the unit of the scores.
        basis: the weight processing of the model.
        provenance: model, versions, hook point and cost.
        warnings: warnings about these scores, as sentences.
        bos_positions: positions of BOS tokens, which `top` and colour scales omit.
        baseline: the text of the token that the target is contrasted with, if one was passed; else None.
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
    baseline: str | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        """Refuse inconsistent fields, which a damaged file may have."""
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
        """The hook point (in a layer map, else None) and the explained position of each row."""

    @abstractmethod
    def _index(self) -> list[str]:
        """The columns that identify a row: ``"hook_point"`` or ``"explained"``."""

    @abstractmethod
    def headline(self) -> str:
        """A description of the explained prediction, in one line."""

    @property
    def prepended(self) -> str:
        """The token that was prepended to the prompt, worded as the end of a `headline`; empty if there is none."""
        return "" if self.provenance.prepended is None else f"; {self.provenance.prepended!r} was prepended"

    @property
    def off_scale(self) -> tuple[int, ...]:
        """Positions that colour scales ignore: BOS, and a first token that is an attention sink (`sinks`)."""
        return (*self.bos_positions, *([0] if any(size is not None for size in self.sinks()) else []))

    def sinks(self) -> list[float | None]:
        """For each row, the ratio of the first token's size to the median of the others if the first token is an attention sink.

        Without a BOS the first token often acts as an attention sink: it scores high for every scope, even for a random
        direction. Its size is the score, or the root of squared scores (Fisher). The ratio is None if the size is less than three
        times the median or less than a third of the highest score, if there is a BOS, and if there are too few tokens. In a pattern
        all ratios are None if more than half of them are.
        """
        (scores, _), labels = self._rows(), self._labels()
        if 0 in self.bos_positions:
            return [None] * len(labels)
        squared = adds_up(self.unit)
        sizes = [sink_size(row[: explained + 1], squared) for row, (_, explained) in zip(scores, labels, strict=True)]
        few = "explained" in self._index() and 2 * sizes.count(None) > len(sizes)
        return [None] * len(labels) if few else sizes

    def sink_doubts(self) -> list[str]:
        """A warning about the first token if it is an attention sink; else an empty list."""
        (scores, _), sizes = self._rows(), self.sinks()
        rows = [i for i, size in enumerate(sizes) if size is not None]
        if not rows:
            return []
        largest = max(rows, key=lambda i: sizes[i] or 0.0)
        if adds_up(self.unit):
            said = f"has {percent(float(scores[largest, 0] / scores[largest].sum()))} of the total score"
        else:
            said = f"scores {sizes[largest]:.1f} times the median of the others"
        where = (
            f" in the row where it is strongest, and is conspicuous in {len(rows)} of {len(sizes)}"
            if len(sizes) > 1
            else ""
        )
        return [
            f"The first token, {self.str_tokens[0]!r}, {said}{where}. Without a BOS it acts as an attention sink, which scores high "
            "for every scope: compare it with its score under 'random_direction'. Colour scales ignore it."
        ]

    def _asked(self, targets: set[str]) -> str:
        """The explained token and its baseline, worded for a headline; empty if the scope explains no single token."""
        if "target" not in self.options:
            return ""
        target = f", target {next(iter(targets))!r}" if len(targets) == 1 else ", each with its own target"
        return target if self.baseline is None else f"{target} against {self.baseline!r}"

    def top(self, k: int = 5, include_bos: bool = False) -> list[ScoredToken]:
        """The ``k`` highest scores, highest first.

        Args:
            k: the number of scores.
            include_bos: whether to include BOS, which is often an attention sink.

        Raises:
            InputError: ``k`` is not 1 or more.
        """
        if (count := whole(k)) is None or count < 1:
            raise InputError(f"k is the number of positions to return, 1 or more; got {k!r}.")
        (scores, _), labels, pos = self._rows(), self._labels(), len(self.str_tokens)
        order = rearrange(scores, "row pos -> (row pos)").argsort(descending=True, stable=True).tolist()
        places = (divmod(i, pos) for i in order)
        seen = [(row, t) for row, t in places if t <= labels[row][1] and (include_bos or t not in self.bos_positions)]
        return [self.scored(t, row) for row, t in seen[:count]]

    def by_row(self, k: int = 3) -> list[list[ScoredToken]]:
        """The ``k`` highest scores of each row of a layer map or a pattern, highest first, without BOS.

        Args:
            k: the number of scores of each row.
        """
        (scores, _), labels = self._rows(), self._labels()
        rows = []
        for row, (_, explained) in enumerate(labels):
            order = scores[row].argsort(descending=True, stable=True).tolist()
            kept = [t for t in order if t <= explained and t not in self.bos_positions]
            rows.append([self.scored(t, row) for t in kept[:k]])
        return rows

    def scored(self, position: int, row: int = 0) -> ScoredToken:
        """The score of one token, in one row of a map or a pattern.

        Args:
            position: the position of the token.
            row: the number of the row (of a hook point or of an explained position), counted from 0.
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

        The index is ``position``; for a layer map ``hook_point`` and ``position``; for a pattern ``explained`` and ``position``.
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

    def _strongest(self, k: int) -> list[str]:
        """Lines of text for the ``k`` highest scores."""
        lines = []
        for rank, token in enumerate(self.top(k), start=1):
            place = f"{token.str_token!r} at {token.position}" + (f", {token.hook_point}" if token.hook_point else "")
            lines.append(f"  {rank}. {place:<24} {score_text(token.score, token.stderr)}")
        return lines
