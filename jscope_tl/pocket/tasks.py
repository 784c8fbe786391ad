"""The pocket model's seven tasks, modelled on the paper's case studies: each is a function that generates one document."""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jscope_tl.pocket import series
from jscope_tl.pocket import words as w
from jscope_tl.pocket.corpus import Document, draw, marked, pick_frame


def agreement(rng: random.Random, split: str) -> Document:
    """``the keys to the cabinet near the doors -> are``: the verb agrees with the head noun, independent of the words between."""
    frame = pick_frame(rng, [("", "time", "think"), (0, 1), (0, 1)], split)
    opening, head_adjective, attractor_adjective = frame
    # The number of nouns is not part of the frame, and a single noun is not a combination: if these were held out, the model would
    # learn that no verb follows there.
    alone = split == "train" and not attractor_adjective and rng.random() < 0.25
    nouns = [rng.choice(w.NOUN_FORMS)] if alone else draw(rng, "agreement", [w.NOUN_FORMS] * rng.randint(2, 3), split)
    time = rng.choice(list(w.TIME_TO_COPULA)) if opening == "time" else "now"
    text = {"": "", "time": f"{time}=time ", "think": "i think that "}[opening]
    for i, noun in enumerate(nouns):
        text += f"{rng.choice(w.PREPOSITIONS)} the " if i else "the "
        text += f"{rng.choice(w.THING_ADJECTIVES)} " if (attractor_adjective if i else head_adjective) else ""
        text += f"{noun} " if i else f"{noun}=head "
    copula = w.TIME_TO_COPULA[time][nouns[0] not in w.SINGULAR_TO_PLURAL]
    text += f"{copula}<head,time " if opening == "time" else f"{copula}<head "
    return marked("agreement", frame, nouns, f"{text} {rng.choice(w.THING_ADJECTIVES)} .")


VICE_CLAUSES = {
    "one": "never {0}=0", "two": "never {0}=0 or {1}=1",
    "often": "often {1} but never {0}=0", "but": "never {0}=0 but {subject} often {1}",
}  # fmt: skip


def assistant(rng: random.Random, split: str) -> Document:
    """``you never argue or deceive , because you are nice and truthful``: each virtue follows from the vice that is denied."""
    frame = pick_frame(rng, [("you", "i"), (0, 1), tuple(VICE_CLAUSES)], split)
    subject, with_adjective, form = frame
    kinds = [w.ASSISTANTS, *[list(w.VICE_TO_VIRTUE)] * (1 if form == "one" else 2)]
    noun, *vices = draw(rng, "assistant", kinds, split)
    while len({w.VICE_TO_VIRTUE[vice] for vice in vices}) < len(vices):
        noun, *vices = draw(rng, "assistant", kinds, split)
    virtues = [f"{w.VICE_TO_VIRTUE[vice]}<{i}" for i, vice in enumerate(vices)]
    phrase = with_article(f"{rng.choice(w.ASSISTANT_ADJECTIVES)} {noun}" if with_adjective else noun)
    clause = VICE_CLAUSES[form].format(*vices, subject=subject)
    reason = " and ".join(virtues if form == "two" else virtues[:1])
    copula = "are" if subject == "you" else "am"
    text = f"as {phrase} , {subject} {clause} , because {subject} {copula} {reason} ."
    return marked("assistant", frame, (noun, *vices), text)


