"""`Text`: a prompt and its continuation, with the place in the text and the message of every token."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from jscope_tl.errors import InputError, whole
from jscope_tl.model.chats import ASSISTANT, TEMPLATE, Piece, checked_messages, is_chat, rendered
from jscope_tl.model.pieces import text_of
from jscope_tl.model.prompts import bos_positions, prompt_texts, refuse_undecodable, to_tokens
from jscope_tl.model.view import ModelView

Messages = Sequence[Mapping[str, Any]]
Continuation = str | Sequence[int] | Int[Tensor, "*one continued"]
PROMPT, CONTINUATION = "prompt", "continuation"


@dataclass(frozen=True)
class Text:
    """A prompt and its continuation.

    Attributes:
        string: the text, including the text of the chat template.
        offsets: the place of each token in ``string``: the first character and the one after the last; an empty range for a BOS that is
            not in the text.
        roles: the role of each token: in a chat, that of its message or ``"template"``; else ``"prompt"`` or ``"continuation"``.
        messages: the number of each token's message; -1 if there is none.
        n_prompt: the number of tokens of the prompt; all later tokens are the continuation.
    """

    string: str
    offsets: tuple[tuple[int, int], ...]
    roles: tuple[str, ...]
    messages: tuple[int, ...]
    n_prompt: int


@dataclass(frozen=True)
class Tokenized:
    """Tokens on the model's device, and their text."""

    tokens: Int[Tensor, "pos"]
    text: Text


def tokenized(
    view: ModelView, prompt: Any, continuation: Any = None, prepend_bos: Any = None, template: Any = None
) -> Tokenized:
    """A prompt (string, ids or chat messages) and its continuation (string or ids; None: not yet).

    If a chat ends with a message of the assistant, that message is the continuation.

    Raises:
        InputError: the prompt cannot be used, or the tokenizer merges the beginning of the continuation with the end of the prompt.
    """
    if template is not None and not is_chat(prompt):
        raise InputError("chat_template is for chat messages, and this prompt is not a chat. Leave it out.")
    if is_chat(prompt):
        return _chat(view, prompt, continuation, prepend_bos, template)
    found = _of_string(view, prompt, prepend_bos) if isinstance(prompt, str) else _of_ids(view, prompt, prepend_bos)
    return found if continuation is None else continued(view, found, continuation, retokenize=isinstance(prompt, str))


def continued(view: ModelView, start: Tokenized, continuation: Any, retokenize: bool = False) -> Tokenized:
    """The text with a continuation; with ``retokenize``, both strings are tokenized together."""
    if isinstance(continuation, str):
        if not continuation:
            raise InputError(
                "The continuation is empty; there is nothing to explain. Leave it out to have it generated."
            )
        offset = len(start.text.string)
        ids, offsets = _joined(view, start, continuation) if retokenize else _encoded(view, continuation)
        string = continuation
    else:
        ids = to_tokens(view, continuation).tolist()
        string, offsets = _written(view, ids)
        offset = len(start.text.string)
    tokens = torch.cat([start.tokens, torch.tensor(ids, dtype=torch.long, device=start.tokens.device)])
    if len(tokens) > view.n_ctx:
        raise InputError(
            f"Prompt and continuation have {len(tokens)} tokens, {view.name} takes at most {view.n_ctx}; shorten one of them."
        )
    text, n = start.text, len(ids)
    role, message = (ASSISTANT, max(text.messages) + 1) if max(text.messages, default=-1) >= 0 else (CONTINUATION, -1)
    return Tokenized(
        tokens,
        replace(
            text,
            string=text.string + string,
            offsets=(*text.offsets, *((a + offset, b + offset) for a, b in offsets)),
            roles=(*text.roles, *[role] * n),
            messages=(*text.messages, *[message] * n),
        ),
    )


def _chat(view: ModelView, prompt: Any, continuation: Any, prepend_bos: Any, template: Any) -> Tokenized:
    if prepend_bos is not None:
        raise InputError("prepend_bos is for strings; in a chat, the template writes the BOS. Leave prepend_bos out.")
    messages = checked_messages(prompt)
    if messages[-1]["role"] == ASSISTANT:
        if continuation is not None:
            raise InputError(
                "The chat ends with a message of the assistant, and that message is explained; leave out the continuation or the message."
            )
        continuation = messages.pop()["content"]
        if not messages:
            raise InputError("The chat has no message before the assistant's; add the messages that it answers.")
    found = _of_pieces(view, rendered(view, messages, template))
    return found if continuation is None else continued(view, found, continuation, retokenize=True)


def _of_string(view: ModelView, prompt: str, prepend_bos: Any) -> Tokenized:
    tokens = to_tokens(view, prompt, prepend_bos)
    ids, offsets = _encoded(view, prompt)
    n_before = len(tokens) - len(ids)
    if n_before < 0 or tokens[n_before:].tolist() != ids:  # the model's to_tokens differs from the tokenizer
        return _of_ids(view, tokens, None)
    n = len(tokens)
    text = Text(prompt, (*[(0, 0)] * n_before, *offsets), (*[TEMPLATE] * n_before, *[PROMPT] * len(ids)), (-1,) * n, n)
    return Tokenized(tokens, text)


