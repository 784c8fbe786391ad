"""Swaps: which words of a prompt determine a model's answer, found by swapping every slot for other words of its kind."""

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
"""The lead in nats that the most probable token must have; rounding could change the order of closer tokens."""


@dataclass(frozen=True)
class Swap:
    """The model's prediction with another word in a slot.

    Attributes:
        word: the other word.
        token: the id of the other word.
        answer: the most probable next token with the other word.
        lead: log-probability of the original answer minus that of the most probable other token; below 0 the answer changed.
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
        position: the position of the token, counting BOS.
        kind: the kind of words for which it is swapped.
        word: the original word.
        role: the role by construction: ``"cause"``, ``"open"`` or ``"inert"``.
        swaps: three swaps, or fewer if the kind has fewer words.
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
        """Whether no swap changes the answer."""
        return all(swap.lead > MARGIN for swap in self.swaps)

    @property
    def kl(self) -> float:
        """The mean of ``KL(p ‖ p_swapped)`` over the swaps."""
        return sum(swap.kl for swap in self.swaps) / len(self.swaps)


@dataclass(frozen=True)
class Read:
    """A candidate with its tokens.

    Attributes:
        tokens: ``[pos]``.
        answers: the ids of the candidate's answers, in the same order.
    """

    candidate: Candidate
    tokens: Int[Tensor, "pos"]
    answers: tuple[int, ...]


class Dropped(Exception):
    """Raised if a candidate is not suitable for this model; the message has the reason."""


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
    """Whether a word is a single token with this text, alone or after a space; a slot needs this."""
    tokenized = [list(view.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (word, f" {word}")]
    return any(len(ids) == 1 and _reads(view, ids[0], word) for ids in tokenized)


def following(view: ModelView, text: str, tokens: Int[Tensor, "pos"], answer: str) -> int:
    """The id of an answer.

    Raises:
        Dropped: the answer is not one token after the text.
    """
    whole = to_tokens(view, text + answer)
    if len(whole) != len(tokens) + 1 or not torch.equal(whole[:-1], tokens):
        raise Dropped(NOT_ONE)
    return int(whole[-1])


def said(view: ModelView, prompts: Sequence[Read]) -> list[tuple[int, float]]:
    """The most probable token after each prompt, and its lead in log-probability; prompts of the same length run in one batch."""
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
    """The position of a slot, and the prompt with each of its other words that is one token at that position.

    Raises:
        Dropped: the word of the slot is not one token, or too few other words are.
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
    """Some slots with their swaps, for a prompt with the next-token log-probabilities ``log_p``; all swaps run in batches."""
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
