"""Parts: files of rows, which are written completely or not at all."""

import errno
import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from jscope_tl.corpus.parts_read import batches_of
from jscope_tl.corpus.schema import PARTS, ROW
from jscope_tl.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors for a full disk, an exceeded quota, and a file that is too large."""


@dataclass
class Parts:
    """A buffer of rows, which is written to a file when there are enough rows or the oldest has waited long enough.

    Attributes:
        folder: the folder of the run.
        label: the label in the names of these files, unique for each process that writes to the folder.
        most: the number of rows of a part.
        seconds: the longest time that a row waits.
    """

    folder: Path
    label: str
    most: int
    seconds: float
    number: int = 0
    _rows: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    _since: float = 0.0

    def add(self, n: int, row: Mapping[str, Any]) -> None:
        """Add the row of the ``n``-th line."""
        if not self._rows:
            self._since = time.monotonic()
        self._rows.append((n, row))
        if len(self._rows) >= self.most or time.monotonic() - self._since > self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write the rows in the buffer. If this is interrupted, the next call writes the same file."""
        if self._rows:
            rows = [row for _, row in sorted(self._rows, key=lambda pair: pair[0])]
            write(self.folder, part_name(self.label, self.number), to_bytes(rows))
            self._rows = []
            self.number += 1


def part_name(label: str, number: int) -> str:
    """The name of a file of rows."""
    return f"part-{label}-{number:06d}.parquet"


def next_number(folder: Path, label: str) -> int:
    """The number of the next part with this label."""
    taken = [int(path.stem.rpartition("-")[2]) for path in folder.glob(f"part-{label}-*.parquet")]
    return max(taken, default=-1) + 1


def to_bytes(rows: list[Mapping[str, Any]]) -> bytes:
    """Rows as a Parquet file, each page with a checksum."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, ROW), file, compression="zstd", write_page_checksum=True)
    return file.getvalue()


def write(folder: Path, name: str, content: bytes) -> None:
    """Write a file completely or not at all: its content is on the disk before the file gets its name.

    Raises:
        InputError: the disk is full.
    """
    unfinished = (
        folder / f".{name}.{uuid4().hex}.unfinished"
    )  # unique, because an abandoned process may still be writing
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, folder / name)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(
            f"There is no space left for {str(folder / name)!r} ({error.strerror}). All files there are complete; free some space and run the "
            "same command again, which continues after them."
        ) from error
    finally:
        _remove(unfinished)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the file system is not available; the first error reports it
        return


def remove_unfinished(folder: Path, label: str) -> None:
    """Remove unfinished files with this label, which a killed process has left."""
    for path in folder.glob(f".part-{label}-*.unfinished"):
        _remove(path)


def ids_done(folder: Path) -> set[str]:
    """The ids of prompts that have a row. Every file is read completely, so that damage is found before rows are added.

    Raises:
        InputError: a file is damaged.
    """
    found: set[str] = set()
    for path in sorted(folder.glob(PARTS)):
        for batch in batches_of(path, ROW.names, 512):
            found.update(batch.column("id").to_pylist())
    return found
