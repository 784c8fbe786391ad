"""What a user may type as prompt, position and target, and the sentences that refuse the rest."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import jscope_tl as js
from jscope_tl.attribution import describe
from jscope_tl.model.prompts import bos_positions, to_id, to_str_tokens, to_tokens
from jscope_tl.model.view import ModelView
from tests import models
from tests.models import D_VOCAB, N_CTX, TOKENS

attribute = inspect.unwrap(js.attribute)  # past the tests' type checks, as a user's call is
TEXT = "the keys to the cabinet"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty string.*at least one"),
        ([], "empty.*at least one"),
        (torch.tensor([], dtype=torch.long), "empty"),
        (torch.zeros(2, 4, dtype=torch.long), r"\[2, 4\].*One prompt at a time"),
        (torch.zeros(1, 1, 4, dtype=torch.long), r"\[pos\] or \[1, pos\]"),
        (torch.tensor(3), r"\[pos\] or \[1, pos\]"),
        (["one prompt", "another"], "One prompt at a time"),
        ([1, "the"], "list of token ids"),
        ([1, True], "list of token ids"),
        ([1.0, 2.0], "list of token ids"),
        (torch.rand(5), "float32.*Embeddings"),
        (torch.ones(5, dtype=torch.bool), "torch.bool"),
        (torch.tensor([1, D_VOCAB]), f"{D_VOCAB} is out of range.*0 to {D_VOCAB - 1}"),
        ([1, -1], "-1 is out of range"),
        (torch.zeros(N_CTX + 1, dtype=torch.long), f"{N_CTX + 1} tokens.*at most {N_CTX}"),
        (" ".join(["keys"] * (N_CTX + 5)), f"{N_CTX + 6} tokens.*at most {N_CTX}"),
        (None, "NoneType"),
        ([1, 2**70], "out of range"),
        (torch.tensor([1, 600], dtype=torch.uint16), "600 is out of range"),
        (torch.tensor([1, 2]).to_sparse(), "dense"),
        (torch.empty(3, dtype=torch.long, device="meta"), "meta"),
        ("the \ud800 keys", "are not text"),
        ([{"role": "user", "content": "the keys"}], "is a chat.*attribute_text"),
        ([{"a": 1}], "list of token ids"),
        ([np.bool_(True)], "list of token ids"),
        (b"keys", "bytes"),
        ([[1, 2], [3, 4]], "got 2 sequences"),
        ({"ids": [1, 2]}, "'input_ids'.*this one has ..ids"),
        ({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 1]]}, "got 2 sequences"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long)}, r"\[2, 3\].*One prompt at a time"),
        (
            {"input_ids": [[0, 1, 2]], "attention_mask": [[0, 1, 1]]},
            "has 1 zeros among 3 entries for 3 tokens.*without padding",
        ),
        ({"input_ids": [1, 2], "attention_mask": [1]}, "1 entries for 2 tokens"),
        ({"input_ids": []}, "empty"),
    ],
)
def test_bad_prompts(llama: Any, prompt: Any, message: str) -> None:
    with pytest.raises(js.InputError, match=message):
        attribute(llama, prompt)


@pytest.mark.parametrize("position", [8, -9, 1.0, True, None])
def test_bad_positions(llama: Any, position: Any) -> None:
    with pytest.raises(js.InputError, match="position"):
        attribute(llama, TOKENS, position=position)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (D_VOCAB, "out of range"),
        (-1, "out of range"),
        (True, "True"),
        (2.0, "a token id"),
        ("zebra", "not in the vocabulary"),
        ("", r"0 tokens \(\), it must be exactly one\.$"),
        ("\ud800", "are not text"),
    ],
)
def test_bad_targets(llama: Any, target: Any, message: str) -> None:
    before = models.snapshot(llama)
    with pytest.raises(js.InputError, match=message):
        attribute(llama, TOKENS, _semantic(target))
    assert models.snapshot(llama) == before


def test_one_token_where_there_is_one_row_for_each_position(llama: Any) -> None:
    with pytest.raises(js.InputError, match=r"2 tokens \(' keys', ' doors'\)"):
        js.influence_pattern(llama, TOKENS, _semantic(" keys doors"))


def _semantic(target: Any) -> js.SemanticScope:
    scope = js.SemanticScope()
    object.__setattr__(scope, "target", target)  # past the tests' type checks
    return scope


@pytest.mark.parametrize("target", [44, " keys", "keys", torch.tensor(44), np.int64(44)])
def test_good_targets(llama: Any, target: Any) -> None:
    result = attribute(llama, TOKENS, _semantic(target))
    assert result.prediction.target.token == (44 if not isinstance(target, str) else result.prediction.target.token)
    if isinstance(target, str):
        assert result.prediction.target.str_token == " keys"


def test_contrastive_needs_two_tokens(llama: Any) -> None:
    with pytest.raises(js.InputError, match="needs a baseline"):
        js.attribute(llama, TOKENS, "contrastive", target=3)
    with pytest.raises(js.InputError, match="same token"):
        js.attribute(llama, TOKENS, "contrastive", target=3, baseline=3)


def test_strings_follow_the_models_bos_default(llama: Any) -> None:
    with_bos = js.attribute(llama, TEXT)
    without = js.attribute(llama, TEXT, prepend_bos=False)
    assert with_bos.str_tokens == ["<bos>", " the", " keys", " to", " the", " cabinet"]
    assert without.str_tokens == with_bos.str_tokens[1:]
    assert with_bos.bos_positions == (0,)
    assert without.bos_positions == ()


def test_tensors_are_taken_as_they_are(llama: Any) -> None:
    ids = js.attribute(llama, TEXT).tokens
    assert js.attribute(llama, ids[1:]).tokens.tolist() == ids[1:].tolist()
    with pytest.raises(js.InputError, match="prepend_bos is for strings"):
        js.attribute(llama, ids, prepend_bos=True)


def test_bos_with_id_zero_is_scored_and_left_out_of_the_top(llama: Any) -> None:
    result = js.attribute(llama, TEXT, "entropy")
    assert int(result.tokens[0]) == 0
    assert result.scores[0] > 0
    assert all(token.position != 0 for token in result.top(10))
    assert {token.position for token in result.top(10, include_bos=True)} == set(range(6))


def test_a_second_bos_is_noticed(llama: Any) -> None:
    result = js.attribute(llama, "<bos> " + TEXT)
    assert result.bos_positions == (0, 1)
    assert any("more than one BOS" in warning for warning in result.warnings)
    assert js.attribute(llama, TEXT).warnings == []


def test_a_blank_after_a_word_is_noticed(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it comes before the explained prediction; not after a comma or a line break."""
    texts = {5: " is", 6: " ", 7: "\n", 8: ","}
    monkeypatch.setattr(describe, "prompt_texts", lambda view, ids: [texts[i] for i in ids])

    def noticed(*ids: int, position: int = -1) -> bool:
        warnings = js.attribute(llama, [*ids], "log_prob", position=position).warnings
        return any("after the blank at position" in warning for warning in warnings)

    assert noticed(7, 5, 6)
    assert noticed(5, 6, 5, position=1)
    assert not any(noticed(*ids) for ids in ((5, 6, 5), (5, 7, 6), (5, 8, 6), (6, 6), (6,)))
    assert not noticed(5, 6, 5, position=0)


