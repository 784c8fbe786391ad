"""Sources: groups of tokens by word, sentence, line, message, or segments that the user defines."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError, nearest, whole
from jscope_tl.model.chats import TEMPLATE
from jscope_tl.model.pieces import text_of
from jscope_tl.model.text import Text
from jscope_tl.results.checks import need
from jscope_tl.results.sink import adds_up

WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]+")
SENTENCE = re.compile(r"\S(?:[^\n]*?(?:[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+)|[^\n]*)")
LINE = re.compile(r"[^\n]*[^\s][^\n]*")
ALL = re.compile(r"\S.*", re.DOTALL)
PATTERNS = {"word": WORD, "sentence": SENTENCE, "line": LINE, "message": ALL}
BY = ("token", *PATTERNS)


@dataclass(frozen=True)
class Segment:
    """A named part of the text: the characters from ``start`` to ``end`` (exclusive)."""

    name: str
    start: int
    end: int

    def __post_init__(self) -> None:
        """Refuse an empty or negative range."""
        need(0 <= self.start < self.end, "a segment has a character or more")


@dataclass(frozen=True)
class Source:
    """A group of tokens that are scored together.

    Attributes:
        text: the text of the tokens.
        positions: the positions of the tokens.
        role: the role of the message that the tokens are in, or ``"template"``, ``"prompt"`` or ``"continuation"``.
        message: the number of the message, or -1.
    """

    text: str
    positions: tuple[int, ...]
    role: str
    message: int

    @property
    def is_template(self) -> bool:
        """Whether the tokens come from the chat template or are BOS, and not from a message or the user's text."""
        return self.role == TEMPLATE


def to_segments(by: Any, string: str) -> tuple[str, tuple[Segment, ...]]:
    """The kind of sources, a name of `BY` or ``"segments"``, and the segments.

    Raises:
        InputError: ``by`` is unknown, or segments are outside the text, empty, or overlap.
    """
    if isinstance(by, str):
        if by not in BY:
            raise InputError(
                f"There is no by={by!r}.{nearest(by, BY)} Use one of {', '.join(BY)}, or segments of your own, such as "
                "{'rule': (0, 20)}: characters of the text."
            )
        return by, ()
    named = list(by.items()) if isinstance(by, Mapping) else list(enumerate(by)) if isinstance(by, Sequence) else []
    if not named:
        raise InputError(f"by must be one of {', '.join(BY)}, or segments of your own; got {by!r}.")
    segments = sorted((_segment(name, where, string) for name, where in named), key=lambda segment: segment.start)
    for one, following in pairwise(segments):
        if following.start < one.end:
            raise InputError(
                f"The segments {one.name!r} and {following.name!r} overlap; a token belongs to one source."
            )
    return "segments", tuple(segments)


def _segment(name: Any, where: Any, string: str) -> Segment:
    if isinstance(where, str):
        if string.count(where) != 1 or not where:
            raise InputError(
                f"The segment {where!r} occurs {string.count(where)} times in the text; pass (start, end) instead."
            )
        start, end = string.index(where), string.index(where) + len(where)
    else:
        pair = [whole(item) for item in where] if isinstance(where, tuple | list) and len(where) == 2 else [None, None]
        start, end = (-1 if item is None else item for item in pair)
    if not 0 <= start < end <= len(string):
        raise InputError(
            f"The segment {where!r} is outside the text of {len(string)} characters, or empty; it is (start, end)."
        )
    return Segment(name if isinstance(name, str) else string[start:end].strip() or repr(string[start:end]), start, end)


def sources_of(text: Text, str_tokens: Sequence[str], by: str, segments: Sequence[Segment] = ()) -> list[Source]:
    """The tokens of a text in their sources, in order.

    A token belongs to the source that contains its first non-blank character; a token of blanks alone belongs to the source of the token
    before it. No source extends across messages or from the prompt into the continuation. Every contiguous text of the chat template is a
    source of its own.
    """
    if by == "token":
        return [_source(text, str_tokens, [i], str_tokens[i]) for i in range(len(str_tokens))]
    place = _in_segments(segments) if by == "segments" else None
    found = []
    for (role, _, _), run in groupby(range(len(str_tokens)), lambda i: _owner(text, i)):
        tokens = list(run)
        in_text = any(text.offsets[i][0] < text.offsets[i][1] for i in tokens)
        if role == TEMPLATE and (place is None or not in_text):  # a BOS before the text belongs to no segment
            found.append(_source(text, str_tokens, tokens))
            continue
        start, end = text.offsets[tokens[0]][0], text.offsets[tokens[-1]][1]
        where = place or _matches(PATTERNS[by], text.string, start, end)
        found += [_source(text, str_tokens, *group) for group in _grouped(text, tokens, where)]
    return found


