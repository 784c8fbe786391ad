"""`open_run`: the rows of a run as a data set, which reads its files only when rows are used."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from jscope_tl.corpus.filters import Filter, to_filter
from jscope_tl.corpus.parts_read import batches_of, ids_of, taken
from jscope_tl.corpus.row import Row, rows_of
from jscope_tl.corpus.schema import PARTS, ROW, SETTINGS
from jscope_tl.errors import InputError, nearest, whole
from jscope_tl.results.files import Shown

AT_ONCE = 512
"""The default number of rows in a batch."""


@dataclass(frozen=True, eq=False)
class CorpusRun(Shown):
    """The rows of a run, one for each prompt. They stay in the files and are read only when they are used.

    ``len(run)`` is the number of rows, ``for row in run`` iterates over them as `Row`, and `where` selects some of them.

    Attributes:
        folder: the folder of the run.
        settings: everything that determines the numbers, from ``run.json``.
        files: the Parquet files, for example for DuckDB or polars.
        ids: the ids of all rows in their order, independent of `where`.
        starts: the number of the first row of each file, and the number of all rows as the last entry.
        filters: the conditions given to `where`.
    """

    folder: Path
    settings: dict[str, Any]
    files: tuple[str, ...]
    ids: pa.Array
    starts: tuple[int, ...]
    filters: tuple[Filter, ...] = ()

    def __len__(self) -> int:
        return self._n

    @cached_property
    def _n(self) -> int:
        return len(self.ids) if not self.filters else sum(batch.num_rows for batch in self.batches(["id"]))

    @property
    def unit(self) -> str:
        """The unit of the scores."""
        return str(self.settings.get("unit", ""))

    @property
    def scope(self) -> str:
        """The name of the scope, with the settings that differ from the defaults."""
        return str(self.settings.get("label") or self.settings.get("scope", ""))

    @property
    def model(self) -> str:
        """The name of the model."""
        return str(self.settings.get("model", ""))

    @cached_property
    def n_errors(self) -> int:
        """The number of rows that have an error instead of scores."""
        return sum(len(batch) - batch.column("error").null_count for batch in self.batches(["error"]))

    def lengths(self) -> Int[np.ndarray, "row"]:
        """The number of tokens of each prompt; 0 for rows with an error."""
        found = [
            pc.fill_null(pc.list_value_length(batch.column("tokens")), 0).to_numpy(zero_copy_only=False)
            for batch in self.batches(["tokens"])
        ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *found]).astype(np.int64)

    def where(
        self,
        *,
        errors: bool | None = None,
        contains: str | None = None,
        target: str | int | None = None,
        ids: Any = None,
    ) -> "CorpusRun":
        """The rows that satisfy all conditions, as a new data set. Files are read only when rows are used.

        Args:
            errors: True: rows with an error; False: rows with scores.
            contains: a part of the prompt's text.
            target: the text or the id of the explained token.
            ids: ids of prompts.

        Raises:
            InputError: a condition has the wrong type.
        """
        asked = to_filter(errors, contains, target, ids)
        return replace(self, filters=(*self.filters, asked)) if asked.columns else self

    def batches(self, columns: Sequence[str] | None = None, size: int = AT_ONCE) -> Iterator[pa.RecordBatch]:
        """The rows as Arrow batches.

        Args:
            columns: the names of the columns; None: all.
            size: the largest number of rows in a batch.

        Raises:
            InputError: a column does not exist, or a file is damaged.
        """
        names = self._columns(columns)
        if (n := whole(size)) is None or n < 1:
            raise InputError(f"size is how many rows a batch has, 1 or more; got {size!r}.")
        needed = [name for name in ROW.names if name in {*names}.union(*(one.columns for one in self.filters))]
        for path in self.files:
            for batch in batches_of(path, needed, n):
                kept = self.kept(batch)
                if kept.num_rows:
                    yield kept.select(names)

    def kept(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of a batch that satisfy the conditions of `where`."""
        for one in self.filters:
            batch = batch.filter(one.mask(batch))
        return batch

    def __iter__(self) -> Iterator[Row]:
        for batch in self.batches():
            yield from rows_of(batch)

    def row(self, id: str | int) -> Row:
        """The row of one prompt.

        Args:
            id: the id of the prompt.

        Raises:
            InputError: the prompt is not in the run, or `where` left it out.
        """
        place = pc.index(self.ids, pa.scalar(str(id), pa.string())).as_py()
        if place < 0:
            near = nearest(str(id), self.ids.slice(0, 10_000).to_pylist())
            raise InputError(f"There is no prompt {str(id)!r} among the {len(self.ids)} of {str(self.folder)!r}.{near}")
        found = self.at([place])
        if not found.num_rows:
            raise InputError(f"The prompt {str(id)!r} is in the run, but where() left it out.")
        return next(rows_of(found))

    def at(self, places: Sequence[int]) -> pa.RecordBatch:
        """The rows with these numbers, in the order of the files, without those that `where` left out."""
        tables = []
        for path, start, stop in zip(self.files, self.starts, self.starts[1:], strict=False):
            own = [place - start for place in places if start <= place < stop]
            if own:
                tables.append(taken(path, own))
        found = pa.concat_tables(tables or [ROW.empty_table()]).combine_chunks()
        batches = found.to_batches() or [pa.RecordBatch.from_pylist([], ROW)]
        return self.kept(batches[0])

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in memory, as an Arrow table; ``columns`` as in `batches`."""
        names = self._columns(columns)
        return pa.Table.from_batches(self.batches(names), pa.schema([ROW.field(name) for name in names]))

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All rows in memory, as a data frame of pandas with ``id`` as a column; ``columns`` as in `batches`."""
        frame = self.to_arrow(columns).to_pandas()
        frame.attrs = {"scope": self.scope, "unit": self.unit, "model": self.model}
        return frame

    def to_polars(self, columns: Sequence[str] | None = None) -> Any:
        """All rows in memory, as a data frame of polars; ``columns`` as in `batches`.

        Raises:
            InputError: polars is not installed.
        """
        try:
            import polars
        except ImportError as error:
            raise InputError(
                "to_polars needs polars, which is not installed: pip install polars. to_pandas() needs nothing."
            ) from error
        return polars.from_arrow(self.to_arrow(columns))

    def _columns(self, columns: Sequence[str] | None) -> list[str]:
        names = ROW.names if columns is None else [columns] if isinstance(columns, str) else list(columns)
        for name in names:
            if name not in ROW.names:
                raise InputError(
                    f"There is no column {name!r}.{nearest(name, ROW.names)} Known: {', '.join(ROW.names)}."
                )
        return names

    def headline(self) -> str:
        """One line with the number of prompts, the scope, the model and the unit."""
        some = f" of {len(self.ids)}, {'; '.join(one.said for one in self.filters)}" if self.filters else ""
        errors = f", {self.n_errors} with an error" if self.n_errors else ""
        return f"{len(self)} prompts{some}{errors}; {self.scope} scope of {self.model}, scores in {self.unit}"

    def __repr__(self) -> str:
        return f"CorpusRun {str(self.folder)!r}: {self.headline()}"


