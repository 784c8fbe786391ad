"""`agreement`: how well two runs over the same prompts agree."""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from jscope_tl.corpus.dataset import CorpusRun
from jscope_tl.corpus.means import Means
from jscope_tl.corpus.pairing import Pair, pairs
from jscope_tl.corpus.summary import columns, need_mean
from jscope_tl.errors import InputError
from jscope_tl.faithfulness.results import Mean
from jscope_tl.results.checks import need
from jscope_tl.results.files import Saved
from jscope_tl.results.ranks import spearman
from jscope_tl.results.sink import adds_up

TOP = 3
AGREE = ("rank correlation", "same strongest token", f"{TOP} strongest in common", "overlap of shares")
DIFFER = ("mean distance", "effective number of tokens", "share off the scale")
KNOWN = 3
"""The number of measures of agreement whose chance level depends on the prompt; that of a correlation is 0."""
LOWEST = 10
"""How many of the prompts are listed on which the runs agree least."""
BLOCK = 1000
TOLD = ("scope", "model", "model_class", "weights", "unit", "device", "prompts")
"""Settings whose differences are not reported, because the names show them or because they change no number."""


@dataclass(frozen=True)
class AgreementRow:
    """One measure of agreement: its mean over prompts, and its expected mean if the scores of one run were shuffled within each prompt."""

    name: str
    mean: Mean
    chance: float


@dataclass(frozen=True)
class DifferenceRow:
    """One property of maps: its mean in each run, and the mean of the paired difference, first minus second."""

    name: str
    first: float
    second: float
    difference: Mean


