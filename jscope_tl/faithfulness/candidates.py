"""Candidates for the ground truth: templates filled with words, and the possible swaps of each word."""

import random
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from jscope_tl.errors import InputError, nearest
from jscope_tl.faithfulness.families import Template
from jscope_tl.faithfulness.vocabulary import KINDS, RELATIONS

SLOT = re.compile(r"\{([^{}:!?]+)(?::([^{}!?]+))?([!?]?)\}")
ROLES = {"!": "cause", "?": "open", "": "inert"}
REDRAWN = 2000


@dataclass(frozen=True)
class Blank:
    """A slot before it is filled: an expression, its kind of word, and its role by construction."""

    expression: str
    kind: str
    role: str


@dataclass(frozen=True)
class Candidate:
    """A filled template, before it is validated on a model.

    Attributes:
        template: the number of the template within its family.
        between: the text before, between and after the slots.
        words: the words in the slots.
        kinds: the kind of word of each slot.
        roles: the role of each slot: ``"cause"``, ``"open"`` (may change the answer) or ``"inert"`` (must not change it).
        others: the words for which each slot may be swapped, in the order of preference.
        answers: all correct answers, with a leading space.
        alternatives: the answer with which each correct answer is contrasted; empty if it is taken from the swaps.
    """

    template: int
    between: tuple[str, ...]
    words: tuple[str, ...]
    kinds: tuple[str, ...]
    roles: tuple[str, ...]
    others: tuple[tuple[str, ...], ...]
    answers: tuple[str, ...]
    alternatives: tuple[str, ...]

    def text(self, slot: int | None = None, word: str = "") -> str:
        """The prompt, or the prompt with another word in one slot."""
        words = [word if i == slot else own for i, own in enumerate(self.words)]
        return "".join(part for pair in zip(self.between, [*words, ""], strict=True) for part in pair)


def candidates(
    template: Template, number: int, rng: random.Random, is_usable: Callable[[str], bool]
) -> Iterator[Candidate]:
    """Different fillings of one template with usable words, until many draws in a row give no new one."""
    seen: set[str] = set()
    blanks, kinds = parsed(template)
    between = tuple(SLOT.sub("\0", template.text).split("\0"))
    misses = 0 if all(any(map(is_usable, KINDS[kind].words)) for kind in kinds.values()) else REDRAWN
    while misses < REDRAWN:
        misses += 1
        filled = _filled(blanks, kinds, rng, is_usable)
        if filled is None:
            continue
        named, words = filled
        try:
            answers = _values(template.answer, named)
        except KeyError:
            continue
        if not all(is_usable(answer.strip()) for answer in answers):
            continue
        others = tuple(_others(blanks, words, i, rng) for i in range(len(blanks)))
        alternatives = () if template.alternative is None else tuple(
            _values(template.alternative, {**named, "answer": ("", answer.strip())})[0] for answer in answers
        )  # fmt: skip
        found = Candidate(
            number, between, words, tuple(b.kind for b in blanks), tuple(b.role for b in blanks), others, answers, alternatives
        )  # fmt: skip
        if found.text() not in seen:
            seen.add(found.text())
            misses = 0
            yield found


def parsed(template: Template) -> tuple[list[Blank], dict[str, str]]:
    """The slots of a template, and the kind of every name.

    Raises:
        InputError: an unknown kind, relation or name, no slot that is the cause, or an answer without a slot.
    """
    kinds: dict[str, str] = {}
    for expression, kind, _ in SLOT.findall(template.text):
        if kind:
            _known("kind of word", kind, KINDS)
            kinds[expression] = kind
    blanks = [Blank(e, _kind(e, kinds), ROLES[mark]) for e, _, mark in SLOT.findall(template.text)]
    if not any(blank.role == "cause" for blank in blanks):
        raise InputError(
            f"Template {template.text!r} marks no slot as the cause; add '!' at the end of one, as in {{a:name!}}."
        )
    for text in (template.answer, template.alternative or template.answer):
        slots = SLOT.findall(text)
        if len(slots) != 1:
            raise InputError(f"An answer is text with one slot, such as ' {{a}}' or ' {{capital(a)}}'; got {text!r}.")
        _kind(slots[0][0], {**kinds, "answer": ""})
    return blanks, kinds


def _known(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise InputError(f"There is no {what} {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")


def _split(expression: str) -> tuple[str | None, str, int]:
    """``(relation, inner, steps)`` of ``relation(inner)`` or ``name+steps``."""
    if expression.endswith(")"):
        relation, _, inner = expression[:-1].partition("(")
        return relation, inner, 1
    name, _, steps = expression.partition("+")
    return None, name, int(steps or 0)


def _kind(expression: str, kinds: dict[str, str]) -> str:
    relation, inner, steps = _split(expression)
    if relation is not None:
        _known("relation", relation, RELATIONS)
        _kind(inner, kinds)
        return RELATIONS[relation].kind
    _known("slot called", inner, kinds)
    if steps:
        _known("relation from one to the next", kinds[inner], RELATIONS)
    return kinds[inner]


def _value(expression: str, named: dict[str, tuple[str, str]]) -> tuple[str, ...]:
    """The words that an expression stands for, from the kind and the word of every name; a KeyError if a relation has no entry for the word."""
    relation, inner, steps = _split(expression)
    if relation is None:
        kind, word = named[inner]
        for _ in range(steps):
            word = str(RELATIONS[kind].of[word])
        return (word,)
    found = RELATIONS[relation].of[_value(inner, named)[0]]
    return (found,) if isinstance(found, str) else found


def _filled(
    blanks: list[Blank], kinds: dict[str, str], rng: random.Random, is_usable: Callable[[str], bool]
) -> tuple[dict[str, tuple[str, str]], tuple[str, ...]] | None:
    """Kind and word of every name, and the words of the slots; None if a relation has no entry for a word, if two words are equal, or if
    a word is not usable."""
    named = {name: (kind, rng.choice(KINDS[kind].words)) for name, kind in kinds.items()}
    try:
        by_expression = {blank.expression: _value(blank.expression, named)[0] for blank in blanks}
    except KeyError:
        return None
    if len(set(by_expression.values())) < len(by_expression) or not all(map(is_usable, by_expression.values())):
        return None
    return named, tuple(by_expression[blank.expression] for blank in blanks)


def _values(text: str, named: dict[str, tuple[str, str]]) -> tuple[str, ...]:
    """The texts that an answer stands for; several if its relation gives several words."""
    (expression,) = (found[0] for found in SLOT.findall(text))
    return tuple(SLOT.sub(value, text) for value in _value(expression, named))


def _others(blanks: list[Blank], words: tuple[str, ...], slot: int, rng: random.Random) -> tuple[str, ...]:
    """The words for which a slot may be swapped, in random order: other forms of its word first, then words that are not in the prompt.

    A slot that repeats an earlier one is preferably swapped for words of the prompt, so that the prompt still has an answer.
    """
    kind, word = KINDS[blanks[slot].kind], words[slot]
    forms = kind.forms(word)
    pool = [other for other in kind.others(word) if other not in forms]
    rng.shuffle(pool)
    repeats = blanks[slot].expression in [blank.expression for blank in blanks[:slot]]
    return (*forms, *sorted(pool, key=lambda other: (other in words) != repeats))