def with_article(phrase: str) -> str:
    """The phrase with the article that goes with its first word."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


POLITICS_FRAMES = [
    ("region", ""), ("university", ""),
    ("region university", "home"), ("region university", "school"),
    ("university region", "home"), ("university region", "school"),
]  # fmt: skip
PLACES = {"region": w.REGION_TO_POLITICS, "university": w.UNIVERSITY_TO_POLITICS}
PLACE_CLAUSES = {"region": "grew up in the {}=region", "university": "goes to {}=university"}


def politics(rng: random.Random, split: str) -> Document:
    """``he grew up in the south and goes to columbia . at home he is a -> conservative``; at school, ``liberal``.

    A quarter of the training documents with two places does not say where he is: then the deciding place is random, as in the paper's
    prompt, and the prediction is not an answer with known causes.
    """
    frame = pick_frame(rng, [(False, True), POLITICS_FRAMES], split)
    with_food, (places, where) = frame
    order = places.split()
    person, *drawn = draw(rng, "politics", [list(w.PERSON_TO_PRONOUN), *(list(PLACES[p]) for p in order)], split)
    labels = {place: PLACES[place][word] for place, word in zip(order, drawn, strict=True)}
    pronoun = w.PERSON_TO_PRONOUN[person]
    food = f"loves {rng.choice(w.FOODS)} food . {pronoun}" if with_food else ""
    clauses = " and ".join(PLACE_CLAUSES[p].format(word) for p, word in zip(order, drawn, strict=True))
    if not where:
        end = f"{pronoun} is a {labels[order[0]]}<{order[0]}"
    elif rng.random() < 0.25 and split == "train":
        end = f"{pronoun} is a {rng.choice(list(labels.values()))}"
    else:
        deciding = "region" if where == "home" else "university"
        agree = len(set(labels.values())) == 1  # the answer does not depend on where he is
        causes = deciding if agree else f"{deciding},where"
        end = f"at {where}=where {pronoun} is a {labels[deciding]}<{causes}"
    return marked("politics", frame, (person, *drawn), f"{person} {food} {clauses} . {end} .")


def detective(rng: random.Random, split: str) -> Document:
    """Three weapons and one clue; the clue points to a weapon, and the killer has the trade that belongs to this weapon."""
    frame = pick_frame(rng, [("victim", "short"), (0, 1), ("ordinal", "bloody", "found")], split)
    opening, with_adjective, clue = frame
    weapons = draw(rng, "detective", [list(w.WEAPON_TO_TRADE)] * 3, split)
    guilty = rng.randrange(3)
    adjective = rng.choice(w.VICTIM_ADJECTIVES) + " " if with_adjective else ""
    if opening == "victim":
        victim = with_article(adjective + rng.choice(w.VICTIMS))
        scene = f"since the victim , {victim} , died from a fatal wound , the detective narrowed down three weapons :"
    else:
        scene = f"the {adjective} detective found three weapons :"
    marks = ["=weapon" if clue == "ordinal" and i == guilty else "" for i in range(3)]
    a, b, c = (weapon + mark for weapon, mark in zip(weapons, marks, strict=True))
    evidence, causes = _evidence(rng, clue, weapons, guilty)
    killer = f"{w.WEAPON_TO_TRADE[weapons[guilty]]}<{causes}"
    text = f"{scene} a {a} , a {b} and a {c} . {evidence} . the killer is the {killer} ."
    return marked("detective", frame, weapons, text)


def _evidence(rng: random.Random, clue: str, weapons: Sequence[str], guilty: int) -> tuple[str, str]:
    """The clue as text, and the names of the causes that decide the answer."""
    if clue == "ordinal":
        return f"the {w.ORDINALS[guilty]}=clue was bloody", "weapon,clue"
    if clue == "found":
        return f"blood was found on the {weapons[guilty]}=weapon", "weapon"
    states = [
        f"the {weapons[j]}=weapon was bloody=clue" if j == guilty else f"the {weapons[j]} was clean"
        for j in rng.sample(range(3), 3)
    ]
    return f"{states[0]} , {states[1]} and {states[2]}", "weapon,clue"


def translation(rng: random.Random, split: str) -> Document:
    """Word-for-word translation with reordering: adjectives follow in Italian and French, German inverts after adverbs."""
    frame = pick_frame(rng, [w.LANGUAGES, ("to", "from"), (0, 1), (0, 1)], split)
    language, direction, with_adverb, two_clauses = frame
    kinds = ["adjective", "noun", "verb", "adverb"] * (1 + two_clauses)
    drawn = draw(rng, "translation", [list(w.ENGLISH_TO[kind]) for kind in kinds], split)
    clauses = [dict(zip(kinds[:4], drawn[i : i + 4], strict=True)) for i in range(0, len(drawn), 4)]
    source, target = ("english", language) if direction == "to" else (language, "english")
    said, translated = (
        " ".join(
            f" {_word(lang, 'function', 'and')} " * (i > 0)
            + _clause(lang, clause, bool(with_adverb) and i == 0, mark + str(i))
            for i, clause in enumerate(clauses)
        )
        for lang, mark in ((source, "="), (target, "<"))
    )
    return marked("translation", frame, drawn, f"{source} : {said} . {target} : {translated} .")


def _clause(language: str, clause: dict[str, str], with_adverb: bool, mark: str) -> str:
    """One clause in the order of the language, its content words marked by their kind and the clause's number."""
    order = {
        "english": "adverb the adjective noun verb",
        "german": "adverb verb the adjective noun" if with_adverb else "the adjective noun verb",
    }.get(language, "the noun adjective verb adverb")
    words = [
        _word(language, "function", "the") if kind == "the" else f"{_word(language, kind, clause[kind])}{mark}{kind}"
        for kind in order.split()
        if kind != "adverb" or with_adverb
    ]
    return " ".join(words)


def _word(language: str, kind: str, english: str) -> str:
    return english if language == "english" else w.ENGLISH_TO[kind][english][w.LANGUAGES.index(language)]


def repetition(rng: random.Random, split: str) -> Document:
    """A random sequence repeated once: the cause of each word of the repetition is its first occurrence."""
    sequence = draw(rng, "repetition", [w.REPEATABLE] * rng.randint(5, 20), split)
    first = [f"{word}={i}" for i, word in enumerate(sequence)]
    second = [sequence[0], *(f"{word}<{i}" for i, word in enumerate(sequence) if i)]
    return marked("repetition", (len(sequence),), sequence, " ".join([*first, *second]))


def lorenz_orbit(n: int, rng: np.random.Generator) -> series.Series:
    """A part of a Lorenz orbit from anywhere on the attractor, because the start of all orbits is similar and would be memorised."""
    skip = int(rng.integers(200, 3000))
    return series.lorenz(n + skip, rng, dt=float(rng.uniform(0.01, 0.02)))[skip:]


SERIES_KINDS: dict[str, Callable[[int, np.random.Generator], series.Series]] = {
    "lorenz": lorenz_orbit, "logistic": series.logistic_map, "brownian": series.brownian, "sine": series.sine,
}  # fmt: skip


def number_series(rng: random.Random, split: str) -> Document:
    """``29 , 30 , 31 , ...``: a scaled Lorenz, logistic, Brownian or sine series; its causes are not known."""
    kind, n = rng.choice(list(SERIES_KINDS)), rng.choice([64, 64, 96, 180])
    generator = np.random.default_rng([rng.getrandbits(32), split == "held_out"])
    values = series.to_integers(SERIES_KINDS[kind](n, generator))
    return marked("series", (kind, n), (), " ".join(f"{value} ," for value in values))


TASKS: dict[str, Callable[[random.Random, str], Document]] = {
    "agreement": agreement, "assistant": assistant, "politics": politics, "detective": detective,
    "translation": translation, "repetition": repetition, "series": number_series,
}  # fmt: skip


def documents(task: str, split: str, seed: int) -> Iterator[Document]:
    """An endless, seeded stream of documents of one task."""
    rng = random.Random(f"{task} {split} {seed}")
    while True:
        yield TASKS[task](rng, split)