def test_bos_in_the_middle_is_text(llama: Any) -> None:
    view = ModelView(llama)
    assert bos_positions(view, torch.tensor([0, 5, 0])) == (0,)
    assert bos_positions(view, torch.tensor([5, 0])) == ()


def test_unknown_words_are_noticed(llama: Any) -> None:
    result = js.attribute(llama, "the zebra is old")
    assert result.str_tokens[2] == "<unk>"
    assert any("positions [2]" in warning for warning in result.warnings)


def test_models_without_a_tokenizer_take_ids(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    model.tokenizer = None
    result = js.attribute(model, TOKENS)
    assert result.str_tokens[1] == f"<{int(TOKENS[1])}>"
    assert js.attribute(model, TOKENS, target=44).prediction.target.token == 44
    with pytest.raises(js.InputError, match="no tokenizer.*token ids"):
        js.attribute(model, TEXT)
    with pytest.raises(js.InputError, match="no tokenizer.*token id"):
        js.attribute(model, TOKENS, target=" keys")


def test_tokens_are_a_copy(llama: Any) -> None:
    prompt = TOKENS.clone()
    result = js.attribute(llama, prompt)
    prompt[0] = 5
    assert int(result.tokens[0]) == 0


def test_text_round_trip(llama: Any) -> None:
    view = ModelView(llama)
    assert "".join(to_str_tokens(view, to_tokens(view, TEXT).tolist())) == "<bos> " + TEXT


@pytest.mark.parametrize("prepend_bos", ["no", 2, []])
def test_bad_prepend_bos(llama: Any, prepend_bos: Any) -> None:
    with pytest.raises(js.InputError, match="prepend_bos must be True, False or None"):
        attribute(llama, TEXT, prepend_bos=prepend_bos)


def test_numpys_numbers_are_numbers(llama: Any) -> None:
    expected = js.attribute(llama, TOKENS, position=4)
    result = attribute(llama, list(TOKENS.numpy()), position=np.int64(4), chunk_size=np.int32(2))
    assert torch.equal(result.scores, expected.scores)
    assert len(inspect.unwrap(js.Attribution.top)(result, np.int64(2))) == 2


class Spaceless:
    """A tokenizer that wants no space before a word."""

    unk_token_id, unk_token, bos_token_id = None, None, None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [7, 8] if text.startswith(" ") else [8]}

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        return "are" if ids == [8] else ""


