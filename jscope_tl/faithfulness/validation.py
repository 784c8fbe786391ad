"""Validation of candidates on a model: which are kept, how many of each family, and why others are dropped."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from typing import Any

from einops import rearrange

from jscope_tl.faithfulness.candidates import Candidate, candidates
from jscope_tl.faithfulness.families import Family
from jscope_tl.faithfulness.pocket_families import PocketFamily
from jscope_tl.faithfulness.swaps import (
    MARGIN,
    OTHER,
    Dropped,
    Read,
    Slot,
    following,
    is_one_token,
    log_probs,
    read,
    said,
    swapped,
)
from jscope_tl.model.prompts import to_str_tokens
from jscope_tl.model.view import ModelView

GIVEN_UP = 48
"""The number of candidates after which a template without a validated prompt is given up."""
AT_ONCE = 3
"""The number of slots whose swaps run in one batch."""
TRIES = 8
"""The largest number of candidates of one template for each requested prompt."""


@dataclass(frozen=True)
class ValidatedPrompt:
    """A prompt that a model completes correctly, and the words that determine the answer.

    Attributes:
        family: the name of its family.
        template: the number of its template within the family.
        text: the text before the predicted word.
        tokens: the token ids, with BOS if the model has one.
        answer, target: the most probable next token, as text and as id.
        alternative, baseline: the answer with which it is contrasted, as text and as id.
        slots: the words in slots and their swaps, in the order of the text.
    """

    family: str
    template: int
    text: str
    tokens: tuple[int, ...]
    answer: str
    target: int
    alternative: str
    baseline: int
    slots: tuple[Slot, ...]

    @property
    def causes(self) -> tuple[int, ...]:
        """Positions of the slots for which every swap changes the answer."""
        return tuple(slot.position for slot in self.slots if slot.decides)


@dataclass
class Found:
    """The validated prompts of one family, the number of its candidates, and the reasons for which others were dropped."""

    prompts: list[ValidatedPrompt] = field(default_factory=list)
    tried: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass
class _Source:
    """The candidates of one template."""

    stream: Iterator[Candidate]
    tried: int = 0
    kept: int = 0
    is_empty: bool = False

    def draw(self, n: int, limit: int) -> list[Candidate]:
        drawn = list(islice(self.stream, n))
        self.tried += len(drawn)
        self.is_empty = len(drawn) < n or self.tried >= limit or (not self.kept and self.tried >= GIVEN_UP)
        return drawn


def search(view: ModelView, family: Family | PocketFamily, n: int, seed: int, bar: Any) -> Found:
    """Up to ``n`` validated prompts of a family. No template gives more than twice its share as long as others can give prompts."""
    sources = [_Source(stream) for stream in _streams(view, family, seed)]
    found, share = Found(), -(-2 * n // len(sources))
    while len(found.prompts) < n:
        open_sources = [source for source in sources if not source.is_empty]
        asked = [source for source in open_sources if source.kept < share] or open_sources
        if not asked:
            break
        limit = share if asked[0].kept < share else n
        for source in asked:
            _from_one(
                view, family.name, source, min(limit - source.kept, n - len(found.prompts)), TRIES * n, found, bar
            )
    return found


def _streams(view: ModelView, family: Family | PocketFamily, seed: int) -> list[Iterator[Candidate]]:
    if isinstance(family, PocketFamily):
        return [family.candidates(seed)]
    is_usable = cache(partial(is_one_token, view))
    rngs = [random.Random(f"{family.name} {number} {seed}") for number in range(len(family.templates))]
    return [candidates(template, number, rngs[number], is_usable) for number, template in enumerate(family.templates)]


def _from_one(view: ModelView, family: str, source: _Source, wanted: int, limit: int, found: Found, bar: Any) -> None:
    """Validate some candidates of one template, until ``wanted`` prompts are found."""
    ready = _answered(view, source.draw(min(8, limit) if wanted > 0 else 0, limit), found)
    for prompt, answer in ready:
        if wanted <= 0:
            break
        try:
            found.prompts.append(_validated(view, family, prompt, answer))
        except Dropped as reason:
            found.dropped[str(reason)] += 1
        else:
            source.kept, wanted = source.kept + 1, wanted - 1
            bar.update(1)


def _answered(view: ModelView, drawn: Sequence[Candidate], found: Found) -> list[tuple[Read, int]]:
    """The candidates that the model completes correctly, with the number of the model's answer."""
    prompts = []
    found.tried += len(drawn)
    for candidate in drawn:
        try:
            prompts.append(read(view, candidate))
        except Dropped as reason:
            found.dropped[str(reason)] += 1
    right = []
    for prompt, (token, lead) in zip(prompts, said(view, prompts), strict=True):
        if token in prompt.answers and lead > MARGIN:
            right.append((prompt, prompt.answers.index(token)))
        else:
            found.dropped[OTHER] += 1
    return right


def _validated(view: ModelView, family: str, prompt: Read, number: int) -> ValidatedPrompt:
    candidate, target = prompt.candidate, prompt.answers[number]
    slots = _checked(view, prompt, target)
    text = candidate.text()
    baseline = (
        following(view, text, prompt.tokens, candidate.alternatives[number])
        if candidate.alternatives
        else following(view, text, prompt.tokens, slots[0].swaps[0].answer)
    )
    return ValidatedPrompt(
        family, candidate.template, text, tuple(prompt.tokens.tolist()), to_str_tokens(view, [target])[0], target,
        to_str_tokens(view, [baseline])[0], baseline, tuple(sorted(slots, key=lambda slot: slot.position)),
    )  # fmt: skip


def _checked(view: ModelView, prompt: Read, target: int) -> list[Slot]:
    """All slots with their swaps, the causes first; a few at a time, because most candidates that fail do so early."""
    roles = prompt.candidate.roles
    order = sorted(range(len(roles)), key=lambda i: ("cause", "inert", "open").index(roles[i]))
    parts = [order[: roles.count("cause")]]
    parts += [order[start : start + AT_ONCE] for start in range(len(parts[0]), len(order), AT_ONCE)]
    log_p = log_probs(view, rearrange(prompt.tokens, "pos -> 1 pos"))[0]
    slots: list[Slot] = []
    for part in parts:
        slots += swapped(view, prompt, target, log_p, part)
        for slot in slots[-len(part) :]:
            if slot.role == "cause" and not slot.decides:
                raise Dropped("a swap of the cause leaves the answer as it is")
            if slot.role == "inert" and not slot.is_inert:
                raise Dropped(f"a word that must not matter does: {slot.kind}")
    return slots
