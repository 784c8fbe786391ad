"""Documents with known causes, and which of them are held out."""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

FRAME_SHARE = 4
COMBINATION_SHARE = 5


@dataclass(frozen=True)
class Document:
    """Words in order, and the causes of those that can be known.

    ``answers[i]`` are the positions that decide word ``i``: for the word at each of them there is another of its kind
    that changes the answer, for any other content word there is none. ``frame`` (the sentence parts) and
    ``combination`` (the content words that were drawn together) say which split the document belongs to.
    """

    task: str
    frame: tuple[Any, ...]
    combination: tuple[str, ...]
    words: tuple[str, ...]
    answers: dict[int, tuple[int, ...]]


def marked(task: str, frame: tuple[Any, ...], combination: Sequence[str], text: str) -> Document:
    """A document from text in which causes and answers are marked: ``the keys=head to the cabinet are<head rusty .``

    ``word=name`` is a cause, ``word<name,name`` an answer that the causes of those names decide.
    """
    words: list[str] = []
    causes: dict[str, int] = {}
    answers: dict[int, tuple[int, ...]] = {}
    for position, item in enumerate(text.split()):
        word, is_answer, names = item.partition("<")
        if is_answer:
            answers[position] = tuple(sorted(causes[name] for name in names.split(",")))
        word, is_cause, name = word.partition("=")
        if is_cause:
            causes[name] = position
        words.append(word)
    return Document(task, frame, tuple(combination), tuple(words), answers)


def held_out(task: str, combination: Sequence[str]) -> bool:
    """One combination in five is never trained on; which ones depends on nothing but their text."""
    return zlib.crc32(" ".join([task, *combination]).encode()) % COMBINATION_SHARE == 0


def draw(rng: random.Random, task: str, kinds: Sequence[Sequence[str]], split: str) -> list[str]:
    """One word of each kind, all different, from combinations that belong to ``split``."""
    while True:
        words = [rng.choice(kind) for kind in kinds]
        if len(set(words)) == len(words) and held_out(task, words) == (split == "held_out"):
            return words


def pick_frame(rng: random.Random, parts: Sequence[Sequence[Any]], split: str) -> tuple[Any, ...]:
    """A combination of sentence parts that belongs to ``split``.

    A quarter is held out, by the sum of the parts' places in their lists, so that every two parts occur together in
    training and only the whole is new.
    """
    frames = [
        tuple(part[i] for part, i in zip(parts, places, strict=True))
        for places in product(*(range(len(part)) for part in parts))
        if (sum(places) % FRAME_SHARE == 1) == (split == "held_out")
    ]
    return rng.choice(frames)
