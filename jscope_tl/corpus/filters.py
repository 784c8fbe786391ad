"""Conditions that select rows of a run."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jscope_tl.errors import InputError, whole
from jscope_tl.model.pieces import text_of


@dataclass(frozen=True)
class Filter:
    """Conditions on a row, all of which must hold; None: no condition."""

    errors: bool | None
    contains: str | None
    target: str | int | None
    ids: tuple[str, ...] | None

    @property
    def columns(self) -> set[str]:
        """The columns that the conditions need."""
        target = "target_str" if isinstance(self.target, str) else "target"
        asked = {"error": self.errors, "str_tokens": self.contains, target: self.target, "id": self.ids}
        return {name for name, value in asked.items() if value is not None}

    def mask(self, batch: pa.RecordBatch) -> pa.Array:
        """Whether each row satisfies the conditions."""
        masks = []
        if self.errors is not None:
            failed = pc.is_valid(batch.column("error"))
            masks.append(failed if self.errors else pc.invert(failed))
        if self.contains is not None:
            texts = batch.column("str_tokens").to_pylist()
            masks.append(pa.array([self.contains in text_of(tokens or []) for tokens in texts], pa.bool_()))
        if self.target is not None:
            column = batch.column("target_str" if isinstance(self.target, str) else "target")
            masks.append(pc.fill_null(pc.equal(column, self.target), False))
        if self.ids is not None:
            masks.append(pc.is_in(batch.column("id"), value_set=pa.array(self.ids, pa.string())))
        kept = pa.array([True] * batch.num_rows, pa.bool_())
        for mask in masks:
            kept = pc.and_(kept, mask)
        return kept

    @property
    def said(self) -> str:
        """The conditions, in words."""
        of_errors = {None: [], True: ["with errors"], False: ["without errors"]}[self.errors]
        parts = [
            *of_errors,
            *([f"containing {self.contains!r}"] if self.contains is not None else []),
            *([f"target {self.target!r}"] if self.target is not None else []),
            *([f"of {len(self.ids)} ids"] if self.ids is not None else []),
        ]
        return ", ".join(parts)


def to_filter(errors: Any, contains: Any, target: Any, ids: Any) -> Filter:
    """The checked conditions.

    Raises:
        InputError: a condition has the wrong type.
    """
    if errors not in (None, True, False):
        raise InputError(f"errors is True (rows with an error), False (those without) or None (all); got {errors!r}.")
    if contains is not None and not isinstance(contains, str):
        raise InputError(f"contains is a part of the prompt's text; got {contains!r}.")
    if target is not None and not isinstance(target, str):
        number = whole(target)
        if number is None or not 0 <= number < 2**31:
            raise InputError(f"target is the text or the id of a token; got {target!r}.")
        target = number
    if ids is not None:
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise InputError(f"ids is a list of ids of prompts; got {ids!r}.")
        ids = tuple(map(str, ids))
    return Filter(errors, contains, target, ids)
