"""Numbers of `causes`, and the table that is made of them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

HIT, INNER, SWAP, LEFT_OUT = (
    "known_cause.top_1", "known_cause.top_1_without_last", "swap.spearman", "leave_one_out.spearman",
)  # fmt: skip
DRAWS = 2000


@dataclass(frozen=True)
class Measured:
    """What was measured on one model.

    Attributes:
        model: its name.
        rows: for each prompt its family, and for each method its numbers by measure and column.
    """

    model: str
    rows: list[dict[str, Any]]

    def values(self, method: str, number: str, family: str | None = None) -> np.ndarray:
        """One number of a method, prompt by prompt; NaN where it is not defined."""
        rows = [row for row in self.rows if family in (None, row["family"])]
        return np.array([row["methods"].get(method, {}).get(number, np.nan) for row in rows], dtype=float)

    @property
    def methods(self) -> list[str]:
        """In the order of the table."""
        return list(self.rows[0]["methods"])

    @property
    def families(self) -> list[str]:
        """In the order of the prompts."""
        return list(dict.fromkeys(row["family"] for row in self.rows))

    def save(self, path: Path) -> None:
        """Write all numbers as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Measured":
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % of the means of resampled prompts; the same resamples for every method."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.quantile(np.nanmean(values[drawn], 1), (0.025, 0.975))
    return float(low), float(high)


def table(found: list[Measured]) -> str:
    """Hits with their interval, hits without the last token, swap and leave-one-out correlation, for each model."""
    head = ["method", *(f"{m.model} ({len(m.rows)}): {what}" for m in found for what in ("hits", "swap", "LOO"))]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method in found[0].methods:
        cells = [cell for m in found for cell in _cells(m, method)]
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)


def by_family(found: Measured, methods: list[str]) -> str:
    """Hits of some methods, family by family."""
    lines = ["| family | " + " | ".join(methods) + " |", "|" + "---|" * (len(methods) + 1)]
    for family in found.families:
        hits = [f"{100 * np.nanmean(found.values(method, HIT, family)):.0f}" for method in methods]
        lines.append(f"| {family} ({len(found.values(methods[0], HIT, family))}) | " + " | ".join(hits) + " |")
    return "\n".join(lines)


def _cells(found: Measured, method: str) -> list[str]:
    hits = found.values(method, HIT)
    low, high = interval(hits)
    inner = found.values(method, INNER)
    without = "" if np.isnan(inner).all() else f"; {100 * np.nanmean(inner):.0f}"
    others = [found.values(method, number) for number in (SWAP, LEFT_OUT)]
    return [
        f"{100 * hits.mean():.0f} [{100 * low:.0f}, {100 * high:.0f}]{without}",
        *("-" if np.isnan(values).all() else f"{np.nanmean(values):.2f}" for values in others),
    ]
