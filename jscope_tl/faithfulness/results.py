"""The result of a measure: one row for each prompt and method, means with confidence intervals, and paired differences."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from jscope_tl.errors import InputError, nearest
from jscope_tl.faithfulness.measures import Column
from jscope_tl.faithfulness.protocol import Protocol
from jscope_tl.results.checks import need, need_rows
from jscope_tl.results.files import Saved

RESAMPLES = 2000


@dataclass(frozen=True)
class Mean:
    """The mean of a number over prompts, its standard error, and the 95 % interval of a bootstrap over prompts."""

    mean: float
    stderr: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, eq=False)
class Faithfulness(Saved):
    """The faithfulness of methods on a set of prompts, by one measure.

    Attributes:
        measure: the name of the measure.
        methods: the names of the methods.
        columns: the numbers of the measure; the first is the one to report.
        rows: a dictionary for every prompt and method.
        protocol: the conventions of the measure.
        model: the name of the model.
    """

    measure: str
    methods: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]
    protocol: Protocol
    model: str

    def __post_init__(self) -> None:
        """Refuse rows without one of the columns, as in a damaged file."""
        names = [column.name for column in self.columns]
        need(len(self.methods) > 0 and len(names) > 0, "there is one method or more, and one column or more")
        need(all(column.better in (-1, 0, 1) for column in self.columns), "better is 1, -1 or 0")
        curve = [f"at_{f:g}" for f in self.protocol.fractions] if self._points_count(names[0]) else []
        costs = ["prompt", "n_tokens", "passes", "seconds"]
        need_rows(self.rows, [*costs, *names, *curve], texts=("method", "task"), flags=("correct",))
        prompts = {method: [row["prompt"] for row in self.rows if row["method"] == method] for method in self.methods}
        alike = all(found == prompts[self.methods[0]] for found in prompts.values())
        need(alike and sum(map(len, prompts.values())) == len(self.rows), "every method has a row for every prompt")

    def values(self, column: str, correct_only: bool = False, task: str | None = None) -> Float[np.ndarray, "method n"]:
        """The values of a column, ``[method, n]``, with the prompts in the same order for all methods, so that they are paired.

        Raises:
            InputError: the column does not exist, or no prompt is left.
        """
        names = [name for name in self.rows[0] if name not in ("prompt", "method", "task")]
        if column not in names:
            raise InputError(f"There is no column {column!r}.{nearest(column, names)} There are {', '.join(names)}.")
        kept = [row for row in self.rows if (row["correct"] or not correct_only) and task in (None, row["task"])]
        table = [[row[column] for row in kept if row["method"] == method] for method in self.methods]
        if not table[0]:
            raise InputError(
                "No prompt is left: the model predicts none of them correctly, or no prompt has that task."
            )
        return np.array(table, dtype=float)

    def mean(self, method: str, column: str | None = None, correct_only: bool = False, task: str | None = None) -> Mean:
        """The mean of a column for one method; by default of the first column."""
        own = self.values(column or self.columns[0].name, correct_only, task)[self._index(method)]
        return mean_of(own, self._stderr(method, column, correct_only, task))

    def difference(
        self, a: str, b: str, column: str | None = None, correct_only: bool = False, task: str | None = None
    ) -> Mean:
        """The mean of method ``a`` minus that of ``b`` on the same prompts; the interval is that of the paired difference."""
        values = self.values(column or self.columns[0].name, correct_only, task)
        return mean_of(values[self._index(a)] - values[self._index(b)])

    def summary(self, correct_only: bool = False, task: str | None = None) -> pd.DataFrame:
        """Means over prompts by method: each column with its ``_stderr``, ``_low`` and ``_high`` (95 %), and passes and seconds."""
        table: dict[str, dict[str, float]] = {}
        for method in self.methods:
            row = table.setdefault(method, {})
            for column in self.columns:
                mean = self.mean(method, column.name, correct_only, task)
                row |= {column.name: mean.mean}
                row |= {f"{column.name}_{part}": getattr(mean, part) for part in ("stderr", "low", "high")}
            for cost in ("passes", "seconds"):
                row[cost] = self.mean(method, cost, correct_only, task).mean
        frame = pd.DataFrame(table).T
        frame.attrs = {"measure": self.measure, "n": mean.n, "model": self.model}
        return frame

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each prompt and method."""
        return pd.DataFrame(self.rows)

    def __repr__(self) -> str:
        quoted = self.columns[0]
        means = {method: self.mean(method) for method in self.methods}
        best = sorted(means, key=lambda method: -(quoted.better or 1) * means[method].mean)
        n = next(iter(means.values())).n
        lines = [f"Faithfulness: {self.measure} over {n} prompts of {self.model}; {quoted.name}: {quoted.description}"]
        for method in best:
            m = means[method]
            lines.append(f"  {method:<24} {m.mean:8.3f}   [{m.low:.3f}, {m.high:.3f}]")
        return "\n".join(lines)

    def _index(self, method: str) -> int:
        if method not in self.methods:
            raise InputError(f"Method {method!r} was not measured.{nearest(method, self.methods)}")
        return self.methods.index(method)

    def _points_count(self, column: str) -> bool:
        return self.protocol.stderr == "independent" and column == "aopc"

    def _stderr(self, method: str, column: str | None, correct_only: bool, task: str | None) -> float | None:
        """The authors' standard error of the area: that of the trapezoid rule over points that are treated as independent."""
        if not self._points_count(column or self.columns[0].name):
            return None
        x = np.array(self.protocol.fractions)
        weights = np.concatenate([[0], np.diff(x)]) / 2 + np.concatenate([np.diff(x), [0]]) / 2
        points = [self.values(f"at_{f:g}", correct_only, task)[self._index(method)] for f in self.protocol.fractions]
        return float(np.sqrt(sum((w * _standard_error(p)) ** 2 for w, p in zip(weights, points, strict=True))))


def _standard_error(values: Float[np.ndarray, "n"]) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def mean_of(values: Float[np.ndarray, "n"], stderr: float | None = None) -> Mean:
    """The mean with a percentile bootstrap over prompts that have a number. Equal numbers of prompts get the same resamples, so that
    methods are comparable."""
    values = values[~np.isnan(values)]
    if not len(values):
        nothing = float("nan")
        return Mean(nothing, nothing, nothing, nothing, 0)
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    error = _standard_error(values) if stderr is None else stderr
    return Mean(float(values.mean()), error, float(low), float(high), len(values))
