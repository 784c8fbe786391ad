"""Progress bars."""

from collections.abc import Iterable
from typing import Any


def progress_bar(
    progress: bool | None, desc: str, unit: str, items: Iterable[Any] | None = None, total: int | None = None
) -> Any:
    """A tqdm bar, shown always (True), never (False), or where the wait is over a second (None).

    Over ``items``, or one to be updated by hand, of ``total`` units.
    """
    if progress is False:
        from tqdm.std import tqdm
    else:
        from tqdm.auto import tqdm  # warns on import in notebooks without ipywidgets: not before a bar is needed
    delay = 0 if progress else 1
    return tqdm(items, desc=desc, unit=unit, total=total, delay=delay, leave=False, disable=progress is False)


class Bar:
    """One bar for the backward passes of a call, which come in parts: `expect` says how many are still to come, once that is known.

    Nothing is drawn for one pass alone, unless it is asked for.
    """

    def __init__(self) -> None:
        self._done, self._total, self._drawn = 0, 0, None

    @property
    def left(self) -> int:
        """Passes that are still expected."""
        return self._total - self._done

    def expect(self, left: int, progress: bool | None) -> None:
        """So many are still to come; ``progress`` as in `progress_bar`."""
        self._total = self._done + left
        if self._drawn is not None:
            self._drawn.total = self._total
        elif progress or self._total > 1:
            self._drawn = progress_bar(progress, "backward passes", "row", total=self._total)

    def update(self, n: int) -> None:
        """So many were done."""
        self._done += n
        if self._drawn is not None:
            self._drawn.update(n)

    def close(self) -> None:
        """Take it off the screen."""
        if self._drawn is not None:
            self._drawn.close()
