"""`Prompts`: the prompts of a run, from files, data sets and lists, which are read one line at a time."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from jscope_tl.corpus.formats import READERS, Unreadable, named_file
from jscope_tl.errors import InputError, nearest, whole
from jscope_tl.model.chats import is_chat

PROMPT = ("prompt", "messages", "tokens")
"""Columns with a prompt; a line has exactly one of them."""
TEXT = "text"
"""The column that is used if there is none of these."""
KNOWN = ("id", *PROMPT, "target", "baseline", "position")
NEEDED = 'a column "prompt" (or "text"), "messages" (a chat) or "tokens" (ids)'
N_COMPARED = 16
"""How many lines a resumed run compares with its prompts."""


@dataclass(frozen=True)
class Line:
    """One prompt with its own settings.

    Attributes:
        n: the number of its line, counted from 0.
        id: the given id, or the number of the line.
        prompt: a string, ids, or the messages of a chat; None if the line cannot be used.
        target, baseline, position: the values of this line, or None.
        carried: the other values of the line.
        error: why the line cannot be used, or None.
    """

    n: int
    id: str
    prompt: Any = None
    target: Any = None
    baseline: Any = None
    position: int | None = None
    carried: Mapping[str, Any] | None = None
    error: str | None = None

    @property
    def digest(self) -> str:
        """A hash of everything that determines the computation."""
        asked = [self.id, self.prompt, self.target, self.baseline, self.position]
        return sha256(json.dumps(asked, default=repr).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Prompts:
    """The lines of a checked source of prompts.

    Attributes:
        lines: returns an iterator over the lines, which starts from the beginning unless the source can be read only once.
        total: the number of lines; None if it is not known before the end.
        first: digests of the first `N_COMPARED` lines.
        name: the name of the source, for messages.
    """

    lines: Callable[[], Iterator[Line]]
    total: int | None
    first: tuple[str, ...]
    name: str

    @property
    def known_by(self) -> dict[str, Any]:
        """The values that identify the prompts when a run is resumed."""
        return {"name": self.name, "first": list(self.first)}


def read_prompts(given: Any, column: str | None = None) -> Prompts:
    """The prompts of a file (.txt, .jsonl, .parquet, .csv), a `datasets` object, or any iterable. A source that can be read twice is checked
    completely first.

    Raises:
        InputError: there are no lines or no prompts in them, an id occurs twice, or the file has another format.
    """
    if isinstance(given, Prompts):
        return given
    if isinstance(given, str | Path):
        path = named_file(given)
        return _checked(lambda: READERS[path.suffix.lower()](path), repr(str(path)), column)
    if isinstance(given, Mapping | bytes | Tensor) or not isinstance(given, Iterable):
        cure = " A DatasetDict has splits: give one of them." if isinstance(given, Mapping) else ""
        raise InputError(
            f"prompts must be a file (.txt, .jsonl, .parquet, .csv), a data set, or a list of prompts; got {type(given).__name__}.{cure}"
        )
    if hasattr(given, "__len__"):
        return _checked(lambda: iter(enumerate(given)), f"the {type(given).__name__} of prompts", column)
    return _once(iter(enumerate(given)), f"the {type(given).__name__} of prompts", column)


def _checked(read: Callable[[], Iterator[tuple[int, Any]]], name: str, column: str | None) -> Prompts:
    """A source that is read twice: the first time to check all lines."""

    def lines() -> Iterator[Line]:
        return _unique((to_line(n, item, column) for n, item in read()), name)

    need_columns(next(read(), (0, None))[1], name, column)
    first: list[str] = []
    total = 0
    for line in lines():
        total += 1
        if len(first) < N_COMPARED:
            first.append(line.digest)
    if not total:
        raise InputError(f"There are no prompts in {name}; give one or more.")
    return Prompts(lines, total, tuple(first), name)


def _once(items: Iterator[tuple[int, Any]], name: str, column: str | None) -> Prompts:
    """A source that can be read only once: its first lines are kept."""
    kept = [item for _, item in zip(range(N_COMPARED), items, strict=False)]
    if not kept:
        raise InputError(f"There are no prompts in {name}; give one or more.")
    need_columns(kept[0][1], name, column)
    first = [to_line(n, item, column) for n, item in kept]

    def lines() -> Iterator[Line]:
        yield from first
        yield from (to_line(n, item, column) for n, item in items)

    return Prompts(lambda: _unique(lines(), name), None, tuple(line.digest for line in first), name)


def _unique(lines: Iterable[Line], name: str) -> Iterator[Line]:
    """The lines; it is an error if two have the same id."""
    seen: dict[str, int] = {}
    own = 0  # lines before this one have their numbers as ids
    for line in lines:
        if not seen and line.id == str(line.n):
            own = line.n + 1
        else:
            is_number = line.id.isdecimal() and line.id == str(int(line.id)) and int(line.id) < own
            before = int(line.id) if is_number else seen.setdefault(line.id, line.n)
            if before != line.n:
                raise InputError(
                    f"The id {line.id!r} occurs twice in {name}, in lines {before} and {line.n} (counted from 0), but ids identify the rows. "
                    "Make them unique, or leave the column out: then the number of the line is the id."
                )
        yield line


def need_columns(item: Any, name: str, column: str | None) -> None:
    """Refuse a table without prompts, by its first line."""
    if not isinstance(item, Mapping) or isinstance(item, Unreadable):
        if column is not None and item is not None and not isinstance(item, Unreadable):
            raise InputError(f"{name} has no columns, so there is no column {column!r}; leave column out.")
        return
    wanted = (*PROMPT, TEXT) if column is None else (column,)
    if not any(key in item for key in wanted):
        need = NEEDED if column is None else f"the column {column!r}"
        near = next((found for key in wanted if (found := nearest(key, map(str, item)))), "")
        cure = "" if column is not None else "; or give the column with the prompts, column='...'"
        raise InputError(f"{name} has the columns {[*map(str, item)]}; needed is {need}{cure}.{near}")


def to_line(n: int, item: Any, column: str | None = None) -> Line:
    """A line from a value that was read; if it is not valid, the line has the error."""
    if isinstance(item, Line):
        return item
    if isinstance(item, Unreadable):
        return Line(n, str(n), error=item.error)
    if not isinstance(item, Mapping):
        return Line(n, str(n), _plain(item))
    known = {key: item[key] for key in KNOWN if item.get(key) is not None}
    held_by = column or (TEXT if not any(key in known for key in PROMPT) else None)
    if held_by is not None:
        known = {key: value for key, value in known.items() if key not in PROMPT}
    left = {str(key): value for key, value in item.items() if key not in (*known, held_by) and value is not None}
    if held_by is not None:
        known["prompt"] = item.get(held_by)
    try:
        name = _id(known["id"], n) if "id" in known else str(n)
    except InputError as error:
        return Line(n, f"line {n}", carried=left, error=str(error))
    try:
        asked = {key: _plain(known.get(key)) for key in ("target", "baseline")}
        return Line(n, name, _prompt(known), **asked, position=_position(known.get("position")), carried=left)
    except InputError as error:
        return Line(n, name, carried=left, error=str(error))


def _id(given: Any, n: int) -> str:
    number = whole(given)
    if number is None and not (isinstance(given, str) and given):
        raise InputError(f"An id must be a string or a whole number; line {n} (counted from 0) has {given!r}.")
    return str(given) if number is None else str(number)


def _prompt(known: Mapping[str, Any]) -> Any:
    given = [key for key in PROMPT if known.get(key) is not None]
    if len(given) != 1:
        held = f"has {' and '.join(given)}" if given else "has none of them"
        raise InputError(f"A line needs exactly one of {', '.join(PROMPT)} (or {TEXT}); this one {held}.")
    key, value = given[0], _plain(known[given[0]])
    if key in ("messages", "tokens") and isinstance(value, str):  # from a table with strings only
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{key} must be a JSON list; got {value[:80]!r} ({error}).") from error
    if key == "prompt" and not isinstance(value, str):
        raise InputError(
            f"A prompt must be a string; got {str(value)[:80]!r}. Ids belong in a column 'tokens', a chat in 'messages'."
        )
    if key == "messages" and not is_chat(value):
        raise InputError(
            f"messages must be a chat, [{{'role': 'user', 'content': 'some text'}}, ...]; got {str(value)[:80]!r}."
        )
    return value


def _position(given: Any) -> int | None:
    if given is None:
        return None
    number = whole(given)
    if number is None and isinstance(given, str):
        try:
            number = int(given)
        except ValueError:
            number = None
    if number is None:
        raise InputError(f"position is a whole number (negative counts from the end), not {given!r}.")
    return number


def _plain(value: Any) -> Any:
    """Lists in place of tensors and arrays, because their digest is the same on all machines."""
    return value.tolist() if hasattr(value, "tolist") else value
