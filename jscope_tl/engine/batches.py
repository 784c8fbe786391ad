"""Batches of runs, as large as memory allows."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from jscope_tl.engine.memory import is_out_of_memory

Found = TypeVar("Found")


def in_batches(run: Callable[[slice], Found], n: int, at_once: int) -> Iterator[Found]:
    """``run`` for ``n`` rows in order, in batches of ``at_once``; if memory runs out, this and later batches are half as large."""
    done = 0
    while done < n:
        size = min(at_once, n - done)
        try:
            found = run(slice(done, done + size))
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            at_once = size // 2
        else:
            yield found
            done += size
            continue
        if torch.cuda.is_available():  # outside the handler, which keeps allocated memory alive
            torch.cuda.empty_cache()
