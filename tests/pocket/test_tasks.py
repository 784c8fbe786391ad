"""The corpus: its causes are causes, its splits do not overlap, and it says the same every time."""

import random
from collections.abc import Callable, Sequence
from itertools import islice

import pytest

import jscope_tl as js
from jscope_tl.pocket import words as w
from jscope_tl.pocket.corpus import Document
from jscope_tl.pocket.tasks import TASKS, documents

pytestmark = pytest.mark.newest_line

PLURAL_TO_SINGULAR = {many: one for one, many in w.SINGULAR_TO_PLURAL.items()}
NOUNS = set(w.NOUN_FORMS)
KINDS: list[Sequence[str]] = [
    sorted(NOUNS), list(w.TIME_TO_COPULA), w.THING_ADJECTIVES, list(w.VICE_TO_VIRTUE), list(w.REGION_TO_POLITICS),
    list(w.UNIVERSITY_TO_POLITICS), ["home", "school"], w.FOODS, list(w.WEAPON_TO_TRADE), w.ORDINALS,
]  # fmt: skip
"""Words that can stand for each other in a frame."""


def after(words: Sequence[str], word: str) -> str:
    return words[words.index(word) + 1]


def verb(words: Sequence[str]) -> str:
    head = next(word for word in words if word in NOUNS)
    return w.TIME_TO_COPULA.get(words[0], ("is", "are"))[head in PLURAL_TO_SINGULAR]


def virtue(words: Sequence[str]) -> str:
    return w.VICE_TO_VIRTUE[after(words, "or") if words[-1] == "and" else after(words, "never")]


def label(words: Sequence[str]) -> str:
    region = next((w.REGION_TO_POLITICS[word] for word in words if word in w.REGION_TO_POLITICS), "")
    university = next((w.UNIVERSITY_TO_POLITICS[word] for word in words if word in w.UNIVERSITY_TO_POLITICS), "")
    return university if "school" in words or not region else region


def killer(words: Sequence[str]) -> str:
    listed = [word for word in words if word in w.WEAPON_TO_TRADE][:3]
    if "blood" in words:
        return w.WEAPON_TO_TRADE[words[words.index("on") + 2]]
    pointed = words[words.index("bloody") - 2]
    return w.WEAPON_TO_TRADE[listed[w.ORDINALS.index(pointed)] if pointed in w.ORDINALS else pointed]


RULES: dict[str, Callable[[Sequence[str]], str]] = {
    "agreement": verb, "assistant": virtue, "politics": label, "detective": killer
}  # fmt: skip
"""Each task's rule, read off nothing but the words before the answer."""


def some(task: str, split: str, n: int = 300) -> list[Document]:
    return list(islice(documents(task, split, 0), n))


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("task", RULES)
def test_causes_decide_and_nothing_else_does(task: str, split: str) -> None:
    rng = random.Random(0)
    for doc in some(task, split):
        for at, causes in doc.answers.items():
            prompt = doc.words[:at]
            assert RULES[task](prompt) == doc.words[at]
            for i, word in enumerate(prompt):
                for kind in (kind for kind in KINDS if word in kind):
                    others = [other for other in kind if other not in prompt]
                    swaps = [
                        [*prompt[:i], other, *prompt[i + 1 :]] for other in rng.sample(others, min(12, len(others)))
                    ]
                    changed = any(RULES[task](swap) != doc.words[at] for swap in swaps)
                    if i not in causes:
                        assert not changed, (prompt, word)
                    else:
                        assert changed, (prompt, word)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_translations_come_from_their_cause(split: str) -> None:
    table = {english: others for kind in w.ENGLISH_TO.values() for english, others in kind.items()}
    for doc in some("translation", split):
        language, direction = str(doc.frame[0]), doc.frame[1]
        for at, (cause,) in doc.answers.items():
            source, answer = doc.words[cause], doc.words[at]
            english, foreign = (source, answer) if direction == "to" else (answer, source)
            assert table[english][w.LANGUAGES.index(language)] == foreign
            assert doc.words[: doc.words.index(".")].count(source) == 1


def test_translations_are_one_to_one() -> None:
    for i in range(len(w.LANGUAGES)):
        foreign = [others[i] for kind in w.ENGLISH_TO.values() for others in kind.values()]
        assert len(set(foreign)) == len(foreign)


def test_repetitions_repeat_their_cause() -> None:
    for doc in some("repetition", "held_out"):
        for at, (cause,) in doc.answers.items():
            assert doc.words[cause] == doc.words[at]
            assert doc.words[cause - 1] == doc.words[at - 1]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_splits_share_nothing(task: str) -> None:
    train, held_out = (some(task, split, 1000) for split in ("train", "held_out"))
    assert not {" ".join(doc.words) for doc in train} & {" ".join(doc.words) for doc in held_out}
    if task != "series":
        assert not {doc.combination for doc in train} & {doc.combination for doc in held_out}
    if task not in ("repetition", "series"):  # there a frame is no more than a length
        assert not {doc.frame for doc in train} & {doc.frame for doc in held_out}


@pytest.mark.parametrize("task", TASKS)
def test_documents_are_seeded_and_in_the_lexicon(task: str) -> None:
    for split in ("train", "held_out"):
        docs = some(task, split, 50)
        assert [doc.words for doc in docs] == [doc.words for doc in some(task, split, 50)]
        assert {word for doc in docs for word in doc.words} <= set(w.LEXICON)


@pytest.mark.parametrize("task", TASKS)
def test_prompts_line_up_with_the_models_tokens(pocket: object, task: str) -> None:
    prompts = js.pocket_prompts(task, 20, seed=3)
    assert prompts == js.pocket_prompts(task, 20, seed=3) != js.pocket_prompts(task, 20, seed=4)
    for prompt in prompts:
        tokens = pocket.to_str_tokens(prompt.text)  # type: ignore[attr-defined]
        assert tokens[0] == "<bos>"
        assert "".join(tokens[1:]) == " " + prompt.text
        assert bool(prompt.causes) == (task != "series")
        assert all(0 < cause < len(tokens) for cause in prompt.causes)
        if task == "repetition":
            assert tokens[prompt.causes[0]] == prompt.target


def test_bad_requests() -> None:
    with pytest.raises(js.InputError, match="Did you mean 'agreement'"):
        js.pocket_prompts("agrement", 3)
    assert js.pocket_tasks() == list(TASKS)
