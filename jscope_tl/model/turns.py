"""Locks for threads that survive a fork: a child process has only the thread that forked, and other locks could stay closed."""

import os
from collections.abc import Callable
from threading import RLock
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PATIENCE = 5.0
"""Maximum number of seconds that a fork waits for the lock."""


class Turns:
    """A reentrant lock (``with turns: ...``) that is safe with fork.

    A fork waits until the lock is free, so that the child process finds the model in the user's state. If this takes too long, the
    child gets a new lock nevertheless.
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
        if self._taken:  # held by the thread that forked, which exists in the child
            self._lock.release()
        else:
            self._lock = RLock()


class cached_property(Generic[T]):  # noqa: N801  (named like functools.cached_property)
    """`functools.cached_property` of Python 3.12, without the lock that all instances share up to Python 3.11."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        if instance is None:
            return self  # type: ignore[return-value]
        # This is not a data descriptor, so the value in the instance's dict is found first from now on.
        return instance.__dict__.setdefault(self.name, self.function(instance))