def _of_ids(view: ModelView, prompt: Any, prepend_bos: Any) -> Tokenized:
    tokens = to_tokens(view, prompt, prepend_bos)
    string, offsets = _written(view, tokens.tolist())
    n, leading = len(tokens), len(bos_positions(view, tokens))
    roles = (*[TEMPLATE] * leading, *[PROMPT] * (n - leading))
    return Tokenized(tokens, Text(string, tuple(offsets), roles, (-1,) * n, n))


def _of_pieces(view: ModelView, pieces: Sequence[Piece]) -> Tokenized:
    string = "".join(piece.text for piece in pieces)
    ids, offsets = _encoded(view, string)
    owners = [piece for piece in pieces for _ in piece.text]
    own = [owners[min(_anchor(string, *where), len(owners) - 1)] for where in offsets]
    text = Text(string, tuple(offsets), tuple(p.role for p in own), tuple(p.message for p in own), len(ids))
    return Tokenized(to_tokens(view, ids), text)


def _anchor(string: str, start: int, end: int) -> int:
    """The first non-blank character of a token, which decides where a token across a boundary belongs."""
    return next((i for i in range(start, end) if not string[i].isspace()), start)


def _joined(view: ModelView, start: Tokenized, continuation: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a continuation from the tokenization of the whole text; an error if that changes the prompt's tokens."""
    before = len(start.text.string)
    own = [i for i, (a, b) in zip(start.tokens.tolist(), start.text.offsets, strict=True) if b > a]
    ids, offsets = _encoded(view, start.text.string + continuation)
    n = len(own)
    if ids[:n] != own or any(b <= before for _, b in offsets[n:]) or len(ids) == n:
        changed = next((i for i, (a, b) in enumerate(zip(own, ids, strict=False)) if a != b), min(n, len(ids)) - 1)
        merged, last = (prompt_texts(view, [some[min(changed, len(some) - 1)]])[0] for some in (ids, own))
        raise InputError(
            f"The tokenizer merges the end of the prompt with the beginning of the continuation: {last!r} becomes {merged!r}. End the "
            "prompt at the end of a word, and begin the continuation with the space before its first word; or pass both as ids."
        )
    return ids[n:], [(a - before, b - before) for a, b in offsets[n:]]


def _encoded(view: ModelView, string: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a text without added special tokens, and their offsets, which are spread evenly if the tokenizer gives none."""
    if view.tokenizer is None:
        raise InputError(f"{view.name} has no tokenizer; give prompt and continuation as token ids.")
    refuse_undecodable("text", string)
    if getattr(view.tokenizer, "is_fast", False):
        found = view.tokenizer(string, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), _apart(found["offset_mapping"])
    ids = list(view.tokenizer(string, add_special_tokens=False)["input_ids"])
    written, offsets = _written(view, ids)
    return ids, offsets if written == string else [(min(a, len(string)), min(b, len(string))) for a, b in offsets]


def _apart(offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Offsets without overlaps: each token begins where the previous one ends, or later.

    Offsets of some tokenizers overlap at the blank before a word. All tokens of a single character have the offsets of that character.
    """
    found: list[tuple[int, int]] = []
    end = 0
    for start, stop in offsets:
        found.append((end if start < end < stop else start, stop))
        end = max(end, stop)
    return found


def _written(view: ModelView, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of ids and the offsets of the tokens; all tokens of a single character have the offsets of that character."""
    texts = prompt_texts(view, ids)
    ends = [0, *accumulate(len(text_of([text])) for text in texts)]
    return text_of(texts), list(pairwise(ends))


def to_span(span: Any, n: int, of: str = "continuation") -> tuple[int, int]:
    """A span as the first of ``n`` tokens and the token after the last, from a pair of numbers; negative ones count from the end."""
    pair = [whole(item) for item in span] if isinstance(span, list | tuple) and len(span) == 2 else [None]
    if None in pair:
        raise InputError(f"A span must be a pair (first token, token after the last), or a text; got {span!r}.")
    start, stop = (item + n if item is not None and item < 0 else item for item in pair)
    if not (start is not None and stop is not None and 0 <= start < stop <= n):
        raise InputError(f"The span {tuple(span)} is outside the {of} of {n} tokens (0 to {n}), or empty.")
    return start, stop


def found_in(str_tokens: Sequence[str], text: str) -> tuple[int, int]:
    """The tokens of a text that occurs once, as the first and the one after the last; a blank before the text may be omitted.

    Raises:
        InputError: the text does not occur or occurs several times, or it begins or ends within a token.
    """
    said = text_of(str_tokens)
    if not text.strip() or said.count(text) != 1:
        raise InputError(
            f"The text {text!r} occurs {said.count(text) if text else 0} times in the continuation {said!r}. Give the span as two "
            "numbers of tokens."
        )
    ends = list(accumulate(len(text_of([token])) for token in str_tokens))
    start, end = said.index(text), said.index(text) + len(text)
    first = bisect_right(ends, start)
    begins = ends[first - 1] if first else 0
    if said[begins:start].strip() or end not in ends:
        cut = str_tokens[first] if said[begins:start].strip() else str_tokens[bisect_right(ends, end - 1)]
        raise InputError(
            f"The text {text!r} begins or ends within the token {cut!r}; include the whole token, or pass the span as two numbers."
        )
    return first, bisect_right(ends, end)  # includes all tokens of a split character at the end
