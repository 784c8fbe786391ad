"""Documents whose predictions have a known cause: what the pocket model learns, and what scopes are measured on.

A document is a list of words plus *answers*: positions whose word is a function of the words at its *causes*, given
the frame of the sentence. Replace a cause by another word of its kind and the answer changes; replace any other content
word and it does not.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeVar

import numpy as np

from jscope_tl import series
from jscope_tl.pocket import words as w

T = TypeVar("T")
FRAME_SHARE = 4


def lorenz_orbit(n: int, rng: np.random.Generator) -> series.Series:
    """A piece of a Lorenz orbit from anywhere on the attractor: orbits all start alike, and would be learnt by heart."""
    skip = int(rng.integers(200, 3000))
    return series.lorenz(n + skip, rng, dt=float(rng.uniform(0.01, 0.02)))[skip:]


SERIES_KINDS: dict[str, Callable[[int, np.random.Generator], series.Series]] = {
    "lorenz": lorenz_orbit, "logistic": series.logistic_map, "brownian": series.brownian, "sine": series.sine,
}  # fmt: skip


@dataclass
class Document:
    """Words in order, and the causes of those that can be known: ``answers[i]`` are the positions that decide word i.

    ``frame`` and ``combination`` (the content words that were drawn together) say which split the document belongs to.
    """

    task: str
    frame: tuple[Any, ...]
    combination: tuple[str, ...] = ()
    words: list[str] = field(default_factory=list)
    answers: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Append words that are part of the frame."""
        self.words += text.split()

    def put(self, word: str) -> int:
        """Append one content word and return its position."""
        self.words.append(word)
        return len(self.words) - 1

    def put_noun_phrase(self, words: Sequence[str]) -> None:
        """Append words with the article that the first of them needs."""
        self.say(" ".join(["an" if words[0][0] in "aeiou" else "a", *words]))

    def answer(self, word: str, *causes: int) -> int:
        """Append a word that the words at ``causes`` decide, and return its position."""
        position = self.put(word)
        self.answers[position] = tuple(sorted(causes))
        return position


def held_out(task: str, key: Sequence[object], share: int) -> bool:
    """One in ``share`` combinations is never trained on; which ones depends on nothing but their text."""
    return zlib.crc32(" ".join([task, *map(str, key)]).encode()) % share == 0


def draw(rng: random.Random, task: str, kinds: Sequence[Sequence[T]], split: str, share: int = 5) -> list[T]:
    """One word of each kind, all different, from combinations that belong to ``split``."""
    while True:
        words = [rng.choice(kind) for kind in kinds]
        if len(set(words)) == len(words) and held_out(task, words, share) == (split == "held_out"):
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


def agreement(rng: random.Random, split: str) -> Document:
    """``the keys to the cabinet near the doors -> are``: the verb agrees with the head noun, whatever stands between."""
    frame = pick_frame(rng, [("", "time", "think"), (0, 1), (0, 1)], split)
    opening, head_adjective, attractor_adjective = frame
    # How many nouns follow is no part of the frame, and a noun alone no combination: held out, they would teach that no
    # verb ever comes there.
    alone = split == "train" and not attractor_adjective and rng.random() < 0.25
    nouns = [rng.choice(w.NOUN_FORMS)] if alone else draw(rng, "agreement", [w.NOUN_FORMS] * rng.randint(2, 3), split)
    doc = Document("agreement", frame, tuple(nouns))
    causes, copulas = [], ("is", "are")
    if opening == "time":
        time = rng.choice(list(w.TIME_TO_COPULA))
        copulas = w.TIME_TO_COPULA[time]
        causes.append(doc.put(time))
    elif opening == "think":
        doc.say("i think that")
    for i, noun in enumerate(nouns):
        if i:
            doc.put(rng.choice(w.PREPOSITIONS))
        doc.say("the")
        if attractor_adjective if i else head_adjective:
            doc.put(rng.choice(w.THING_ADJECTIVES))
        at = doc.put(noun)
        if i == 0:
            causes.append(at)
    doc.answer(copulas[nouns[0] not in w.SINGULAR_TO_PLURAL], *causes)
    doc.put(rng.choice(w.THING_ADJECTIVES))
    doc.say(".")
    return doc


