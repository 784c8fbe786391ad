"""What threads share, without locks that a fork leaves closed: a child process has the thread that forked and no other."""

import os
from collections.abc import Callable
from threading import RLock
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that a fork waits for a turn to end."""


class Turns:
    """A lock by which threads take turns (``with turns: ...``), also one inside the other on one thread.

    A fork waits for the turn that is being taken, so that the child finds the model as the user left it. Where that takes
    too long, the child gets a new lock all the same.
    """

    def __init__(self) -> None:
        self._lock, self._taken = RLock(), False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._wait, after_in_parent=self._go_on, after_in_child=self._renew)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: Any) -> None:
        self._lock.release()

    def _wait(self) -> None:
        self._taken = self._lock.acquire(timeout=PATIENCE)

    def _go_on(self) -> None:
        if self._taken:
            self._lock.release()

    def _renew(self) -> None:
        if self._taken:  # by the thread that forked, which lives on
            self._lock.release()
        else:
            self._lock = RLock()


class cached_property(Generic[T]):  # noqa: N801  (named as that of functools)
    """`functools.cached_property` as it is from Python 3.12 on: up to 3.11 all instances share one lock."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        if instance is None:
            return self  # type: ignore[return-value]
        # No data descriptor: from now on the instance's own value is found first.
        return instance.__dict__.setdefault(self.name, self.function(instance))