def open_run(folder: str | Path) -> CorpusRun:
    """Open a run as a data set of its rows. If the run is still being written, it has the rows that are complete so far.

    Args:
        folder: the folder that `jscope_tl.corpus.run` or ``jscope corpus`` wrote.

    Raises:
        InputError: the folder does not exist or has no run, a file is damaged, or two rows have the same id.

    Example:
        >>> import tempfile
        >>> import jscope_tl as js
        >>> model, folder = js.load_pocket_model(), tempfile.mkdtemp()
        >>> prompts = [prompt.text for prompt in js.pocket_prompts("agreement", 5)]
        >>> _ = js.corpus.run(model, prompts, folder, progress=False)
        >>> run = js.corpus.open(folder)
        >>> len(run), run.row("0").id
        (5, '0')
    """
    where = Path(folder)
    if not where.is_dir():
        raise InputError(f"There is no folder {str(folder)!r}; give the one that js.corpus.run wrote.")
    settings, files = _settings(where), tuple(str(path) for path in sorted(where.glob(PARTS)))
    ids = [ids_of(path) for path in files]
    found = pa.chunked_array([chunk for of_file in ids for chunk in of_file.chunks], pa.string()).combine_chunks()
    found = pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found
    starts = tuple(int(n) for n in np.cumsum([0, *map(len, ids)]))
    _need_unique(found, files, starts)
    return CorpusRun(where, settings, files, found, starts)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{str(folder)!r} has no {SETTINGS}, so it is not a run; give the folder that js.corpus.run wrote."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({error}). Without this file, the settings of the run are unknown."
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{str(path)!r} must have the settings of a run, but has {str(found)[:50]!r}.")
    return found


def _need_unique(ids: pa.Array, files: Sequence[str], starts: Sequence[int]) -> None:
    """Refuse a run in which a prompt has several rows."""
    if len(ids) == len(ids.unique()):
        return
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    one = twice.field("values")[0]
    places = np.flatnonzero(pc.equal(ids, one).to_numpy(zero_copy_only=False))
    where = [files[int(np.searchsorted(starts, place, side="right")) - 1] for place in places]
    held = repr(where[0]) if where[0] == where[1] else f"{where[0]!r} and {where[1]!r}"
    raise InputError(
        f"{len(twice)} ids are in more than one row, the first of them, {one.as_py()!r}, in {held}. A summary would count these prompts "
        "twice: move one of the files away."
    )
