"""Chats: messages as the tokenizer's own template writes them, and which part of the text is which message."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jscope_tl.errors import InputError
from jscope_tl.model.view import ModelView

TEMPLATE = "template"
"""The role of text that no message holds."""
ASSISTANT = "assistant"


@dataclass(frozen=True)
class Piece:
    """A stretch of text that one message holds, or that the template put there.

    Attributes:
        text: the text.
        role: the message's, or `TEMPLATE`.
        message: its number, counted from 0; -1 for the template's.
    """

    text: str
    role: str
    message: int


def is_chat(prompt: Any) -> bool:
    """Whether a prompt is a list of messages; an empty list is none."""
    return isinstance(prompt, Sequence) and bool(prompt) and all(isinstance(item, Mapping) for item in prompt)


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages with a role and a text each, or a refusal."""
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role == TEMPLATE:
            raise InputError(
                f"Message {i} has the role {TEMPLATE!r}, which is kept for what a chat template writes; give it another."
            )
        if not isinstance(role, str) or not role or not isinstance(content, str):
            raise InputError(
                f"Message {i} is {dict(message)!r}; a message is {{'role': 'user', 'content': 'some text'}}, with text alone as content."
            )
        if not content.strip():
            raise InputError(f"Message {i}, of the {role}, is empty; leave it out, or give it a text.")
    return [dict(message) for message in messages]


def rendered(view: ModelView, messages: Sequence[Mapping[str, Any]], template: str | None = None) -> list[Piece]:
    """The text of a chat up to where the assistant begins to answer, in pieces.

    The template is applied twice, the second time to contents that are nowhere else in it: what stands between these is its own.

    Args:
        messages: of the chat.
        template: another than the tokenizer's: its name there, or its text.

    Raises:
        InputError: there is no template, or it refuses the messages.
    """
    given = checked_messages(messages)
    marks = [f"Qz{i}xJ7" for i in range(len(given))]
    text = _applied(view, given, template)
    marked = _applied(view, [{**m, "content": mark} for m, mark in zip(given, marks, strict=True)], template)
    return list(_pieces(text, list(_between(marked, marks)), given))


def _applied(view: ModelView, messages: Sequence[Mapping[str, Any]], template: str | None) -> str:
    tokenizer = view.tokenizer
    if tokenizer is None:
        raise InputError(
            f"{view.name} has no tokenizer to write a chat with; give prompt and continuation as token ids."
        )
    known = getattr(tokenizer, "chat_template", None)
    named = list(known) if isinstance(known, Mapping) else []
    if template is None and not known:
        raise InputError(
            f"The tokenizer of {view.name} has no chat template. Give one as chat_template=, or write the chat as one string."
        )
    if template is not None and (not isinstance(template, str) or (template not in named and "{" not in template)):
        known_names = f" Known: {', '.join(named)}." if named else ""
        raise InputError(
            f"The tokenizer of {view.name} has no chat template called {template!r}.{known_names} chat_template is a name that it knows, "
            "or the text of a Jinja template."
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, add_generation_prompt=True
            )
        )
    except Exception as error:  # whatever a template raises
        raise InputError(f"The chat template of {view.name} refuses these messages: {error}.") from error


def _between(marked: str, marks: Sequence[str]) -> Iterator[str]:
    """What the template wrote before, between and after the contents."""
    for i, mark in enumerate(marks):
        before, found, marked = marked.partition(mark)
        if not found or mark in marked:
            raise InputError(
                f"The chat template does not write message {i} just once, so nobody can tell which tokens are its. Write the chat as "
                "one string."
            )
        yield before
    yield marked


def _pieces(text: str, own: Sequence[str], messages: Sequence[Mapping[str, str]]) -> Iterator[Piece]:
    """Contents as the template left them (many are stripped, some lose more) between what is the template's own."""
    rest = _after(text, own[0])
    yield Piece(own[0], TEMPLATE, -1)
    for i, (message, following) in enumerate(zip(messages, own[1:], strict=True)):
        content = _content(rest, message["content"], following, last=i + 1 == len(messages))
        if content is None:
            raise InputError(
                f"The chat template rewrites contents, and nothing stands between message {i} and the next, so nobody can tell which "
                "tokens are whose. Write the chat as one string."
            )
        yield Piece(content, message["role"], i)
        rest = _after(rest[len(content) :], following)
        yield Piece(following, TEMPLATE, -1)


def _content(rest: str, content: str, following: str, last: bool) -> str | None:
    """What the template left of a content; None where nothing says where it ends."""
    for as_written in (content, content.strip()):
        if rest.startswith(as_written + following):
            return as_written
    if not following and not last:
        return None
    end = len(rest) - len(following) if last else rest.find(following)
    return rest[: max(end, 0)]


def _after(text: str, own: str) -> str:
    if not text.startswith(own):
        raise InputError(
            "The chat template writes something else beside these messages than beside others, so nobody can tell which tokens are "
            "whose. Write the chat as one string."
        )
    return text[len(own) :]
