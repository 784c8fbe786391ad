"""Characters that a tokenizer splits: byte-level vocabularies hold an emoji or a Chinese character in several tokens, none of them text."""

import re
from collections.abc import Callable, Sequence

BROKEN = "\ufffd"
"""What a tokenizer decodes bytes to that are no whole character."""
MOST = 12
"""Tokens that are tried together; a character has four bytes at most, but one token may end a character and begin the next."""
PRINTED = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTES = {chr(byte): byte for byte in PRINTED} | {
    chr(256 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in PRINTED)
}
"""The byte of each character of a byte-level vocabulary (Radford et al. 2019): itself where it can be printed, else from 256 on."""
PART = re.compile(r"(.*)⟨(\d+)/\d+⟩", re.DOTALL)


def texts_of(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The text of every token of a prompt; tokens that only together are text are marked as parts of it: ``🙂⟨1/3⟩``.

    Args:
        ids: of the prompt, in order.
        decode: the tokenizer's.

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
    """The fewest first tokens that are text together; the first one alone where there are none."""
    alone = decode(ids[:1])
    if BROKEN in alone:
        for n in range(2, len(ids) + 1):
            if BROKEN not in (text := decode(ids[:n])):
                return n, text
    return 1, alone


def by_bytes(token: str) -> str:
    """A token of the vocabulary that is no text by itself, by its bytes.

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
    """Texts of a prompt's tokens to be shown in a row: what several tokens hold stands at the first, a dot at each of the others.

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
    """The text that the tokens of a prompt make together."""
    parts = [PART.fullmatch(text) for text in str_tokens]
    return "".join(
        text if part is None else part[1] if part[2] == "1" else ""
        for text, part in zip(str_tokens, parts, strict=True)
    )