def assistant(rng: random.Random, split: str) -> Document:
    """``you never argue or deceive because you are nice and truthful``: each virtue follows from the vice denied."""
    frame = pick_frame(rng, [("you", "i"), (0, 1), ("one", "two", "often", "but")], split)
    subject, with_adjective, form = frame
    kinds = [w.ASSISTANTS, *[list(w.VICE_TO_VIRTUE)] * (1 if form == "one" else 2)]
    noun, *vices = draw(rng, "assistant", kinds, split)
    while len({w.VICE_TO_VIRTUE[vice] for vice in vices}) < len(vices):
        noun, *vices = draw(rng, "assistant", kinds, split)
    doc = Document("assistant", frame, (noun, *vices))
    doc.say("as")
    doc.put_noun_phrase(([rng.choice(w.ASSISTANT_ADJECTIVES)] if with_adjective else []) + [noun])
    doc.say(f", {subject}")
    if form == "often":
        doc.say("often")
        doc.put(vices.pop())
        doc.say("but")
    doc.say("never")
    causes = [doc.put(vices[0])]
    if form == "two":
        doc.say("or")
        causes.append(doc.put(vices[1]))
    elif form == "but":
        doc.say(f"but {subject} often")
        doc.put(vices.pop())
    doc.say(", because you are" if subject == "you" else ", because i am")
    doc.answer(w.VICE_TO_VIRTUE[vices[0]], causes[0])
    if form == "two":
        doc.say("and")
        doc.answer(w.VICE_TO_VIRTUE[vices[1]], causes[1])
    doc.say(".")
    return doc


POLITICS_FRAMES = [
    ("region", ""), ("university", ""),
    ("region university", "home"), ("region university", "school"),
    ("university region", "home"), ("university region", "school"),
]  # fmt: skip


def politics(rng: random.Random, split: str) -> Document:
    """``he grew up in the south and goes to columbia . at home he is a -> conservative``; at school, ``liberal``.

    A quarter of the training documents with two places leaves out where he is: then the place that decides is a coin
    toss, as in the paper's prompt, and the prediction is no answer.
    """
    frame = pick_frame(rng, [[False, True], POLITICS_FRAMES], split)
    with_food, (places, where) = frame
    kinds = {"region": list(w.REGION_TO_POLITICS), "university": list(w.UNIVERSITY_TO_POLITICS)}
    order = places.split()
    person, *drawn = draw(rng, "politics", [list(w.PERSON_TO_PRONOUN), *(kinds[place] for place in order)], split)
    doc = Document("politics", frame, (person, *drawn))
    labels = {
        place: (w.REGION_TO_POLITICS if place == "region" else w.UNIVERSITY_TO_POLITICS)[word]
        for place, word in zip(order, drawn, strict=True)
    }
    pronoun = w.PERSON_TO_PRONOUN[person]
    doc.put(person)
    if with_food:
        doc.say("loves")
        doc.put(rng.choice(w.FOODS))
        doc.say(f"food . {pronoun}")
    at = {}
    for i, place in enumerate(order):
        doc.say("and" if i else "")
        doc.say("grew up in the" if place == "region" else "goes to")
        at[place] = doc.put(drawn[i])
    doc.say(".")
    deciding = order[0]
    if where:
        deciding = "region" if where == "home" else "university"
        if rng.random() < 0.25 and split == "train":
            doc.say(f"{pronoun} is a")
            doc.put(rng.choice(list(labels.values())))
            doc.say(".")
            return doc
        doc.say("at")
        at["where"] = doc.put(where)
    doc.say(f"{pronoun} is a")
    doc.answer(labels[deciding], at[deciding], *([at["where"]] if "where" in at else []))
    doc.say(".")
    return doc


def detective(rng: random.Random, split: str) -> Document:
    """Three weapons, one clue; the killer has the trade that goes with the weapon that the clue points at."""
    frame = pick_frame(rng, [("victim", "short"), (0, 1), ("ordinal", "bloody", "found")], split)
    opening, with_adjective, clue = frame
    weapons = draw(rng, "detective", [list(w.WEAPON_TO_TRADE)] * 3, split)
    doc = Document("detective", frame, tuple(weapons))
    guilty = rng.randrange(3)
    if opening == "victim":
        doc.say("since the victim ,")
        doc.put_noun_phrase(([rng.choice(w.VICTIM_ADJECTIVES)] if with_adjective else []) + [rng.choice(w.VICTIMS)])
        doc.say(", died from a fatal wound , the detective narrowed down three weapons : a")
    else:
        doc.say("the")
        if with_adjective:
            doc.put(rng.choice(w.VICTIM_ADJECTIVES))
        doc.say("detective found three weapons : a")
    listed = []
    for i, weapon in enumerate(weapons):
        doc.say(("", ", a", "and a")[i])
        listed.append(doc.put(weapon))
    doc.say(".")
    if clue == "ordinal":
        doc.say("the")
        causes = [doc.put(w.ORDINALS[guilty]), listed[guilty]]
        doc.say("was bloody")
    elif clue == "bloody":
        for i, j in enumerate(rng.sample(range(3), 3)):
            doc.say(("the", ", the", "and the")[i])
            named = doc.put(weapons[j])
            doc.say("was")
            state = doc.put("bloody" if j == guilty else "clean")
            if j == guilty:
                causes = [named, state]
    else:
        doc.say("blood was found on the")
        causes = [doc.put(weapons[guilty])]
    doc.say(". the killer is the")
    doc.answer(w.WEAPON_TO_TRADE[weapons[guilty]], *causes)
    doc.say(".")
    return doc


