"""Families of prompts whose cause is known by construction. This module has only declarations.

A template is text with slots. ``{a:color}`` is a word of the kind "color" with the name ``a``; ``{a}`` is the same word again,
``{capital(a)}`` is the word that a relation assigns to it, and ``{a+2}`` is the second word after it in the order of its kind. A mark
gives the expected role of a slot: ``!`` is the cause, all of whose swaps change the answer; ``?`` is a word that may change the answer;
a slot without a mark must never change it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """One sentence frame.

    Attributes:
        text: the text before the predicted word.
        answer: the predicted word, with its leading space.
        alternative: the answer with which it is contrasted (``{answer}`` stands for the answer); None: the model's prediction after
            the first swap of the cause.
    """

    text: str
    answer: str
    alternative: str | None = None


@dataclass(frozen=True)
class Family:
    """Templates of the same task."""

    name: str
    templates: tuple[Template, ...]


def _family(name: str, answer: str, *texts: str, alternative: str | None = None) -> Family:
    return Family(name, tuple(Template(text, answer, alternative) for text in texts))


OTHER_FORM = " {counterpart(answer)}"

INDIRECT_OBJECT = _family(
    "indirect object",
    " {io}",
    "When {io:name!} and {s:name?} went to the {p:place} to buy a {g:gift}, {s?} gave the {h:gift} to",
    "Then, {s:name?} and {io:name!} had a long talk at the {p:place}. Afterwards {s?} gave a {c:color} {g:gift} to",
    "After the {e:event} on {d:day}, {io:name!} and {s:name?} got a {g:gift} at the {p:place}. {s?} decided to give it to",
    "The {e:event} was over, so {s:name?} and {io:name!} left the {p:place}. On the way, {s?} showed the {q:quality} {g:gift} to",
    "In {m:month}, {io:name!} and {s:name?} met a {j:job} at the {p:place}. Then {s?} gave a {q:quality} {g:gift} to",
    "The {j:job} saw {s:name?} and {io:name!} in the {p:place}. There {s?} gave the {q:quality} {g:gift} to",
    alternative=" {s}",
)
AGREEMENT = _family(
    "agreement",
    " {verb(head)}",
    "Everyone in {c:city} knows that the {q:quality} {head:noun!} in front of the {x:noun} at the {p:place}",
    "On {d:day} the {j:job} heard that the {head:noun!} in front of the {c:color} {x:noun} at the {p:place}",
    "In {m:month}, {n:name} noticed that the {q:quality} {head:noun!} next to the {c:color} {x:noun}",
    "The {j:job} told {n:name} that the {head:noun!} in front of the {q:quality} {x:noun} at the {p:place}",
    "It was clear to {n:name} and the {j:job} that the {q:quality} {head:noun!} behind the {x:noun} at the {p:place}",
    "{n:name} asked on {d:day} if the {q:quality} {head:noun!} that {m:name} bought with the {x:noun}",
    alternative=OTHER_FORM,
)
KEY_VALUE = Family(
    "key and value",
    tuple(
        Template(text, f" {{{value}}}", f" {{{other}}}")
        for text, value, other in (
            ("{a:name?} lives in {v:city!}. {b:name} lives in {w:city}. {c:name} lives in {x:city}. Again: {a?} lives in", "v", "x"),
            ("The {a:job} bought the {v:food}. The {b:job?} bought the {w:food!}. The {c:job} bought the {x:food}. So the {b?} bought the", "w", "v"),
            ("{a:name} plays with the {v:animal}, {b:name?} plays with the {w:animal!}. On {d:day}, {b?} plays with the", "w", "v"),
            ("{a:name?} has a {v:color!} {t:thing} and {b:name} has a {w:color} {t}. In {m:month}, {a?} has a", "v", "w"),
            ("{a:animal?}: {v:number!}, {b:animal}: {w:number}, {c:animal}: {x:number}, {d:animal}: {y:number}. Again, {a?}:", "v", "y"),
            ("The {a:job} ordered the {v:food} and the {b:job?} ordered the {w:food!}. The waiter in {c:city} brought the {b?} the", "w", "v"),
            ("Room {a:letter?} has a {v:color!} door. Room {b:letter} has a {w:color} door. Room {c:letter} has a {x:color} door. Again, room {a?} has a", "v", "x"),
            ("{a:name} studies {v:subject}, {b:name?} studies {w:subject!} and {c:name} studies {x:subject}. As I said, {b?} studies", "w", "x"),
        )
    ),
)  # fmt: skip
INDUCTION = Family(
    "induction",
    tuple(
        Template(text, answer)
        for text, answer in (
            ("The animals are {a:animal}, {b:animal?}, {c:animal!}, {d:animal}, {e:animal}. The same animals are {a}, {b?},", " {c}"),
            ("{n:name} wrote: {a:color} {b:fruit?} {c:job!} {d:animal} {e:place}. Then {m:name} wrote: {a} {b?}", " {c}"),
            ("The names: {a:name} {b:name} {c:name?} {d:name!} {e:name} {f:name}. The same names: {a} {b} {c?}", " {d}"),
            ("The train stops in {a:city}, {b:city?}, {c:city!}, {d:city}, {e:city}. Once more: the train stops in {a}, {b?},", " {c}"),
            ("The list: {a:thing} {b:food} {c:letter?} {d:thing!} {e:day} {f:food}. The same list: {a} {b} {c?}", " {d}"),
            ("The code is {a:number} {b:letter} {c:number?} {d:letter!} {e:number} {f:letter}. Again, the code is {a} {b} {c?}", " {d}"),
            ("First the {a:job}, then the {b:job?}, then the {c:job!}, then the {d:job}. Again: first the {a}, then the {b?}, then the", " {c}"),
        )
    ),
)  # fmt: skip
CAPITALS = _family(
    "capitals",
    " {capital(x)}",
    "{n:name} and {m:name} traveled to {x:country!} in {s:season} and took many photos of the capital,",
    "The {j:job} from {o:country} moved to {x:country!} in {m:month} and found a house in the capital,",
    "On {d:day} the {j:job} told {n:name} that {x:country!} has a {q:quality} capital called",
    "The capital of {o:country} is {capital(o)}. The capital of {p:country} is {capital(p)}. The capital of {x:country!} is",
    "Geography is part of the {s:subject} lesson. The {j:job} said that {x:country!} has a capital called",
    "In {m:month} the {e:event} takes place in {x:country!}, more precisely in its capital city,",
)
GENDER = Family(
    "gendered pronoun",
    tuple(
        Template(text, answer, OTHER_FORM)
        for text, answer in (
            ("{x:man or woman!} came back from the {p:place} in {c:city} with a {q:quality} {g:gift} and said that", " {he(x)}"),
            ("The {q:quality} {t:thing} was near the {p:place}, and {x:man or woman!} bought it with money that", " {he(x)}"),
            ("In {m:month} the {x:male or female!} left the {q:quality} {p:place} in {c:city} and said that", " {he(x)}"),
            ("The {x:male or female!} sat on the {c:color} chair, ate {f:food} and waited for a letter from", " {his(x)}"),
            ("On {d:day} the {j:job} read a letter from {x:man or woman!}. In the letter about {s:subject},", " {he(x)}"),
            ("After the {e:event} at the {p:place}, the {x:male or female!} told the {j:job} that on {d:day}", " {he(x)}"),
            ("{x:man or woman!} was tired after the {e:event} in {c:city}, but on {d:day} the {j:job} noticed that", " {he(x)}"),
        )
    ),
)  # fmt: skip
ANTONYMS = _family(
    "antonyms",
    " {opposite(x)}",
    "{a:word with an opposite} - {opposite(a)}, {b:word with an opposite} - {opposite(b)}, {c:word with an opposite} - {opposite(c)}, "
    "{x:word with an opposite!} -",
    "Opposites:\n{a:word with an opposite}: {opposite(a)}\n{b:word with an opposite}: {opposite(b)}\n{c:word with an opposite}: "
    "{opposite(c)}\n{x:word with an opposite!}:",
    "The opposite of {a:word with an opposite} is {opposite(a)}. The opposite of {b:word with an opposite} is {opposite(b)}. The opposite "
    "of {x:word with an opposite!} is",
    "{n:name} says {a:word with an opposite}, {m:name} says {opposite(a)}. {n} says {b:word with an opposite}, {m} says {opposite(b)}. {n} "
    "says {x:word with an opposite!}, {m} says",
    "{n:name} and the {j:job} are not {a:word with an opposite} but {opposite(a)}, not {b:word with an opposite} but {opposite(b)}, not {x:word with an opposite!} but",
)
PLURALS = Family(
    "plurals",
    tuple(
        Template(text, answer)
        for text, answer in (
            ("One {a:animal}, two {animals(a)}. One {b:animal}, two {animals(b)}. One {x:animal!}, two", " {animals(x)}"),
            ("A table of plurals:\n{a:thing} -> {plural(a)}\n{b:thing} -> {plural(b)}\n{x:thing!} ->", " {plural(x)}"),
            ("{n:name} has a {a:thing}, {m:name} has two {plural(a)}. {n} has a {x:thing!}, {m} has two", " {plural(x)}"),
            ("First the {j:job} saw a {a:animal}, then many {animals(a)}. First the {j} saw a {x:animal!}, then many", " {animals(x)}"),
            ("Singular {a:thing}, plural {plural(a)}; singular {b:animal}, plural {animals(b)}; singular {x:thing!}, plural", " {plural(x)}"),
            ("In {c:city} there is one {a:thing}, in {d:city} there are many {plural(a)}. Here is one {x:animal!}, there are many", " {animals(x)}"),
        )
    ),
)  # fmt: skip
DAYS = Family(
    "days",
    tuple(
        Template(text, answer)
        for text, answer in (
            ("{n:name} counts the days in {c:city}: {a:day?}, {a+1?}, {a+2?}, {a+3!},", " {a+4}"),
            ("The {p:place} opens on {a:day?}, the {q:place} on {a+1?}, the {r:place} on {a+2!}, and the {s:place} on", " {a+3}"),
            ("The day after {a:day} is {a+1}. The day after {b:day} is {b+1}. The day after {x:day!} is", " {x+1}"),
            ("{n:name} works on {a:day?}, {m:name} works on {a+1?}, {o:name} works on {a+2!} and {p:name} works on", " {a+3}"),
            ("The {j:job} was in {c:city} on {a:day?}, in {d:city} on {a+1?}, in {e:city} on {a+2!} and in {f:city} on", " {a+3}"),
            ("Menu: {f:food} on {a:day?}, {g:food} on {a+1?}, {h:food} on {a+2!}, {i:food} on", " {a+3}"),
        )
    ),
)  # fmt: skip
MONTHS = Family(
    "months",
    tuple(
        Template(text, answer)
        for text, answer in (
            ("{n:name} counts the months in {c:city}: {a:month?}, {a+1?}, {a+2?}, {a+3!},", " {a+4}"),
            ("The {e:event} is in {a:month?}, the {f:event} in {a+1?}, the {g:event} in {a+2!}, and the {h:event} in", " {a+3}"),
            ("The month after {a:month} is {a+1}. The month after {b:month} is {b+1}. The month after {x:month!} is", " {x+1}"),
            ("{n:name} was born in {a:month?}, {m:name} in {a+1?}, {o:name} in {a+2!} and {p:name} in", " {a+3}"),
            ("{a:month} is followed by {a+1}, {b:month} is followed by {b+1}, and {x:month!} is followed by", " {x+1}"),
            ("They sell {f:fruit} in {a:month?}, {g:fruit} in {a+1?}, {h:fruit} in {a+2!}, {i:fruit} in", " {a+3}"),
        )
    ),
)  # fmt: skip
LETTERS = Family(
    "letters",
    tuple(
        Template(text, answer)
        for text, answer in (
            ("{n:name} says the alphabet to the {j:job} in {c:city}: {a:letter?} {a+1?} {a+2?} {a+3!}", " {a+4}"),
            ("Row {a:letter?} is for {n:name}, row {a+1?} is for {m:name}, row {a+2!} is for {o:name}, row", " {a+3}"),
            ("The letter after {a:letter} is {a+1}. The letter after {b:letter} is {b+1}. The letter after {x:letter!} is", " {x+1}"),
            ("Team {a:letter?} plays in {c:city}, team {a+1?} plays in {d:city}, team {a+2!} plays in {e:city}, team", " {a+3}"),
            ("Section {a:letter?}: {s:subject}, section {a+1?}: {t:subject}, section {a+2!}: {u:subject}, section", " {a+3}"),
            ("Box {a:letter?} holds the {f:things}, box {a+1?} holds the {g:things}, box {a+2!} holds the {h:things}, box", " {a+3}"),
        )
    ),
)  # fmt: skip
NUMBER_WORDS = Family(
    "number words",
    tuple(
        Template(text, answer)
        for text, answer in (
            ("{n:name} counts the {t:things} in {c:city}: {a:number?}, {a+1?}, {a+2?}, {a+3!},", " {a+4}"),
            ("{n:name} has {a:number?} {x:things}, {m:name} has {a+1?} {y:things}, {o:name} has {a+2!} {z:things} and {p:name} has", " {a+3}"),
            ("The number after {a:number} is {a+1}. The number after {b:number} is {b+1}. The number after {x:number!} is", " {x+1}"),
            ("Chapter {a:number?} is about {s:subject}, chapter {a+1?} about {t:subject}, chapter {a+2!} about {u:subject}, chapter", " {a+3}"),
            ("Step {a:number?}: buy the {f:food}. Step {a+1?}: wash the {g:food}. Step {a+2!}: eat the {h:food}. Step", " {a+3}"),
            ("Room {a:number?}: the {j:job}. Room {a+1?}: the {k:job}. Room {a+2!}: the {l:job}. Room", " {a+3}"),
        )
    ),
)  # fmt: skip
GREATER_THAN = _family(
    "greater than",
    "{later(x)}",
    "The {e:event} of the {j:job} in {c:city} lasted from the year 17{x:digit!}2 to the year 17",
    "{n:name} was a {j:job} from {c:city} who lived from 18{x:digit!}3 until 18",
    "The {q:quality} {p:place} in {c:city} was open from 19{x:digit!}1 to 19",
)
TRANSLATION = Family(
    "translation",
    tuple(
        Template(text, answer)
        for text, answer in (
            ("{a:English word} = {french(a)}, {b:English word} = {french(b)}, {c:English word} = {french(c)}, {x:English word!} =", " {french(x)}"),
            ("English: {a:English word}, French: {french(a)}. English: {b:English word}, French: {french(b)}. English: {x:English word!}, French:", " {french(x)}"),
            ("English: {a:English word}, Spanish: {spanish(a)}. English: {b:English word}, Spanish: {spanish(b)}. English: {x:English word!}, Spanish:", " {spanish(x)}"),
            ("{n:name} learns French. The word {a:English word} is {french(a)}, the word {b:English word} is {french(b)}, and the word {x:English word!} is", " {french(x)}"),
            ("English: {a:English word}, German: {german(a)}. English: {b:English word}, German: {german(b)}. English: {x:English word!}, German:", " {german(x)}"),
            ("{n:name} learns Spanish. The word {a:English word} is {spanish(a)}, the word {b:English word} is {spanish(b)}, and the word {x:English word!} is", " {spanish(x)}"),
        )
    ),
)  # fmt: skip

FAMILIES = {
    family.name: family
    for family in (
        INDIRECT_OBJECT, AGREEMENT, KEY_VALUE, INDUCTION, CAPITALS, GENDER, ANTONYMS, PLURALS, DAYS, MONTHS, LETTERS, NUMBER_WORDS,
        GREATER_THAN, TRANSLATION,
    )
}  # fmt: skip
"""The families by name."""
