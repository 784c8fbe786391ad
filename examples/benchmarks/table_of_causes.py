"""Numbers of `causes`, and the table that is made of them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jscope_tl.faithfulness.results import mean_of

HIT, INNER, SWAP, LEFT_OUT = (
    "known_cause.top_1", "known_cause.top_1_without_last", "swap.spearman", "leave_one_out.spearman",
)  # fmt: skip


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


def page(found: list[Measured]) -> str:
    """All tables."""
    parts = [f"{controls(found)}", *(f"### {m.model}\n\n{by_family(m)}\n\n{scopes(m)}".rstrip() for m in found)]
    return "\n\n".join(parts)


def controls(found: list[Measured]) -> str:
    """`js.explain` and what it must be better than: hits with their interval, swap and leave-one-out correlation, for each model."""
    head = ["method", *(f"{m.model} ({len(m.rows)}): {what}" for m in found for what in ("hits", "swap", "LOO"))]
    methods = dict.fromkeys(
        method for m in found for method in m.methods if method.count("·") < 2 or _is_control(method)
    )
    lines = [[method, *(cell for m in found for cell in _cells(m, method))] for method in methods]
    return _table(head, lines)


def by_family(found: Measured) -> str:
    """Hits of `js.explain`, family by family."""
    methods = ["explain, known alternative", "explain", "log_prob · attnlrp · pattern", "semantic · plain · norm", "random direction · plain · norm"]  # fmt: skip
    methods = [method for method in methods if method in found.methods]
    rows = []
    for family in found.families:
        hits = [_percent(found.values(method, HIT, family)) for method in methods]
        rows.append([f"{family} ({len(found.values(methods[0], HIT, family))})", *hits])
    return _table(["family", *methods], rows)


def scopes(found: Measured) -> str:
    """Hits of every scope under every rule; empty where scopes were left out."""
    named = [method.split(" · ") for method in found.methods if method.count("·") == 2]
    names, rules, kinds = (list(dict.fromkeys(parts[i] for parts in named)) for i in range(3))
    head = ["scope", *(f"{rule}: {', '.join(kinds)}" for rule in rules)]
    rows = []
    for name in names:
        cells = [[_percent(found.values(f"{name} · {rule} · {kind}", HIT)) for kind in kinds] for rule in rules]
        rows.append([name, *(", ".join(cell) for cell in cells)])
    return _table(head, rows) if named else ""


def _is_control(method: str) -> bool:
    return method.startswith("random") and (" plain · norm" in method or " attnlrp · map" in method)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def _percent(hits: np.ndarray) -> str:
    return "-" if np.isnan(hits).all() else f"{round(100 * float(np.nanmean(hits)), 1):g}"


def _cells(found: Measured, method: str) -> list[str]:
    hits = found.values(method, HIT)
    if np.isnan(hits).all():
        return ["-"] * 3
    mean = mean_of(hits)
    inner = found.values(method, INNER)
    without = "" if np.isnan(inner).all() else f"; {_percent(inner)}"
    others = [found.values(method, number) for number in (SWAP, LEFT_OUT)]
    return [
        f"{_percent(hits)} [{100 * mean.low:.0f}, {100 * mean.high:.0f}]{without}",
        *("-" if np.isnan(values).all() else f"{np.nanmean(values):.2f}" for values in others),
    ]