@dataclass(frozen=True, eq=False, kw_only=True)
class RunAgreement(Saved):
    """The agreement of two runs over the same prompts.

    The measures of agreement do not depend on the scale of the scores. They are Spearman's correlation of the scores of a prompt;
    whether the strongest token is the same; how many of the three strongest tokens are in both; and the overlap of the shares of the
    summed scores, ``Σ_t min(a_t, b_t)``. The properties that are compared are the mean distance from the explained position, weighted by
    shares; the effective number of tokens, which is the exponential of the entropy of the shares; and the share off the scale, on BOS and
    on first tokens that are attention sinks, which all other numbers leave out. Intervals are 95 % intervals of Student's t over prompts.

    Attributes:
        names: the names of the two runs.
        rows: the measures of agreement.
        differences: the properties.
        n: the number of compared prompts.
        lowest: the prompts with the lowest rank correlations, with these.
        notes: prompts that were left out, and differences between the settings of the runs.
    """

    names: tuple[str, str]
    rows: tuple[AgreementRow, ...]
    differences: tuple[DifferenceRow, ...]
    n: int
    lowest: tuple[tuple[str, float], ...]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together, as in a damaged file."""
        need(len(self.rows) > 0 and len(self.differences) > 0, "there are measures and properties")
        for mean in (*(row.mean for row in self.rows), *(row.difference for row in self.differences)):
            need_mean(mean)
        need(all(abs(row.chance) <= 1 for row in self.rows), "chance is from -1 to 1")
        need(self.n > 0 and all(row.mean.n == self.n for row in self.rows), "all measures have the same prompts")
        need(all(row.difference.n == self.n for row in self.differences), "all differences have the same prompts")

    def to_pandas(self) -> pd.DataFrame:
        """One row for each measure and property; ``_low`` and ``_high`` are the limits of 95 % intervals."""
        agree = [
            {"name": row.name, "mean": row.mean.mean, "low": row.mean.low, "high": row.mean.high, "chance": row.chance}
            for row in self.rows
        ]
        differ = [
            {"name": row.name, "first": row.first, "second": row.second, "difference": row.difference.mean,
             "difference_low": row.difference.low, "difference_high": row.difference.high}
            for row in self.differences
        ]  # fmt: skip
        frame = pd.DataFrame([*agree, *differ]).set_index("name")
        frame.attrs = {"names": self.names, "n": self.n}
        return frame

    def tables(self) -> list[tuple[list[str], list[list[str]]]]:
        """The column names and the rows, as text, of both tables, which the terminal, notebooks and pages show."""
        agree = [[row.name, f"{row.mean.mean:.3f}", _interval(row.mean), f"{row.chance:.3f}"] for row in self.rows]
        differ = [
            [
                row.name,
                f"{row.first:.3f}",
                f"{row.second:.3f}",
                f"{row.difference.mean:+.3f}",
                _interval(row.difference),
            ]
            for row in self.differences
        ]
        return [
            (["agreement", "mean", "95 %", "chance"], agree),
            (["property", *self.names, "difference", "95 %"], differ),
        ]

    @property
    def meaning(self) -> list[str]:
        """Sentences that explain the tables."""
        return [
            "means over prompts; chance: the mean if the scores of one run were shuffled within each prompt; overlap of shares: the sum over "
            "tokens of the smaller of both shares of the summed scores",
            "mean distance: number of tokens before the explained position, weighted by shares; effective number of tokens: the exponential of "
            "the entropy of the shares; share off the scale: the share on BOS and on first tokens that are attention sinks, which all other "
            "numbers leave out",
        ]

    def headline(self) -> str:
        """One line with the names of the runs and the number of prompts."""
        return f"{self.names[0]} against {self.names[1]} on {self.n} prompts"

    def __repr__(self) -> str:
        lines = [f"RunAgreement: {self.headline()}"]
        for names, rows in self.tables():
            lines += columns(names, rows)
        lowest = ", ".join(f"{id} ({rho:.2f})" for id, rho in self.lowest[:5])
        return "\n".join([*lines, f"  lowest rank correlation: {lowest}", *(f"  {note}" for note in self.notes)])


def _interval(mean: Mean) -> str:
    return "" if np.isnan(mean.low) else f"{mean.low:.3f} to {mean.high:.3f}"


def agreement(a: CorpusRun, b: CorpusRun, *, names: Sequence[str] | None = None) -> RunAgreement:
    """Compare two runs over the same prompts, for example of two scopes, two models, or two rules for gradients.

    Prompts are paired by their ids. If the two runs have different tokens, they are compared on the shortest stretches of text that are
    whole tokens in both. The score of a stretch of several tokens is the root of the sum of their squared norms; for Fisher scores, which
    are squares, it is the sum.

    Args:
        a, b: the two runs, from `jscope_tl.corpus.open`.
        names: the names of the two runs. None: the scopes or models, if they differ.

    Raises:
        InputError: there is no prompt in both runs that can be compared.

    Example:
        >>> import tempfile
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), [prompt.text for prompt in js.pocket_prompts("agreement", 8)]
        >>> a, b = (js.corpus.run(model, prompts, tempfile.mkdtemp(), scope, progress=False) for scope in ("temperature", "entropy"))
        >>> js.corpus.agreement(a, b).names
        ('temperature', 'entropy')
    """
    for run in (a, b):
        if not isinstance(run, CorpusRun):
            raise InputError(
                f"agreement needs two runs, as js.corpus.open(folder) returns them; got a {type(run).__name__}."
            )
    means, left_out, seen = Means(len(AGREE) + KNOWN + 3 * len(DIFFER)), Counter[str](), Counter[str]()
    lowest: list[tuple[float, str]] = []
    block: list[np.ndarray] = []
    for pair in pairs(a, b, left_out):
        numbers = _numbers(pair)
        block.append(numbers)
        seen.update(n=1, tokens=int(not pair.same_tokens), target=int(not pair.same_target))
        (heapq.heappush if len(lowest) < LOWEST else heapq.heappushpop)(lowest, (-float(numbers[0]), pair.id))
        if len(block) == BLOCK:
            _add(means, block)
    _add(means, block)
    if not seen["n"]:
        raise InputError(
            f"No prompt of {str(a.folder)!r} can be compared with one of {str(b.folder)!r}: {_reasons(left_out)}."
        )
    return RunAgreement(
        names=_names(a, b, names), rows=_agree(means), differences=_differ(means), n=seen["n"],
        lowest=tuple((id, -minus) for minus, id in sorted(lowest, reverse=True)), notes=_notes(a, b, seen, left_out),
    )  # fmt: skip


def _add(means: Means, block: list[np.ndarray]) -> None:
    if block:
        means.add(np.zeros(len(block), dtype=np.int64), np.stack(block, axis=1))
        block.clear()


def _numbers(pair: Pair) -> Float[np.ndarray, "quantity"]:
    """The measures of agreement, their chance levels (without that of the correlation), the properties of both runs, and their differences."""
    n, k = len(pair.a), min(TOP, len(pair.a))
    tops = [np.argsort(-scores, kind="stable")[:k] for scores in (pair.a, pair.b)]
    shares = [scores / scores.sum() for scores in (pair.a, pair.b)]
    agree = [
        float(spearman(pair.a, pair.b)),
        float(tops[0][0] == tops[1][0]),
        len({*tops[0].tolist()} & {*tops[1].tolist()}) / k,
        float(np.minimum(*shares).sum()),
    ]
    first, second = ([*_properties(share), off] for share, off in zip(shares, (pair.a_off, pair.b_off), strict=True))
    unrelated = float(np.minimum.outer(*shares).sum()) / n  # the mean over all permutations of one of them
    return np.array(
        [*agree, 1 / n, k / n, unrelated, *first, *second, *(x - y for x, y in zip(first, second, strict=True))]
    )


def _properties(share: Float[np.ndarray, "n"]) -> tuple[float, float]:
    distance = np.arange(len(share))[::-1]
    some = share[share > 0]
    return float(share @ distance), float(np.exp(-(some * np.log(some)).sum()))


def _agree(means: Means) -> tuple[AgreementRow, ...]:
    n = len(AGREE)
    chance = (0.0, *(means.mean(0, n + i).mean for i in range(KNOWN)))
    return tuple(AgreementRow(name, means.mean(0, i), chance[i]) for i, name in enumerate(AGREE))


def _differ(means: Means) -> tuple[DifferenceRow, ...]:
    start, n = len(AGREE) + KNOWN, len(DIFFER)
    first, second, difference = (range(start + i * n, start + (i + 1) * n) for i in range(3))
    return tuple(
        DifferenceRow(name, means.mean(0, first[i]).mean, means.mean(0, second[i]).mean, means.mean(0, difference[i]))
        for i, name in enumerate(DIFFER)
    )


def _names(a: CorpusRun, b: CorpusRun, names: Sequence[str] | None) -> tuple[str, str]:
    if names is not None:
        if isinstance(names, str) or len(names) != 2:
            raise InputError(f"names are two names, one for each run; got {names!r}.")
        return str(names[0]), str(names[1])
    unlike = [key for key in ("scope", "model") if getattr(a, key) != getattr(b, key)]
    found = [" of ".join(getattr(run, key) for key in unlike) for run in (a, b)]
    return (found[0], found[1]) if unlike else (a.folder.name, b.folder.name)


def _notes(a: CorpusRun, b: CorpusRun, seen: Counter[str], left_out: Counter[str]) -> list[str]:
    notes = [f"left out: {_reasons(left_out)}"] if left_out else []
    if seen["tokens"]:
        notes.append(
            f"prompts with different tokens in the two runs, compared on stretches of text that are whole tokens in both: {seen['tokens']}"
        )
    if seen["target"]:
        notes.append(f"prompts for which the two runs explain different tokens: {seen['target']}")
    if unlike := _unlike(a.settings, b.settings, TOLD):
        notes.append(f"settings that differ: {'; '.join(unlike)}")
    if adds_up(a.unit) != adds_up(b.unit):
        notes.append(
            "the scores of one run are squares (Fisher): their roots are compared with the norms of the other run"
        )
    return notes


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any], skipped: Sequence[str]) -> list[str]:
    """The settings that differ, with their values."""
    found = []
    for key in [key for key in {**a, **b} if key not in skipped and a.get(key) != b.get(key)]:
        one, other = a.get(key), b.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += [f"{key}.{inner}" for inner in _unlike(one, other, ())]
        else:
            found.append(f"{key} {one!r} against {other!r}")
    return found


def _reasons(left_out: Counter[str]) -> str:
    return ", ".join(f"{n} with {reason}" for reason, n in left_out.most_common()) or "they share no ids"
