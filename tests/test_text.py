"""Where tokens stand in a text, and continuations whose beginning a tokenizer merges with the end of the prompt."""

from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.model.text import Tokenized, found_in, to_span, tokenized
from jscope_tl.model.view import ModelView
from tests.templates import byte_level, chat

pytestmark = pytest.mark.newest_line

TEXTS = [
    "the user said",
    " the  user \n\nsaid ",
    "où est 🙂🙂 ?",
    "中文 é̂ ﬁ",
    "a\tb\r\nc",
    "<s> the </s>",
    "29,35,41,",
    "\n",
]


@pytest.fixture(scope="module")
def by_bytes() -> ModelView:
    return ModelView(byte_level())


def places(found: Tokenized) -> list[tuple[int, int]]:
    return [(a, b) for a, b in found.text.offsets if b > a]


@pytest.mark.parametrize("text", TEXTS)
def test_places_add_up_to_the_text(by_bytes: ModelView, text: str) -> None:
    """In order, without gaps; parts of one character stand where that does, and no others stand upon each other."""
    found = tokenized(by_bytes, text, "! so")
    assert found.text.string == text + "! so"
    covered = 0
    for start, end in places(found):
        assert start == covered or (start < covered == end and covered - start == 1)
        covered = max(covered, end)
    assert covered == len(found.text.string)
    for token, (start, end) in zip(found.tokens.tolist(), found.text.offsets, strict=True):
        said = by_bytes.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        assert "\ufffd" in said or said == (found.text.string[start:end] or "<s>")


def test_words_that_a_tokenizer_puts_a_blank_before(pocket: Any) -> None:
    """Such a tokenizer says that they begin a character earlier."""
    found = tokenized(ModelView(pocket), "29,35 , the doors", " are")
    texts = [found.text.string[a:b].strip() for a, b in places(found)]
    assert texts == ["29", ",", "35", ",", "the", "doors", "are"]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_strings_are_the_same_text(by_bytes: ModelView, text: str) -> None:
    """Roles, offsets and ids; of ids a BOS is text, which has a place."""
    by_string = tokenized(by_bytes, text, " so", prepend_bos=False)
    by_ids = tokenized(by_bytes, by_string.tokens[:-1], by_string.tokens[-1:].tolist())
    n = by_string.text.n_prompt
    assert torch.equal(by_ids.tokens, by_string.tokens)
    assert by_string.text.roles == ("prompt",) * n + ("continuation",) * (len(by_string.tokens) - n)
    assert by_ids.text.string == by_string.text.string
    assert set(by_ids.text.messages) == {-1}


def test_bos_is_no_text(by_bytes: ModelView) -> None:
    found = tokenized(by_bytes, "the user", " said", prepend_bos=True).text
    assert found.offsets[0] == (0, 0)
    assert found.roles[0] == "template"
    ids = tokenized(by_bytes, [0, 90, 91], [92]).text
    assert ids.roles == ("template", "prompt", "prompt", "continuation")
    assert ids.offsets[0] == (0, 3)


def test_both_strings_are_read_together(by_bytes: ModelView) -> None:
    """The tokens are those that the tokenizer makes of the whole text, whatever it would make of the answer alone."""
    for prompt, answer in (("the user", " said hello"), ("où", " est"), ("hello", "! the"), ("the system\n", "now")):
        whole = by_bytes.tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
        found = tokenized(by_bytes, prompt, answer, prepend_bos=False)
        assert found.tokens.tolist() == whole
        assert found.text.string[found.text.offsets[found.text.n_prompt][0] :] == answer


@pytest.mark.parametrize(("prompt", "answer"), [("the capi", "tal"), ("the ", "user"), ("us", "er")])
def test_merged_beginnings_are_refused(by_bytes: ModelView, prompt: str, answer: str) -> None:
    """With the cure; which works."""
    ids = by_bytes.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = by_bytes.tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    assert whole[: len(ids)] != ids  # else there is nothing to refuse
    with pytest.raises(js.InputError, match="begin the continuation with the space") as refused:
        tokenized(by_bytes, prompt, answer)
    assert "becomes" in str(refused.value)
    after = by_bytes.tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert tokenized(by_bytes, ids, after).tokens.tolist() == [*ids, *after]
    assert tokenized(by_bytes, prompt.rstrip(), " said").text.string == prompt.rstrip() + " said"


def test_an_answer_merged_with_the_template_is_refused() -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ ' the capi' }}"
    with pytest.raises(js.InputError, match="begin the continuation"):
        tokenized(ModelView(byte_level(template)), chat("hello", "tal"))


@pytest.mark.parametrize("given", [("the", " \ud800"), (chat("the \ud800"), "a"), (chat("the"), "\ud800")])
def test_what_is_no_unicode_is_refused(given: tuple[Any, str]) -> None:
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(js.InputError, match="broken UTF-8"):
        tokenized(ModelView(byte_level(template)), *given)


def test_what_is_too_long(by_bytes: ModelView) -> None:
    tokens = list(range(90, 130))
    tokenized(by_bytes, tokens, list(range(90, 98)))
    with pytest.raises(js.InputError, match="Prompt and continuation have 49 tokens, .* takes at most 48"):
        tokenized(by_bytes, tokens, list(range(90, 99)))


@pytest.mark.parametrize(
    ("span", "expected"), [((0, 3), (0, 3)), ([1, 2], (1, 2)), ((-2, 3), (1, 3)), ((-3, -1), (0, 2))]
)
def test_spans(span: Any, expected: tuple[int, int]) -> None:
    assert to_span(span, 3) == expected


@pytest.mark.parametrize(
    "span", [(0, 4), (2, 2), (-4, 2), (0, -3), 3, (1,), (1, 2, 3), (0.5, 2), ("a", "b"), (None, 2), None]
)
def test_what_is_no_span(span: Any) -> None:
    with pytest.raises(js.InputError, match=r"is outside the continuation of 3 tokens|A span must be a pair"):
        to_span(span, 3)


def test_texts_are_found_by_tokens() -> None:
    """Every text that is a run of whole tokens, with the blank before it or without."""
    tokens = [" one", " two", "s", " 🙂⟨1/2⟩", " 🙂⟨2/2⟩", ",", " four"]
    for start in range(len(tokens)):
        for stop in range(start + 1, len(tokens) + 1):
            if start == 4 or stop == 4:  # within a character
                continue
            text = "".join(tokens[start:stop]).replace("⟨1/2⟩", "").replace(" 🙂⟨2/2⟩", "")
            assert found_in(tokens, text) == (start, stop)
            assert found_in(tokens, text.strip()) == (start, stop)
    for text, says in (
        ("wo", "begins or ends within"),
        ("one tw", "begins or ends within"),
        ("o", "occurs 3 times"),
        ("", "occurs 0 times"),
    ):
        with pytest.raises(js.InputError, match=says):
            found_in(tokens, text)


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_merges(smollm2: Any) -> None:
    for prompt, answer in (("The cap", "ital of France"), ("The capital of France is ", "Paris")):
        with pytest.raises(js.InputError, match="begin the continuation with the space"):
            js.attribute_text(smollm2, prompt, answer)
    found = js.attribute_text(smollm2, "The capital of France is", " Paris", progress=False)
    assert [row.text for row in found.rows] == [" Paris"]
