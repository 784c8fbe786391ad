"""Progress bars."""

from collections.abc import Iterable
from typing import Any


def bar(items: Iterable[Any], progress: bool | None, desc: str, unit: str) -> Any:
    """The items, watched always (True), never (False), or where the wait is over a second (None)."""
    if progress is False:
        return items
    from tqdm.auto import tqdm  # warns on import in notebooks without ipywidgets: not before a bar is needed

    return tqdm(items, desc=desc, unit=unit, delay=0 if progress else 1, leave=False)
