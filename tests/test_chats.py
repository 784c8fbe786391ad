"""Chats: which token of what a template wrote is whose, against what the template writes told in Python."""

from typing import Any

import pytest

import jscope_tl as js
from jscope_tl.model.chats import is_chat, rendered
from jscope_tl.model.text import tokenized
from jscope_tl.model.view import ModelView
from tests import templates
from tests.templates import byte_level, chat

pytestmark = pytest.mark.newest_line

CHATS: dict[str, list[dict[str, str]]] = {
    "one question": chat("where is paris ?"),
    "several turns": chat("hello", "hi , user", "and the capital ?"),
    "blanks around": chat("  hello \n", "hi ", "\n\nwhat\n"),
    "words of the template": chat("user", "assistant\n", "<|im_end|>\n<|im_start|>user\n"),
    "the same message again": chat("user", "user", "user"),
    "contents in each other": chat("a", "aa", "aaa", "a", "aa"),
    "several bytes": chat("où est 🙂 ?", "中文", "é"),
    "ends inside": chat(" a<|eot|><|head|>assistant\n\nb ", "c", "\n[/INST] <|eot|> "),
    "marks": chat("Qz0xJ7", "Qz1xJ7 Qz0xJ7", "Qz"),
    "thoughts": chat("hello", "<think>\nuser\n</think>\n\nhi", "and <think>now</think>"),
}


def owners(parts: templates.Parts) -> list[tuple[str, int]]:
    return [(role, message) for text, role, message in parts for _ in text]


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("family", templates.FAMILIES)
def test_every_token_is_whose_it_is(family: str, name: str) -> None:
    """A token belongs to whoever wrote its first character that is not blank."""
    template, told = templates.FAMILIES[family]
    model, messages = byte_level(template), CHATS[name]
    if family == "bare" and name == "thoughts":
        with pytest.raises(js.InputError, match="no text between message 1 and the next"):
            tokenized(ModelView(model), messages, "x")
        return
    before, own = [*messages], told(messages)
    found = tokenized(ModelView(model), messages)
    text = found.text
    assert messages == before
    assert text.string == "".join(part for part, _, _ in own)
    assert found.tokens.tolist() == model.tokenizer(text.string, add_special_tokens=False)["input_ids"]
    whose = owners(own)
    assert text.n_prompt == len(found.tokens) == len(text.offsets)
    for (start, end), role, message in zip(text.offsets, text.roles, text.messages, strict=True):
        first = next((i for i in range(start, end) if not text.string[i].isspace()), start)
        assert (role, message) == whose[first]


@pytest.mark.parametrize("family", ["chatml", "llama", "mistral"])
def test_a_last_message_of_the_assistant_is_explained(family: str) -> None:
    model = byte_level(templates.FAMILIES[family][0])
    messages = chat("where ?", "there", "and now ?", "over here")
    found = tokenized(ModelView(model), messages).text
    asked = tokenized(ModelView(model), messages[:-1]).text
    assert found.n_prompt == asked.n_prompt
    assert found.string == asked.string + "over here"
    assert set(zip(found.roles[found.n_prompt :], found.messages[found.n_prompt :], strict=True)) == {("assistant", 3)}
    assert tokenized(ModelView(model), messages[:-1], "over here").text == found


def test_a_template_of_another_name_or_text() -> None:
    model = byte_level(
        {"default": templates.CHATML, "short": "{% for m in messages %}{{ m['content'] + '|' }}{% endfor %}"}
    )
    messages = chat("hello")
    assert tokenized(ModelView(model), messages).text.string.startswith("<|im_start|>user")
    assert tokenized(ModelView(model), messages, template="short").text.string == "hello|"
    assert tokenized(ModelView(model), messages, template="{{ messages[0]['content'] }}!").text.string == "hello!"
    with pytest.raises(js.InputError, match="no chat template called 'tools'. Known: default, short"):
        tokenized(ModelView(model), messages, template="tools")


