"""Characters that a tokenizer splits: in byte-level vocabularies an emoji or a Chinese character can be several tokens of a few bytes."""

import re
from collections.abc import Callable, Sequence

BROKEN = "\ufffd"
"""The replacement character, which a tokenizer returns for bytes that are not a complete character."""
MOST = 12
"""Maximum number of tokens decoded together; a character has at most four bytes, but a token may end one and begin the next."""
PRINTED = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTES = {chr(byte): byte for byte in PRINTED} | {
    chr(256 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in PRINTED)
}
"""The byte of each character of a byte-level vocabulary (Radford et al. 2019): printable bytes stand for themselves, others from 256 on."""
PART = re.compile(r"(.*)⟨(\d+)/\d+⟩", re.DOTALL)


def texts_of(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The text of every token of a prompt; tokens that form a character only together are marked as its parts: ``🙂⟨1/3⟩``.

    Args:
        ids: the ids of the prompt, in order.
        decode: the decode function of the tokenizer.

    Example:
        >>> parts = {(0,): "a", (1,): "\\ufffd", (2,): "\\ufffd", (1, 2): "é"}
        >>> texts_of([0, 1, 2], lambda ids: parts[tuple(ids)])
        ['a', 'é⟨1/2⟩', 'é⟨2/2⟩']
    """
    texts: list[str] = []
    while (start := len(texts)) < len(ids):
        n, text = _whole(list(ids[start : start + MOST]), decode)
        texts += [text] if n == 1 else [f"{text}⟨{i}/{n}⟩" for i in range(1, n + 1)]
    return texts


def _whole(ids: list[int], decode: Callable[[list[int]], str]) -> tuple[int, str]:
    """The smallest number of first tokens that decode to text together, and this text; 1 if no number does."""
    alone = decode(ids[:1])
    if BROKEN in alone:
        for n in range(2, len(ids) + 1):
            if BROKEN not in (text := decode(ids[:n])):
                return n, text
    return 1, alone


def by_bytes(token: str) -> str:
    """The bytes of a token of the vocabulary that is not text by itself.

    Example:
        >>> by_bytes("Ġä½"), by_bytes("<0xF0>")
        ('<20 E4 BD>', '<0xF0>')
    """
    if not all(character in BYTES for character in token):
        return token
    content = bytes(BYTES[character] for character in token)
    text = content.decode(errors="replace")
    return text if text.encode() == content else f"<{content.hex(' ').upper()}>"


def pieces(str_tokens: Sequence[str]) -> list[str]:
    """Texts of a prompt's tokens for display: a character of several tokens is shown at the first, and a dot at each of the others.

    Example:
        >>> pieces([" a", "🙂⟨1/3⟩", "🙂⟨2/3⟩", "🙂⟨3/3⟩"])
        [' a', '🙂', '·', '·']
    """
    parts = [PART.fullmatch(text) for text in str_tokens]
    return [
        text if part is None else part[1] if part[2] == "1" else "·"
        for text, part in zip(str_tokens, parts, strict=True)
    ]


def text_of(str_tokens: Sequence[str]) -> str:
    """The text of the tokens of a prompt together."""
    parts = [PART.fullmatch(text) for text in str_tokens]
    return "".join(
        text if part is None else part[1] if part[2] == "1" else ""
        for text, part in zip(str_tokens, parts, strict=True)
    )
