"""Parts: files of rows that are there as a whole or not at all."""

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
"""A disk, a quota or a limit on files that is reached."""


@dataclass
class Parts:
    """Rows on their way to files, written when there are enough of them or they have waited long enough.

    Attributes:
        folder: of the run.
        label: what the names of these files begin with, their own among all who write there.
        most: rows of a part.
        seconds: that a row waits at most.
    """

    folder: Path
    label: str
    most: int
    seconds: float
    number: int = 0
    _rows: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    _since: float = 0.0

    def add(self, n: int, row: Mapping[str, Any]) -> None:
        """The row of the ``n``-th line."""
        if not self._rows:
            self._since = time.monotonic()
        self._rows.append((n, row))
        if len(self._rows) >= self.most or time.monotonic() - self._since > self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write what there is; when that was interrupted, the next time writes the same file."""
        if self._rows:
            rows = [row for _, row in sorted(self._rows, key=lambda pair: pair[0])]
            write(self.folder, part_name(self.label, self.number), to_bytes(rows))
            self._rows = []
            self.number += 1


def part_name(label: str, number: int) -> str:
    """The name of a file of rows."""
    return f"part-{label}-{number:06d}.parquet"


def next_number(folder: Path, label: str) -> int:
    """The number of the next part of that label."""
    taken = [int(path.stem.rpartition("-")[2]) for path in folder.glob(f"part-{label}-*.parquet")]
    return max(taken, default=-1) + 1


def to_bytes(rows: list[Mapping[str, Any]]) -> bytes:
    """Rows as a Parquet file, each page with a checksum."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, ROW), file, compression="zstd", write_page_checksum=True)
    return file.getvalue()


def write(folder: Path, name: str, content: bytes) -> None:
    """Write all of a file or nothing, and have it on the disk before it gets its name.

    Raises:
        InputError: the disk is full.
    """
    unfinished = folder / f".{name}.{uuid4().hex}.unfinished"  # its own: a process that was given up may still be at it
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
            f"There is no room left for {str(folder / name)!r} ({error.strerror}). All files there are complete; make room and run the same "
            "command again, which goes on after them."
        ) from error
    finally:
        _remove(unfinished)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the file system is gone; the first error says so
        return


def remove_unfinished(folder: Path, label: str) -> None:
    """Files of that label that a process which was killed has begun."""
    for path in folder.glob(f".part-{label}-*.unfinished"):
        _remove(path)


def ids_done(folder: Path) -> set[str]:
    """The prompts that have a row; every file is read as a whole, so that damage is found before more is added.

    Raises:
        InputError: a file is damaged.
    """
    found: set[str] = set()
    for path in sorted(folder.glob(PARTS)):
        for batch in batches_of(path, ROW.names, 512):
            found.update(batch.column("id").to_pylist())
    return found
