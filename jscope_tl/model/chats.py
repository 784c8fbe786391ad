"""Chats: the text of messages in the tokenizer's chat template, and the parts of this text that belong to each message."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jscope_tl.errors import InputError
from jscope_tl.model.view import ModelView

TEMPLATE = "template"
"""The role of text that belongs to no message."""
ASSISTANT = "assistant"


@dataclass(frozen=True)
class Piece:
    """A part of the text that belongs to one message, or to the template.

    Attributes:
        text: the text.
        role: the role of the message, or `TEMPLATE`.
        message: the number of the message, counted from 0; -1 for the template.
    """

    text: str
    role: str
    message: int


def is_chat(prompt: Any) -> bool:
    """Whether a prompt is a list of messages; an empty list is not."""
    return isinstance(prompt, Sequence) and bool(prompt) and all(isinstance(item, Mapping) for item in prompt)


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The messages, each with a role and a text; an error if one is invalid."""
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role == TEMPLATE:
            raise InputError(
                f"Message {i} has the role {TEMPLATE!r}, which is reserved for the text of a chat template; use another role."
            )
        if not isinstance(role, str) or not role or not isinstance(content, str):
            raise InputError(
                f"Message {i} is {dict(message)!r}; a message must be {{'role': 'user', 'content': 'some text'}}, with only text as content."
            )
        if not content.strip():
            raise InputError(f"Message {i}, of the {role}, is empty; leave it out, or add text to it.")
    return [dict(message) for message in messages]


def rendered(view: ModelView, messages: Sequence[Mapping[str, Any]], template: str | None = None) -> list[Piece]:
    """The text of a chat up to the beginning of the assistant's answer, in pieces.

    The template is applied twice, the second time to unique marks instead of the contents; the text between the marks is the template's.

    Args:
        messages: the messages of the chat.
        template: a template to use instead of the tokenizer's default: its name in the tokenizer, or its text.

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
            f"The tokenizer of {view.name} has no chat template. Pass one as chat_template=, or write the chat as one string."
        )
    if template is not None and (not isinstance(template, str) or (template not in named and "{" not in template)):
        known_names = f" Known: {', '.join(named)}." if named else ""
        raise InputError(
            f"The tokenizer of {view.name} has no chat template called {template!r}.{known_names} chat_template must be one of its templates' names, "
            "or the text of a Jinja template."
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, add_generation_prompt=True
            )
        )
    except Exception as error:  # any error of a template
        raise InputError(f"The chat template of {view.name} refuses these messages: {error}.") from error


def _between(marked: str, marks: Sequence[str]) -> Iterator[str]:
    """The template's text before, between and after the contents."""
    for i, mark in enumerate(marks):
        before, found, marked = marked.partition(mark)
        if not found or mark in marked:
            raise InputError(
                f"The chat template does not write message {i} exactly once, so its tokens cannot be identified. Write the chat as "
                "one string."
            )
        yield before
    yield marked


def _pieces(text: str, own: Sequence[str], messages: Sequence[Mapping[str, str]]) -> Iterator[Piece]:
    """The pieces of the text: the contents, as the template changed them (most strip blanks), and the template's text between them."""
    rest = _after(text, own[0])
    yield Piece(own[0], TEMPLATE, -1)
    for i, (message, following) in enumerate(zip(messages, own[1:], strict=True)):
        content = _content(rest, message["content"], following, last=i + 1 == len(messages))
        if content is None:
            raise InputError(
                f"The chat template rewrites contents, and has no text between message {i} and the next, so the tokens of these "
                "messages cannot be told apart. Write the chat as one string."
            )
        yield Piece(content, message["role"], i)
        rest = _after(rest[len(content) :], following)
        yield Piece(following, TEMPLATE, -1)


def _content(rest: str, content: str, following: str, last: bool) -> str | None:
    """A content as the template changed it; None if its end cannot be found."""
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
            "The chat template's own text depends on the contents of the messages, so the tokens of the messages cannot be "
            "identified. Write the chat as one string."
        )
    return text[len(own) :]
