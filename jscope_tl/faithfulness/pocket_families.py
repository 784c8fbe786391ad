"""The pocket model's held-out prompts as candidates for the ground truth, with the possible swaps of each of their words."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jscope_tl.faithfulness.candidates import Candidate
from jscope_tl.faithfulness.vocabulary import Kind, plain
from jscope_tl.pocket import words as w
from jscope_tl.pocket.prompts import PocketPrompt, pocket_prompts

DRAWN = 1000


def _by_answer(name: str, answers: Mapping[str, object]) -> Kind:
    """A kind in which words with the same answer are one group, so that a swap changes the answer."""
    groups: dict[object, list[str]] = {}
    for word, answer in answers.items():
        groups.setdefault(answer, []).append(word)
    return Kind(name, tuple(map(tuple, groups.values())))


def _languages() -> list[Kind]:
    """The nouns, adjectives and other parts of speech of each language, each as a kind."""
    found = []
    for part, table in w.ENGLISH_TO.items():
        if part != "function":
            found.append(plain(f"English {part}", table))
            found += [plain(f"{w.LANGUAGES[i].title()} {part}", [row[i] for row in table.values()]) for i in range(3)]
    return found


WEAPONS = plain("weapon", w.WEAPON_TO_TRADE)
KINDS = {
    "agreement": (
        Kind("noun", (tuple(w.SINGULAR_TO_PLURAL), tuple(w.SINGULAR_TO_PLURAL.values())), paired=True),
        _by_answer("time", w.TIME_TO_COPULA), plain("adjective", w.THING_ADJECTIVES), plain("preposition", w.PREPOSITIONS),
    ),
    "assistant": (
        _by_answer("vice", w.VICE_TO_VIRTUE), plain("virtue", w.VICE_TO_VIRTUE.values()),
        plain("adjective", w.ASSISTANT_ADJECTIVES), plain("assistant", w.ASSISTANTS[1:]),
    ),
    "politics": (
        _by_answer("region", w.REGION_TO_POLITICS), _by_answer("university", w.UNIVERSITY_TO_POLITICS),
        plain("where", "home school"), plain("person", w.PERSON_TO_PRONOUN), plain("food", w.FOODS),
    ),
    "detective": (
        WEAPONS, plain("ordinal", w.ORDINALS), plain("state", "bloody clean"), plain("victim", w.VICTIMS),
        plain("adjective", w.VICTIM_ADJECTIVES),
    ),
    "translation": tuple(_languages()),
    "repetition": (plain("word", w.REPEATABLE),),
}  # fmt: skip
"""Kinds of words that can replace each other, by task."""


@dataclass(frozen=True)
class PocketFamily:
    """One task of the pocket model, its held-out prompts and their causes."""

    task: str

    @property
    def name(self) -> str:
        """The name under which `ground_truth` accepts it."""
        return f"pocket {self.task}"

    def candidates(self, seed: int) -> Iterator[Candidate]:
        """The prompts of the task, each once; words for swaps are shuffled with the prompt's text as the seed."""
        seen: set[str] = set()
        for prompt in pocket_prompts(self.task, DRAWN, seed=seed):
            if prompt.text not in seen:
                seen.add(prompt.text)
                yield _candidate(prompt)


FAMILIES = {family.name: family for family in map(PocketFamily, KINDS)}
"""The families by name, without number series, whose causes are not known."""


def _candidate(prompt: PocketPrompt) -> Candidate:
    words, causes = prompt.text.split(), [t - 1 for t in prompt.causes]  # causes count BOS
    kinds = {i: kind for i in range(len(words)) if (kind := _kind(prompt.task, words, i)) is not None}
    parts = re.split(r"(\s+)", prompt.text)  # words and the spaces between them, alternating
    between = [""]
    for place, part in enumerate(parts):
        if place % 2 == 0 and place // 2 in kinds:
            between.append("")
        else:
            between[-1] += part
    return Candidate(
        0, tuple(between), tuple(words[i] for i in kinds), tuple(kind.name for kind in kinds.values()),
        tuple("cause" if i in causes else "open" if _may_matter(prompt.task, words, i) else "inert" for i in kinds),
        tuple(_others(kind, words, i) for i, kind in kinds.items()), (prompt.target,), (),
    )  # fmt: skip


def _kind(task: str, words: Sequence[str], i: int) -> Kind | None:
    """The kind of a word; in translations, a word that exists in two languages belongs to the language of its part of the prompt."""
    spoken = (
        next((words[j - 1].title() for j in range(i, 0, -1) if words[j] == ":"), "") if task == "translation" else ""
    )
    return next((kind for kind in KINDS[task] if kind.name.startswith(spoken) and words[i] in kind.words), None)


def _may_matter(task: str, words: Sequence[str], i: int) -> bool:
    """Whether a word that is not the cause may change the answer: in a repeated sequence the last word and its first occurrence may."""
    return task == "repetition" and words[i] == words[-1]


def _others(kind: Kind, words: Sequence[str], i: int) -> tuple[str, ...]:
    forms = kind.forms(words[i])
    pool = [other for other in kind.others(words[i]) if other not in forms]
    random.Random(f"{i} {' '.join(words)}").shuffle(pool)
    return (*forms, *sorted(pool, key=lambda other: other in words))
