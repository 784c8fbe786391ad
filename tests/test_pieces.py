"""Characters that a tokenizer splits over tokens: one entry per token, the text unchanged."""

import random
from typing import Any

import pytest

import jscope_tl as js
from jscope_tl.model.pieces import BYTES, by_bytes, pieces, text_of, texts_of

SPLIT = "The chef said 你好，世界 and 👩\u200d🔬🙂 smiled — naïve café 🏳️\u200d🌈 हिन्दी ﷺ \u00e9\u0301"


def cut(text: str, seed: int) -> list[bytes]:
    """The bytes of a text in tokens of one to four bytes, at random."""
    rest, tokens, rng = text.encode(), [], random.Random(seed)
    while rest:
        n = rng.randint(1, 4)
        tokens, rest = [*tokens, rest[:n]], rest[n:]
    return tokens


def decoder(tokens: list[bytes]) -> Any:
    return lambda ids: b"".join(tokens[i] for i in ids).decode(errors="replace")


@pytest.mark.parametrize("seed", range(30))
def test_every_token_has_an_entry_and_together_they_are_the_text(seed: int) -> None:
    tokens = cut(SPLIT, seed)
    texts = texts_of(range(len(tokens)), decoder(tokens))
    assert len(texts) == len(pieces(texts)) == len(tokens)
    assert text_of(texts) == SPLIT
    assert "\ufffd" not in "".join(texts)
    for token, text in zip(tokens, texts, strict=True):  # what is text by itself stays as it is
        alone = token.decode(errors="replace")
        assert ("\ufffd" in alone) == ("⟨" in text)
        assert "\ufffd" in alone or text == alone


def test_parts_are_counted_and_shown_once() -> None:
    tokens = [b"a", *(bytes([byte]) for byte in "é🙂".encode()), b" b"]
    texts = texts_of(range(len(tokens)), decoder(tokens))
    assert texts == ["a", "é⟨1/2⟩", "é⟨2/2⟩", "🙂⟨1/4⟩", "🙂⟨2/4⟩", "🙂⟨3/4⟩", "🙂⟨4/4⟩", " b"]
    assert pieces(texts) == ["a", "é", "·", "🙂", "·", "·", "·", " b"]


@pytest.mark.parametrize("end", [b"", b"ab"])
def test_bytes_that_are_no_text_stay_what_they_are(end: bytes) -> None:
    """A prompt that is cut within a character, and one with bytes that never become text."""
    tokens = [b"x", b"\xf0", b"\x9f", *(bytes([byte]) for byte in end)]
    assert texts_of(range(len(tokens)), decoder(tokens))[:3] == ["x", "\ufffd", "\ufffd"]


def test_what_was_the_replacement_character_all_along() -> None:
    tokens = ["\ufffd".encode(), b" b"]
    assert texts_of([0, 1], decoder(tokens)) == ["\ufffd", " b"]


def test_bytes_of_a_vocabulary() -> None:
    """Every byte has a character of its own; a token is text where its bytes are, and named by its bytes elsewhere."""
    assert sorted(BYTES.values()) == list(range(256))
    character = {byte: key for key, byte in BYTES.items()}
    for content, said in (
        (" é".encode(), " é"),
        (b"\xf0\x9f", "<F0 9F>"),
        (b" \xe4", "<20 E4>"),
        ("\ufffd".encode(), "\ufffd"),
    ):
        assert by_bytes("".join(character[byte] for byte in content)) == said
    assert by_bytes("<0xF0>") == "<0xF0>"
    assert by_bytes("▁的") == "▁的"


@pytest.mark.real
@pytest.mark.slow
def test_on_a_byte_level_vocabulary(smollm2: Any) -> None:
    result = js.attribute(smollm2, SPLIT, "semantic", prepend_bos=False)
    assert len(result.str_tokens) == len(result.tokens)
    assert text_of(result.str_tokens) == SPLIT
    assert "你⟨1/2⟩" in result.str_tokens
    assert "\ufffd" not in result._repr_html_()
    assert "🙂</span>" in result._repr_html_()
    assert "⟨" not in js.views.tokens(result).calls[0]
    ids = result.tokens[
        : result.str_tokens.index("你⟨1/2⟩") + 1
    ]  # cut within a character, whose rest is to be predicted
    cut = js.attribute(smollm2, ids, "semantic")
    assert cut.str_tokens[-1] == "<E4 BD>"
    assert "\ufffd" not in "".join(token.str_token for token in cut.prediction.top)
