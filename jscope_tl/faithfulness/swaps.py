"""Which of a prompt's words decide what a model says: every slot is swapped for other words of its kind."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.engine.batches import in_batches
from jscope_tl.engine.state import divergence
from jscope_tl.faithfulness.candidates import Candidate
from jscope_tl.model.prompts import to_str_tokens, to_tokens
from jscope_tl.model.running import Passes, ends_at, undisturbed
from jscope_tl.model.view import ModelView

SWAPS = 3
MARGIN = 0.01
"""Nats by which the most probable token must lead: what is closer is decided by rounding."""


@dataclass(frozen=True)
class Swap:
    """What the model says with another word in a slot.

    Attributes:
        word: the other word.
        token: its id.
        answer: the most probable next token then.
        lead: log-probability of the unswapped prompt's answer, less that of the best other token: below 0 the answer changed.
        kl: ``KL(p ‖ p_swapped)`` of the whole next-token distribution, in nats.
    """

    word: str
    token: int
    answer: str
    lead: float
    kl: float


@dataclass(frozen=True)
class Slot:
    """A token of a prompt and its swaps.

    Attributes:
        position: of the token, BOS counted.
        kind: what it is swapped for.
        word: that stands there.
        role: what the construction says: ``"cause"``, ``"open"`` or ``"inert"``.
        swaps: three, or as many as the kind has.
    """

    position: int
    kind: str
    word: str
    role: str
    swaps: tuple[Swap, ...]

    @property
    def decides(self) -> bool:
        """Whether every swap changes the answer."""
        return all(swap.lead < -MARGIN for swap in self.swaps)

    @property
    def is_inert(self) -> bool:
        """Whether no swap changes it."""
        return all(swap.lead > MARGIN for swap in self.swaps)

    @property
    def kl(self) -> float:
        """Mean over the swaps of ``KL(p ‖ p_swapped)``."""
        return sum(swap.kl for swap in self.swaps) / len(self.swaps)


@dataclass(frozen=True)
class Read:
    """A candidate as a model reads it.

    Attributes:
        tokens: ``[pos]``.
        answers: ids, in the order of the candidate's.
    """

    candidate: Candidate
    tokens: Int[Tensor, "pos"]
    answers: tuple[int, ...]


class Dropped(Exception):
    """A candidate is no prompt for this model; the message says why."""


NOT_ONE = "a word is not one token"
OTHER = "the model says something else"


def read(view: ModelView, candidate: Candidate) -> Read:
    """The candidate's tokens.

    Raises:
        Dropped: an answer is not one token.
    """
    text = candidate.text()
    tokens = to_tokens(view, text)
    ids = tuple(following(view, text, tokens, answer) for answer in candidate.answers)
    return Read(candidate, tokens, ids)


def is_one_token(view: ModelView, word: str) -> bool:
    """Whether a word is one token that reads so, by itself or behind a blank: only then can a slot hold it."""
    tokenized = [list(view.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (word, f" {word}")]
    return any(len(ids) == 1 and _reads(view, ids[0], word) for ids in tokenized)


def following(view: ModelView, text: str, tokens: Int[Tensor, "pos"], answer: str) -> int:
    """Id of an answer, where it is one token behind the text."""
    whole = to_tokens(view, text + answer)
    if len(whole) != len(tokens) + 1 or not torch.equal(whole[:-1], tokens):
        raise Dropped(NOT_ONE)
    return int(whole[-1])


def said(view: ModelView, prompts: Sequence[Read]) -> list[tuple[int, float]]:
    """The most probable token after each prompt, and by how much it leads; prompts of one length run side by side."""
    found: dict[int, tuple[int, float]] = {}
    for length in sorted({len(prompt.tokens) for prompt in prompts}):
        alike = [i for i, prompt in enumerate(prompts) if len(prompt.tokens) == length]
        best = log_probs(view, torch.stack([prompts[i].tokens for i in alike])).topk(2)
        leads = best.values[:, 0] - best.values[:, 1]
        found |= dict(zip(alike, zip(best.indices[:, 0].tolist(), leads.tolist(), strict=True), strict=True))
    return [found[i] for i in range(len(prompts))]


def log_probs(view: ModelView, rows: Int[Tensor, "n pos"]) -> Float[Tensor, "n d_vocab"]:
    """Next-token log-probabilities after each row, float64, on the CPU."""
    last = rows.shape[1] - 1

    def run(part: slice) -> Float[Tensor, "batch d_vocab"]:
        with undisturbed(view, []), ends_at(view, [], last) as ends:
            return ends(rows[part], Passes())[1].double().cpu().log_softmax(-1)

    return torch.cat([*in_batches(run, len(rows), view.prompts_at_once(rows.shape[1], []))])


def swapped_rows(view: ModelView, prompt: Read, slot: int) -> tuple[int, list[tuple[str, Int[Tensor, "pos"]]]]:
    """The position of a slot, and the prompt with each of its other words that is one token there.

    Raises:
        Dropped: its own word is not one token, or too few others are.
    """
    candidate, rows, position = prompt.candidate, [], None
    for word in candidate.others[slot]:
        tokens = to_tokens(view, candidate.text(slot, word))
        if len(tokens) != len(prompt.tokens):
            continue
        differing = (tokens != prompt.tokens).nonzero().flatten().tolist()
        if len(differing) == 1 and position in (None, differing[0]) and _reads(view, int(tokens[differing[0]]), word):
            position = differing[0]
            rows.append((word, tokens))
        if len(rows) == SWAPS:
            break
    if position is None or len(rows) < min(SWAPS, len(candidate.others[slot])):
        raise Dropped(NOT_ONE)
    if not _reads(view, int(prompt.tokens[position]), candidate.words[slot]):
        raise Dropped(NOT_ONE)
    return position, rows


def _reads(view: ModelView, token: int, word: str) -> bool:
    return to_str_tokens(view, [token])[0].strip() == word


def swapped(
    view: ModelView, prompt: Read, answer: int, log_p: Float[Tensor, "d_vocab"], slots: Sequence[int]
) -> list[Slot]:
    """What swaps of some slots do to a prompt whose next-token log-probabilities are ``log_p``; all swaps run side by side."""
    places = [swapped_rows(view, prompt, slot) for slot in slots]
    rows = [row for _, found in places for row in found]
    log_q = log_probs(view, torch.stack([tokens for _, tokens in rows]))
    top = log_q.topk(2)
    best_other = torch.where(top.indices[:, 0] == answer, top.values[:, 1], top.values[:, 0])
    numbers = (log_q[:, answer] - best_other, divergence(log_p, log_q).clamp_min(0))
    made = iter(zip(to_str_tokens(view, top.indices[:, 0].tolist()), *(some.tolist() for some in numbers), strict=True))
    candidate = prompt.candidate
    return [
        Slot(position, candidate.kinds[slot], candidate.words[slot], candidate.roles[slot],
             tuple(Swap(word, int(tokens[position]), *next(made)) for word, tokens in found))
        for slot, (position, found) in zip(slots, places, strict=True)
    ]  # fmt: skip
