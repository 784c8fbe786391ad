"""Documents with known causes, and the split into training and held-out documents."""

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
    """Words in order, and the causes of the words that have known causes.

    ``answers[i]`` has the positions that decide word ``i``: the word at each of them can be replaced by another one of its
    kind that changes the answer, which is not possible for any other content word. ``frame`` (the sentence parts) and
    ``combination`` (the content words that are drawn together) determine the split of the document.
    """

    task: str
    frame: tuple[Any, ...]
    combination: tuple[str, ...]
    words: tuple[str, ...]
    answers: dict[int, tuple[int, ...]]


def marked(task: str, frame: tuple[Any, ...], combination: Sequence[str], text: str) -> Document:
    """A document from text in which causes and answers are marked: ``the keys=head to the cabinet are<head rusty .``

    ``word=name`` is a cause, and ``word<name,name`` is an answer that the causes with these names decide.
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
    """Whether a combination is held out from training: one in five is, determined by its text alone."""
    return zlib.crc32(" ".join([task, *combination]).encode()) % COMBINATION_SHARE == 0


def draw(rng: random.Random, task: str, kinds: Sequence[Sequence[str]], split: str) -> list[str]:
    """One word of each kind, all different, from combinations that belong to ``split``."""
    while True:
        words = [rng.choice(kind) for kind in kinds]
        if len(set(words)) == len(words) and held_out(task, words) == (split == "held_out"):
            return words


def pick_frame(rng: random.Random, parts: Sequence[Sequence[Any]], split: str) -> tuple[Any, ...]:
    """A combination of sentence parts that belongs to ``split``.

    A quarter of the combinations is held out, by the sum of the parts' indices in their lists, so that every pair of parts occurs in
    training and only the full combination is new.
    """
    frames = [
        tuple(part[i] for part, i in zip(parts, places, strict=True))
        for places in product(*(range(len(part)) for part in parts))
        if (sum(places) % FRAME_SHARE == 1) == (split == "held_out")
    ]
    return rng.choice(frames)