def _owner(text: Text, i: int) -> tuple[str, int, bool]:
    return text.roles[i], text.messages[i], i >= text.n_prompt


def _source(text: Text, str_tokens: Sequence[str], tokens: list[int], name: str | None = None) -> Source:
    start, end = text.offsets[tokens[0]][0], text.offsets[tokens[-1]][1]
    said = text.string[start:end].strip() or text.string[start:end] or text_of([str_tokens[i] for i in tokens])
    return Source(said if name is None else name, tuple(tokens), text.roles[tokens[0]], text.messages[tokens[0]])


def _matches(pattern: re.Pattern[str], string: str, start: int, end: int) -> Callable[[int], tuple[int, str | None]]:
    """A function from a character to the number of the match that contains it, or of the match before it."""
    starts = [match.start() for match in pattern.finditer(string, start, end)] or [start]

    def place(character: int) -> tuple[int, str | None]:
        return max(bisect_right(starts, character) - 1, 0), None

    return place


def _in_segments(segments: Sequence[Segment]) -> Callable[[int], tuple[int, str | None]]:
    """A function from a character to the segment that contains it, or to the gap between segments, which has no name."""

    def place(character: int) -> tuple[int, str | None]:
        for n, segment in enumerate(segments):
            if character < segment.start:
                return 2 * n, None
            if character < segment.end:
                return 2 * n + 1, segment.name
        return 2 * len(segments), None

    return place


def _grouped(
    text: Text, tokens: Sequence[int], place: Callable[[int], tuple[int, str | None]]
) -> Iterator[tuple[list[int], str | None]]:
    keyed: list[tuple[int, tuple[int, str | None]]] = []
    for i in tokens:
        start, end = text.offsets[i]
        inked = next((c for c in range(start, end) if not text.string[c].isspace()), None)
        key = keyed[-1][1] if inked is None and keyed else place(start if inked is None else inked)
        keyed.append((i, key))
    for (_, name), group in groupby(keyed, lambda pair: pair[1]):
        yield [i for i, _ in group], name


def together(
    scores: Float[Tensor, "*row pos"],
    stderr: Float[Tensor, "*row pos"] | None,
    groups: Sequence[Sequence[int]],
    unit: str,
) -> tuple[Float[Tensor, "*row src"], Float[Tensor, "*row src"] | None]:
    """Scores of groups of tokens, one for each group of positions, and their standard errors.

    For norms of rows ``C J_t``, the score of a group is the norm of its concatenated rows, ``(Σ_t ‖C J_t‖²)^(1/2)``, which does not depend
    on how the text is split into tokens. For squared norms, such as Fisher's trace, and scores of attention patterns it is the sum.
    Standard errors are upper bounds, because the errors of the tokens are not independent.
    """

    def summed(values: Float[Tensor, "*row pos"]) -> Float[Tensor, "*row src"]:
        return torch.stack([values[..., list(group)].sum(-1) for group in groups], -1)

    if adds_up(unit) or "pattern x gradient" in unit:
        return summed(scores), None if stderr is None else summed(stderr)
    norms = summed(scores.square()).sqrt()
    tiny = torch.finfo(torch.float32).tiny
    return norms, None if stderr is None else summed(scores * stderr) / norms.clamp_min(tiny)


def check_grouped(scope: str, options: dict[str, Any], signed: bool) -> None:
    """Refuse sources of several tokens if their scores cannot be computed from the token scores."""
    if scope == "spectral":
        raise InputError(
            "Sources of several tokens need the largest gain of their concatenated rows, which does not follow from the gains of single "
            "tokens. Use by='token', or another scope."
        )
    if options.get("reduction") == "dot" and not signed:
        raise InputError(
            "Sources of several tokens need the sum of C J_t x_t with its sign, which reduction='dot' keeps only for scopes with one "
            "cotangent at one point. Use by='token', or another reduction."
        )
