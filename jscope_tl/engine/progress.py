"""Progress bars, and callbacks that follow the progress of a call and can end it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

Watch = Callable[[str, int, int | None], None]
"""A callback that receives a description, the number of finished steps, and the total number (None: unknown)."""
_WATCH: ContextVar[Watch | None] = ContextVar("jscope_watch", default=None)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Inside, on this thread, ``watch`` is called at every step of all bars; an exception that it raises ends the call.

    Example:
        >>> import jscope_tl as js
        >>> from jscope_tl.engine.progress import watched
        >>> steps = []
        >>> with watched(lambda what, done, total: steps.append((done, total))):
        ...     _ = js.attribute(js.load_pocket_model(), "29 , 30 ,", "fisher", method="low_rank", rank=3, progress=False)
        >>> steps[-1]
        (3, 3)
    """
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


def progress_bar(
    progress: bool | None, desc: str, unit: str, items: Iterable[Any] | None = None, total: int | None = None
) -> Any:
    """A tqdm bar, shown always (True), never (False), or if it takes more than a second (None).

    The bar iterates over ``items``, or it is updated manually and has ``total`` units.
    """
    if _WATCH.get() is not None:
        return _watching()(items, desc=desc, unit=unit, total=total, leave=False, file=_Nowhere())
    if progress is False:
        from tqdm.std import tqdm
    else:
        from tqdm.auto import tqdm  # imported only when needed: warns in notebooks without ipywidgets
    delay = 0 if progress else 1
    return tqdm(items, desc=desc, unit=unit, total=total, delay=delay, leave=False, disable=progress is False)


class _Nowhere:
    """A file that discards its input."""

    def write(self, text: str) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""


@cache
def _watching() -> Any:
    """The class of a tqdm bar that is reported to the callbacks and not drawn."""
    from tqdm.std import tqdm

    class Watched(tqdm):
        def __iter__(self) -> Iterator[Any]:
            for item in self.iterable:
                yield item
                self.update(1)

        def update(self, n: int | float | None = 1) -> bool | None:
            self.n += n or 0
            _tell(self.desc, int(self.n), None if self.total is None else int(self.total))
            return None

    return Watched


def _tell(what: str, done: int, total: int | None) -> None:
    if (watch := _WATCH.get()) is not None:
        watch(what.rstrip(": "), done, total)


class Bar:
    """One bar for all backward passes of a call, which are run in parts; `expect` sets the number of remaining passes when it is known.

    A single pass has no bar, unless ``progress`` is True.
    """

    def __init__(self) -> None:
        self._done, self._total, self._drawn = 0, 0, None

    @property
    def left(self) -> int:
        """The number of passes that are still expected."""
        return self._total - self._done

    def expect(self, left: int, progress: bool | None) -> None:
        """Set the number of remaining passes; ``progress`` as in `progress_bar`."""
        self._total = self._done + left
        if self._drawn is not None:
            self._drawn.total = self._total
        elif _WATCH.get() is None and (progress or self._total > 1):
            self._drawn = progress_bar(progress, "backward passes", "row", total=self._total)

    def update(self, n: int) -> None:
        """Add ``n`` finished passes."""
        self._done += n
        _tell("backward passes", self._done, self._total)
        if self._drawn is not None:
            self._drawn.update(n)

    def close(self) -> None:
        """Remove the bar from the screen."""
        if self._drawn is not None:
            self._drawn.close()
