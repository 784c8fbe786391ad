"""Readers for files of prompts: text, JSON lines, Parquet and CSV."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jscope_tl.errors import InputError

AT_ONCE = 256
"""How many rows of a Parquet file are in memory at once."""
ONE_A_LINE = 'Give one JSON object per line, such as {"prompt": "..."}.'


@dataclass(frozen=True)
class Unreadable:
    """A line that cannot be read, with the reason."""

    error: str


def named_file(given: str | Path) -> Path:
    """The path of a file of prompts.

    Raises:
        InputError: the file does not exist, or has an unknown format.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        held = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"The file of prompts {str(given)!r} {held}; give a file, or a list of prompts.")
    if path.suffix.lower() not in READERS:
        raise InputError(
            f"Prompts are read from {', '.join(READERS)} files; {str(given)!r} is none of them. Rename it if it has one of these formats."
        )
    return path


def texts(path: Path) -> Iterator[tuple[int, Any]]:
    """One prompt per line. Empty lines are skipped, but counted in the numbers of lines."""
    for n, line in _lines(path):
        if line.strip():
            yield n, line


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """One JSON object, string or list of ids per line."""
    lines = (pair for pair in _lines(path) if pair[1].strip())
    first = next(lines, None)
    if first is not None and first[1].strip() == "[":
        raise InputError(f"{str(path)!r} is a JSON array over several lines. {ONE_A_LINE}")
    for n, line in chain([] if first is None else [first], lines):
        yield n, _parsed(line)


def _parsed(line: str) -> Any:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Unreadable(f"The line is not JSON: {error}.")
    return found if isinstance(found, dict | str | list) else Unreadable(f"The line is {found!r}. {ONE_A_LINE}")


def tables(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a Parquet file."""
    with _readable(path):
        file = pq.ParquetFile(path)
        if not len(file.schema_arrow):
            return
        n = 0
        for batch in file.iter_batches(AT_ONCE):
            for row in batch.to_pylist():
                yield n, row
                n += 1


def separated(path: Path) -> Iterator[tuple[int, Any]]:
    """The records of a CSV file after its header; an empty cell has no value."""
    with _readable(path), path.open(encoding="utf-8-sig", newline="") as file:
        records = csv.reader(file)
        names = next(records, [])
        if len({*names}) < len(names):
            raise InputError(f"Two columns of {str(path)!r} have the same name: {names}. Rename one.")
        for n, cells in enumerate(record for record in records if record):
            if len(cells) != len(names):
                yield n, Unreadable(f"The record has {len(cells)} cells, the header {len(names)}.")
            else:
                yield n, {name: cell or None for name, cell in zip(names, cells, strict=True)}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with _readable(path), path.open(encoding="utf-8-sig", newline="\n") as file:
        for n, line in enumerate(file):
            yield n, line.rstrip("\r\n")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, csv.Error, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"The prompts {str(path)!r} cannot be read ({reason}). Text, JSON and CSV must be UTF-8; repair the file, or convert it."
        ) from error


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".txt": texts, ".jsonl": json_lines, ".parquet": tables, ".csv": separated,
}  # fmt: skip
"""The readers by the suffix of the file's name."""
