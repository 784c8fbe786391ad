"""Validity checks of results: fields are consistent, and numbers are in their range."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from jaxtyping import Float
from torch import Tensor

LARGEST = 1e300
"""Largest absolute value of a number in a table."""


def need(fits: bool, what: str) -> None:
    """Refuse inconsistent fields, which a damaged file may have; ``what`` says what is needed.

    Raises:
        ValueError: ``fits`` is False.
    """
    if not fits:
        raise ValueError(what)


def need_sizes(name: str, values: Float[Tensor, "*shape"] | None) -> None:
    """Check that scores, errors or gains are finite and not negative."""
    need(values is None or bool((values.isfinite() & (values >= 0)).all()), f"{name} are finite and not negative")


def need_finite(name: str, values: Float[Tensor, "*shape"]) -> None:
    """Check that there is no NaN or infinite value."""
    need(bool(values.isfinite().all()), f"{name} are finite")


def need_rows(
    rows: Sequence[Any], numbers: Iterable[str], texts: Sequence[str] = (), flags: Sequence[str] = ()
) -> None:
    """Check a table: one row or more, all with the same columns, which are the named ones and further columns of numbers or NaN."""
    columns = [*texts, *flags, *numbers]
    need(
        len(rows) > 0 and all(isinstance(row, Mapping) and row.keys() == rows[0].keys() for row in rows),
        "rows have the same columns",
    )
    need(rows[0].keys() >= {*columns}, f"rows have {', '.join(columns)}")
    for row in rows:
        for name, value in row.items():
            is_number = isinstance(value, Real) and not isinstance(value, bool) and not abs(float(value)) > LARGEST
            fits = isinstance(value, str) if name in texts else isinstance(value, bool) if name in flags else is_number
            need(
                fits,
                f"{name} in rows is {'text' if name in texts else 'true or false' if name in flags else 'a number'}",
            )
