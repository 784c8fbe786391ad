"""`Summary`: the influence of tokens by some property of the tokens, as means over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from jscope_tl.errors import InputError, count
from jscope_tl.faithfulness.results import Mean
from jscope_tl.results.checks import LARGEST, need
from jscope_tl.results.files import Saved
from jscope_tl.results.sink import adds_up
from jscope_tl.results.text import percent

ORDERED = ("distance", "position")
"""Properties whose rows have a natural order; other summaries are rankings."""
EVEN = "even"
SHOWN = 12
"""The number of rows that `repr` shows."""


@dataclass(frozen=True)
class SummaryRow:
    """One category of tokens: means over the prompts that have such tokens.

    Attributes:
        name: the name of the category.
        n_tokens: the number of counted tokens of the category, in all prompts.
        share: the share of the prompt's summed scores that its tokens have together.
        expected: the share that they would have by chance: if all tokens of a prompt had the same score, or as `Summary.chance` says.
        ratio: the share divided by the expected one: by default the score of a token relative to the mean score of its prompt; 1 is chance.
        top: the share of these prompts in which a token of the category has the highest score.
        group: the explained target, if rows are grouped by targets.
    """

    name: str
    n_tokens: int
    share: Mean
    expected: float
    ratio: Mean
    top: float
    group: str = ""

    @property
    def n(self) -> int:
        """The number of prompts that have such tokens."""
        return self.ratio.n


@dataclass(frozen=True, eq=False, kw_only=True)
class Summary(Saved):
    """The influence of tokens in the prompts of a run, by some property of the tokens.

    Scores of two prompts are not comparable, and norms do not add up. Therefore each prompt's scores are divided by their sum, and these
    shares are averaged over prompts with equal weights. A share describes a map, and not how much of the prediction is explained. Only
    Fisher scores, which are squared, have a meaningful sum, the trace of the Fisher matrix. Intervals are 95 % intervals of Student's t
    over prompts.

    Attributes:
        by: the name of the property.
        rows: one row for each category.
        n: the number of counted prompts.
        n_errors: the number of rows left out because they have an error instead of scores.
        n_empty: the number of rows left out because no counted token has a score above 0.
        chance: the expected score that corresponds to a ``ratio`` of 1: ``"even"``, the mean score of the prompt; ``"distance"`` or
            ``"position"``, the average score of tokens at the same distance or position in this run.
        off_scale: whether tokens off the scale (BOS, and a first token that is an attention sink) are counted.
        scope, model, unit: the scope, the model and the unit of the run.
        notes: what was left out, and how categories were formed.
    """

    by: str
    rows: tuple[SummaryRow, ...]
    n: int
    n_errors: int
    n_empty: int
    chance: str
    off_scale: bool
    scope: str
    model: str
    unit: str
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together, as in a damaged file."""
        need(min(self.n, self.n_errors, self.n_empty) >= 0, "numbers of prompts are not negative")
        for row in self.rows:
            need_mean(row.share)
            need_mean(row.ratio)
        need(
            all(0 <= share <= 1 for row in self.rows for share in (row.share.mean, row.expected, row.top)),
            "shares are from 0 to 1",
        )
        need(all(0 < row.n <= self.n and row.n_tokens >= row.n for row in self.rows), "rows have some of these prompts")

    @property
    def groups(self) -> list[str]:
        """The targets by which rows are grouped, in their order."""
        return list(dict.fromkeys(row.group for row in self.rows))

    def to_pandas(self) -> pd.DataFrame:
        """One row for each category; ``_low`` and ``_high`` are the limits of 95 % intervals."""
        lines = [
            {
                **({"target": row.group} if self.groups != [""] else {}),
                "name": row.name, "n": row.n, "n_tokens": row.n_tokens, "ratio": row.ratio.mean, "ratio_low": row.ratio.low,
                "ratio_high": row.ratio.high, "share": row.share.mean, "share_low": row.share.low, "share_high": row.share.high,
                "expected": row.expected, "top": row.top,
            }
            for row in self.rows
        ]  # fmt: skip
        frame = pd.DataFrame(lines)
        frame.attrs = {"by": self.by, "scope": self.scope, "model": self.model, "unit": self.unit, "n": self.n}
        return frame

    def table(self, most: int | None = None) -> tuple[list[str], list[list[str]]]:
        """The column names and the rows, as text, which the terminal, notebooks and pages show.

        Args:
            most: the number of rows of each group in a ranking; None: all. Distances and positions are always all listed.
        """
        grouped = self.groups != [""]
        most = len(self.rows) if most is None or self.by in ORDERED else count("most", most, 1)
        shown = [row for group in self.groups for row in [r for r in self.rows if r.group == group][:most]]
        names = [
            *(["target"] if grouped else []),
            self.by,
            "prompts",
            "times chance",
            "95 %",
            "share",
            "by chance",
            "highest in",
        ]
        return names, [[*([repr(row.group)] if grouped else []), *_cells(row)] for row in shown]

    @property
    def meaning(self) -> list[str]:
        """Sentences that explain the columns; they are the same for all summaries of a run."""
        adds = (
            "scores are squares, which add up to a trace"
            if adds_up(self.unit)
            else "scores are norms, which do not add up: a share only describes a map"
        )
        return [
            "times chance: score of a token divided by the mean score in its prompt (or by the average score of tokens at its distance or "
            "position, if a note says so); share: share of the summed scores of the prompt; by chance: the same if all tokens scored as "
            "expected by chance; highest in: share of the prompts in which such a token has the highest score",
            f"means over the prompts that have such tokens, with equal weights; {adds}",
        ]

    @property
    def left_out(self) -> list[str]:
        """Sentences about what was counted and left out."""
        off = "counted" if self.off_scale else "left out"
        return [
            f"BOS and first tokens that are attention sinks are {off}",
            *(
                [f"chance: each token has the average score of tokens at its {self.chance} in this run"]
                if self.chance != EVEN
                else []
            ),
            *([f"rows left out because they have an error: {self.n_errors}"] if self.n_errors else []),
            *(
                [f"prompts left out because no counted token has a score above 0: {self.n_empty}"]
                if self.n_empty
                else []
            ),
            *self.notes,
        ]

    def headline(self) -> str:
        """One line with the property, the scope, the model and the number of prompts."""
        return f"influence by {self.by}: {self.scope} scope of {self.model}, {self.n} prompts"

    def __repr__(self) -> str:
        per_group = SHOWN if self.groups == [""] else 3
        names, rows = self.table(per_group)
        lines = [f"Summary: {self.headline()}", *columns(names, rows)]
        more = [f"({len(self.rows) - len(rows)} more rows; to_pandas() has all)"] if len(rows) < len(self.rows) else []
        return "\n".join([*lines, *(f"  {line}" for line in [*more, *self.left_out])])