class SpacelessView(ModelView):
    tokenizer = Spaceless()

    def __post_init__(self) -> None:
        pass


def test_hints_name_what_would_work() -> None:
    with pytest.raises(js.InputError, match="Try 'are'"):
        to_id(SpacelessView(None), " are", 100)


MESSAGES = [{"role": "user", "content": "the keys to the cabinet"}]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.mark.parametrize("tensors", [None, "pt", "np"])
@pytest.mark.parametrize("as_dict", [False, True])
def test_what_a_chat_template_returns_is_a_prompt(llama: Any, tensors: str | None, as_dict: bool) -> None:
    """Ids, or ids with their attention mask, of one conversation: for one prompt as for a batch of one."""
    tokenizer = models.tokenizer()
    tokenizer.chat_template = TEMPLATE
    ids = tokenizer(MESSAGES[0]["content"], add_special_tokens=False)["input_ids"]
    expected = js.attribute(llama, ids, "temperature").scores
    how = {"return_tensors": tensors, "return_dict": as_dict}
    for messages in (MESSAGES, [MESSAGES]):
        given = tokenizer.apply_chat_template(messages, tokenize=True, **how)
        found = js.attribute(llama, given, "temperature")
        assert found.tokens.tolist() == ids
        assert torch.equal(found.scores, expected)
        if as_dict:
            assert torch.equal(js.attribute(llama, dict(given), "temperature").scores, expected)
            with pytest.raises(js.InputError, match="prompts must be several prompts"):
                list(js.attribute_batch(llama, given, "temperature"))
    (only,) = js.attribute_batch(llama, [given], "temperature")
    assert torch.equal(only.scores, expected)


def test_a_tokenizers_padding_is_refused(llama: Any) -> None:
    tokenizer = models.tokenizer()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    given = tokenizer(["the keys to the cabinet"], return_tensors="pt", padding="max_length", max_length=16)
    with pytest.raises(js.InputError, match="zeros among 16 entries for 16 tokens"):
        js.attribute(llama, given)


def test_blanks_of_which_the_tokenizer_makes_nothing(pocket: Any) -> None:
    for blank in (" ", "\n\t "):
        with pytest.raises(js.InputError, match="prompt is blank"):
            js.attribute(pocket, blank)
