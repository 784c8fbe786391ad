"""Runs side by side, as many at once as memory allows."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from jscope_tl.engine.memory import is_out_of_memory

Found = TypeVar("Found")


def in_batches(run: Callable[[slice], Found], n: int, at_once: int) -> Iterator[Found]:
    """``run`` of ``n`` rows in order, ``at_once`` in a batch; where memory runs out, half as many in this and all later ones."""
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
        if torch.cuda.is_available():  # outside the handler, which keeps what was allocated alive
            torch.cuda.empty_cache()