def need_mean(mean: Mean) -> None:
    """Refuse a mean that is not in its interval, as in a damaged file; the interval may be unknown."""
    unknown = [number != number for number in (mean.low, mean.high)]
    known = not any(unknown) and -LARGEST < mean.low <= mean.mean <= mean.high < LARGEST
    need(abs(mean.mean) < LARGEST and (all(unknown) or known), "a mean is in its interval")


def _cells(row: SummaryRow) -> list[str]:
    interval = "" if np.isnan(row.ratio.low) else f"{row.ratio.low:.2f} to {row.ratio.high:.2f}"
    return [
        row.name,
        str(row.n),
        f"{row.ratio.mean:.2f}",
        interval,
        percent(row.share.mean),
        percent(row.expected),
        percent(row.top),
    ]


def columns(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text with aligned columns, the first to the left and the others to the right."""
    wide = [max(map(len, cells)) for cells in zip(names, *rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(n) if i == 0 else cell.rjust(n) for i, (cell, n) in enumerate(zip(line, wide, strict=True))
        )
        for line in (names, *rows)
    ]


def need_rows_left(n: int, n_errors: int, what: str) -> None:
    """Refuse a summary without prompts."""
    if not n:
        raise InputError(
            f"There is nothing to summarise in {what}: no row has scores above 0 ({n_errors} rows have an error instead of scores; "
            "run.where(errors=True) shows them)."
        )
