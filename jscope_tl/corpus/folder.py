"""The folder of a run, and the locks for the processes that write to it."""

import errno
import json
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from jscope_tl.corpus.parts import remove_unfinished, write
from jscope_tl.corpus.schema import SETTINGS
from jscope_tl.corpus.settings import need_same
from jscope_tl.corpus.shards import Shard
from jscope_tl.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

UNKNOWN = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of file systems without locks."""


@contextmanager
def held(folder: Path, shard: Shard, settings: Mapping[str, Any]) -> Iterator[None]:
    """A context manager in which only this process writes this shard. The operating system releases the lock when the process ends.

    Raises:
        InputError: another process writes the shard, or shards that overlap with it; or the folder has a run with other settings.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {str(folder)!r} cannot be created: {error.strerror}.") from error
    with ExitStack() as stack:
        with _locked(folder / ".lock", wait=True):
            for path in sorted(folder.glob(".lock-*-of-*")):
                if not path.name.endswith(f"-of-{shard.of:04d}"):
                    with _locked(path):
                        pass
            stack.enter_context(_locked(folder / f".lock-{shard.label}"))
            if not need_same(folder, settings):
                write(folder, SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False).encode())
        remove_unfinished(folder, shard.label)
        yield


@contextmanager
def _locked(path: Path, wait: bool = False) -> Iterator[None]:
    with path.open("a+", encoding="utf-8") as file:
        _lock(file, path, wait)
        if not wait:
            with suppress(OSError):  # the disk is full; writing the next part reports it
                file.truncate(0)
                os.write(file.fileno(), f"process {os.getpid()} of {socket.gethostname()}".encode())
        yield


def _lock(file: IO[str], path: Path, wait: bool) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks")
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        file.seek(0)
        which = path.name.removeprefix(".lock-").replace("-of-", "/")
        raise InputError(
            f"{str(path.parent)!r} is being written by {file.read() or 'another process'}, shard {which}. Only one process can write a shard, "
            "and all shards of a run must have the same number of shards: wait for that process, or give another folder or shard."
        ) from error
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        if not wait:
            warnings.warn(
                f"The file system of {str(path.parent)!r} has no locks: make sure that only one process writes each shard.",
                stacklevel=2,
            )
