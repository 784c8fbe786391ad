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