REFUSED: dict[str, tuple[str | None, Any, str]] = {
    "no template": (None, chat("hello"), "has no chat template. Pass one as chat_template="),
    "no such template": (templates.CHATML, chat("hello"), "no chat template called 'nobody'"),
    "a role that is the template's": (templates.CHATML, [{"role": "template", "content": "hi"}], "has the role 'template'"),
    "a template that raises": (templates.MISTRAL, chat("hi", system="be kind"), "System role not supported"),
    "written twice": (templates.TWICE, chat("hello", "hi", "so"), "does not write message 0 exactly once"),
    "rewritten": (templates.UPPER, chat("hello"), "does not write message 0 exactly once"),
    "depends on contents": (templates.DEPENDS, chat("a text of more than twenty letters"), "depends on the contents"),
    "broken": ("{% for m in messages %}", chat("hello"), "refuses these messages"),
    "an empty message": (templates.CHATML, chat("hello", "  ", "so"), "Message 1, of the assistant, is empty"),
    "no content": (templates.CHATML, [{"role": "user", "content": None}], "Message 0 is .* with only text as content"),
    "a list as content": (templates.CHATML, [{"role": "user", "content": [{"type": "text"}]}], "with only text as content"),
    "no role": (templates.CHATML, [{"content": "hello"}], "Message 0 is"),
    "an empty role": (templates.CHATML, [{"role": "", "content": "hello"}], "Message 0 is"),
    "the assistant alone": (templates.CHATML, chat("x", "hello")[1:], "no message before the assistant's"),
    "too long": (templates.CHATML, chat("hello " * 60), "takes at most 48"),
    "no messages": (templates.CHATML, [], "empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_chat(name: str) -> None:
    template, messages, says = REFUSED[name]
    asked = {"template": "nobody"} if name == "no such template" else {}
    with pytest.raises(js.InputError, match=says) as refused:
        tokenized(ModelView(byte_level(template)), messages, **asked)
    assert len(str(refused.value).split()) > 5


def test_what_goes_with_a_chat() -> None:
    view = ModelView(byte_level(templates.CHATML))
    for how, says in (
        ({"prepend_bos": True}, "in a chat, the template writes the BOS"),
        ({"continuation": "x", "prompt": chat("a", "b")}, "leave out the continuation or the message"),
        ({"prompt": "hello", "template": templates.CHATML}, "this prompt is not a chat"),
    ):
        given: dict[str, Any] = {"prompt": chat("a"), **how}
        with pytest.raises(js.InputError, match=says):
            tokenized(view, **given)
    assert is_chat(chat("a"))
    assert not any(is_chat(other) for other in ([], "a", [1, 2], {"input_ids": [1]}, [{"role": "user"}, 3]))


@pytest.mark.parametrize("family", templates.FAMILIES)
def test_pieces_are_the_whole_text(family: str) -> None:
    model = byte_level(templates.FAMILIES[family][0])
    for name, messages in CHATS.items():
        if (family, name) != ("bare", "thoughts"):
            pieces = rendered(ModelView(model), messages)
            whole = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert "".join(piece.text for piece in pieces) == whole
            assert [piece.message for piece in pieces if piece.message >= 0] == list(range(len(messages)))


@pytest.mark.real
@pytest.mark.slow
def test_smollm2s_own_template(smollm2: Any) -> None:
    """It writes a system message of its own where there is none."""
    text = js.attribute_text(smollm2, chat("Where is Paris?", "In France."), by="message", progress=False).text
    assert text.string.endswith("<|im_start|>assistant\nIn France.")
    asked = {
        i: text.string[text.offsets[i][0] : text.offsets[i][1]] for i in range(len(text.roles)) if text.messages[i] == 0
    }
    assert "".join(asked.values()) == "Where is Paris?"
    assert {text.roles[i] for i in asked} == {"user"}


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"])
def test_a_chat_needs_a_tokenizer(monkeypatch: pytest.MonkeyPatch, template: Any) -> None:
    model = byte_level()
    monkeypatch.setattr(model, "tokenizer", None)
    with pytest.raises(js.InputError, match="has no tokenizer to write a chat with"):
        js.attribute_text(model, chat("hello"), " the", chat_template=template)