def _clause(language: str, clause: Sequence[tuple[str, str]], inverted: bool) -> list[tuple[str, str]]:
    """The words of one clause, each as (kind, english word), in the order of the language."""
    parts = dict(clause)
    the, adjective, noun, verb = (("function", "the"), *((k, parts[k]) for k in ("adjective", "noun", "verb")))
    adverb = [("adverb", parts["adverb"])] if inverted else []
    if language == "english":
        return [*adverb, the, adjective, noun, verb]
    if language == "german":
        return [*adverb, verb, the, adjective, noun] if inverted else [the, adjective, noun, verb]
    return [the, noun, adjective, verb, *adverb]


def translation(rng: random.Random, split: str) -> Document:
    """Word-for-word translation with reordering: adjectives follow in Italian and French, German inverts after adverbs."""
    frame = pick_frame(rng, [w.LANGUAGES, ("to", "from"), (0, 1), (0, 1)], split)
    language, direction, with_adverb, two_clauses = frame
    kinds = ["adjective", "noun", "verb", "adverb"]
    n_clauses = 1 + two_clauses
    drawn = draw(rng, "translation", [list(w.ENGLISH_TO[k]) for k in kinds * n_clauses], split)
    doc = Document("translation", frame, tuple(drawn))
    clauses = [list(zip(kinds, drawn[4 * i :], strict=False)) for i in range(n_clauses)]

    def sentence(lang: str) -> list[tuple[int, str, str]]:
        out = []
        for i, clause in enumerate(clauses):
            out += [(0, "function", "and")] if i else []
            out += [(i, *item) for item in _clause(lang, clause, bool(with_adverb) and i == 0)]
        return out

    def word(lang: str, kind: str, english: str) -> str:
        return english if lang == "english" else w.ENGLISH_TO[kind][english][w.LANGUAGES.index(lang)]

    source, target = ("english", language) if direction == "to" else (language, "english")
    doc.say(f"{source} :")
    at = {item: doc.put(word(source, *item[1:])) for item in sentence(source)}
    doc.say(f". {target} :")
    for item in sentence(target):
        if item[1] == "function":
            doc.put(word(target, *item[1:]))
        else:
            doc.answer(word(target, *item[1:]), at[item])
    doc.say(".")
    return doc


def repetition(rng: random.Random, split: str) -> Document:
    """A random sequence said twice: each word of the second time comes from its place in the first."""
    n = rng.randint(5, 20)
    sequence = draw(rng, "repetition", [w.REPEATABLE] * n, split)
    doc = Document("repetition", (n,), tuple(sequence))
    first = [doc.put(word) for word in sequence]
    doc.put(sequence[0])
    for word, position in zip(sequence[1:], first[1:], strict=True):
        doc.answer(word, position)
    return doc


def number_series(rng: random.Random, split: str) -> Document:
    """``29 , 30 , 31 , ...``: a scaled Lorenz, logistic, Brownian or sine series; its causes are not known."""
    kind = rng.choice(list(SERIES_KINDS))
    n = rng.choice([64, 64, 96, 180])
    doc = Document("series", (kind, n))
    generator = np.random.default_rng([rng.getrandbits(32), split == "held_out"])
    for value in series.to_integers(SERIES_KINDS[kind](n, generator)):
        doc.put(str(value))
        doc.say(",")
    return doc


TASKS: dict[str, Callable[[random.Random, str], Document]] = {
    "agreement": agreement, "assistant": assistant, "politics": politics, "detective": detective,
    "translation": translation, "repetition": repetition, "series": number_series,
}  # fmt: skip


def documents(task: str, split: str, seed: int) -> Iterator[Document]:
    """An endless, seeded stream of documents of one task."""
    rng = random.Random(f"{task} {split} {seed}")
    while True:
        yield TASKS[task](rng, split)
