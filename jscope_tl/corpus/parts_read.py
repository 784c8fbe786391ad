"""Reading the files of a run in pieces; errors name the damaged file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jscope_tl.corpus.schema import ROW
from jscope_tl.errors import InputError


def opened(path: str | Path) -> pq.ParquetFile:
    """A file of rows, checked for the columns of a run.

    Raises:
        InputError: the file cannot be read, or has other columns.
    """
    with _damage(path):
        part = pq.ParquetFile(path, page_checksum_verification=True)
    types = {field.name: field.type for field in part.schema_arrow}
    wrong = [f"{field.name} ({field.type})" for field in ROW if types.get(field.name) != field.type]
    if wrong:
        part.close()
        raise InputError(
            f"{str(path)!r} is not a part of a run that this version can read: it lacks {', '.join(wrong)}. Open it with the version of "
            "jscope_tl that wrote it, or run the prompts again."
        )
    return part


def batches_of(path: str | Path, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
    """The rows of a part, in batches."""
    part = opened(path)
    try:
        with _damage(path):
            for batch in part.iter_batches(size, columns=[*columns]):
                yield batch.select([*columns])
    finally:
        part.close()


def ids_of(path: str | Path) -> pa.ChunkedArray:
    """The ids of the rows of a part, in their order."""
    part = opened(path)
    try:
        with _damage(path):
            return part.read(columns=["id"]).column("id")
    finally:
        part.close()


def taken(path: str | Path, places: Sequence[int]) -> pa.Table:
    """Some rows of a part; only the row groups with these rows are read."""
    part = opened(path)
    try:
        with _damage(path):
            start, found = 0, []
            for group in range(part.num_row_groups):
                n = part.metadata.row_group(group).num_rows
                own = [place - start for place in places if start <= place < start + n]
                if own:
                    found.append(part.read_row_group(group, columns=ROW.names).take(own))
                start += n
            return pa.concat_tables(found)
    finally:
        part.close()


@contextmanager
def _damage(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{str(path)!r} is damaged, or is not a Parquet file ({reason}). Delete it and run the same command again, which explains its "
            "prompts again."
        ) from error
