"""Prompts with known causes for the pocket model, for the evaluation of scopes."""

import random
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from jscope_tl.errors import InputError, nearest, whole
from jscope_tl.pocket.corpus import Document
from jscope_tl.pocket.tasks import TASKS, documents


@dataclass(frozen=True)
class PocketPrompt:
    """A prompt, the word that follows it, and the positions that decide this word.

    Attributes:
        task: one of `pocket_tasks`.
        text: the prompt for `attribute`.
        target: the correct next word, as a target string (with its leading space).
        causes: positions in the pocket model's tokens of ``text``, with BOS at 0. The word at each of them can be replaced by
            another one of its kind that changes the target, which is not possible for any other content word. Empty for number
            series, whose causes are not known.
    """

    task: str
    text: str
    target: str
    causes: tuple[int, ...]


def pocket_tasks() -> list[str]:
    """The names of the tasks that the pocket model was trained on."""
    return list(TASKS)


def pocket_prompts(
    task: str, n: int, *, split: Literal["held_out", "train"] = "held_out", seed: int = 0
) -> list[PocketPrompt]:
    """``n`` seeded prompts of one task.

    Args:
        task: one of `pocket_tasks`.
        n: the number of prompts.
        split: ``"held_out"``: sentence frames and word combinations that were not in the training data; ``"train"``: those
            that the model was trained on.
        seed: the random seed; the same seed gives the same prompts on every machine.

    Raises:
        InputError: the task or the split is unknown.

    Example:
        >>> import jscope_tl as js
        >>> prompt = js.pocket_prompts("assistant", 1)[0]
        >>> len(prompt.causes)
        1
    """
    if not isinstance(task, str) or task not in TASKS:
        raise InputError(f"There is no task {task!r}.{nearest(task, TASKS)} Known: {', '.join(TASKS)}.")
    if whole(n) is None or n < 0:
        raise InputError(f"n is the number of prompts, 0 or more; got {n!r}.")
    if split not in ("held_out", "train"):
        raise InputError(f"split must be 'held_out' or 'train', not {split!r}.")
    rng = random.Random(f"prompt {seed}")
    answered = (doc for doc in documents(task, split, seed) if doc.answers or task == "series")
    return [_cut(doc, rng) for doc in islice(answered, n)]


def _cut(doc: Document, rng: random.Random) -> PocketPrompt:
    """The document up to one of its answers; a series up to a number in its second half."""
    if doc.answers:
        at = rng.choice(list(doc.answers))
    else:
        at = 2 * rng.randrange(len(doc.words) // 4, len(doc.words) // 2)
    causes = tuple(i + 1 for i in doc.answers.get(at, ()))
    return PocketPrompt(doc.task, " ".join(doc.words[:at]), f" {doc.words[at]}", causes)
