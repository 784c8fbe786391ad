"""`Shard`: every ``n``-th prompt, for runs that are distributed over processes."""

from dataclasses import dataclass
from typing import Any

from jscope_tl.errors import InputError, whole


@dataclass(frozen=True)
class Shard:
    """The lines whose number leaves the remainder ``index`` when it is divided by ``of``."""

    index: int = 0
    of: int = 1

    @property
    def label(self) -> str:
        """The label for names of files."""
        return f"{self.index:04d}-of-{self.of:04d}"

    def __str__(self) -> str:
        return f"shard {self.index}/{self.of}" if self.of > 1 else "the run"

    def has(self, n: int) -> bool:
        """Whether the line with this number is in the shard."""
        return n % self.of == self.index

    def size(self, total: int | None) -> int | None:
        """How many of ``total`` lines are in the shard."""
        return None if total is None else len(range(self.index, total, self.of))


def to_shard(given: Any) -> Shard:
    """The shard ``(2, 8)`` or ``"2/8"``, which is the third of eight; None: all prompts.

    Raises:
        InputError: the shard does not exist.
    """
    if given is None:
        return Shard()
    parts = given.split("/") if isinstance(given, str) else list(given) if isinstance(given, tuple | list) else []
    numbers = [int(p) if isinstance(p, str) and p.strip().isdecimal() else whole(p) for p in parts]
    index, of = numbers if len(numbers) == 2 else (None, None)
    if index is None or of is None or not 0 <= index < of <= 9999:
        raise InputError(
            f"shard is the number of the shard, counted from 0, and the number of shards, such as '2/8' or (2, 8): 0/8 to 7/8 are all of eight; "
            f"got {given!r}."
        )
    return Shard(index, of)
