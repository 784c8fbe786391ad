"""Directions of ``y`` decoded into tokens: what a small step along them does to the logits, or to the probabilities."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.model.view import ModelView
from jscope_tl.model.prompts import to_str_tokens
from jscope_tl.engine.state import State

MOST = 20
"""Tokens that are kept at each end."""
BLOCK = 2**24
"""Changes that are held at once, ``directions x d_vocab``."""
TIE = 0.01
"""Relative difference of two changes that are taken for the same size."""
VOCAB_BLOCK = 8192
"""Tokens whose unembedding is brought to full precision at once."""


@dataclass(frozen=True)
class DecodedDirection:
    """What a step of size one along an output direction does, to first order.

    Attributes:
        position: of the input that moves the output along this direction.
        i: which direction, 0 is the leading one.
        singular_value: its gain.
        rises: tokens that rise most and by how much, largest first; a rise may be negative where fewer tokens rise.
        falls: tokens that fall most, largest fall first.
        unit: of the changes.
    """

    position: int
    i: int
    singular_value: float
    rises: list[tuple[str, float]]
    falls: list[tuple[str, float]]
    unit: str


@dataclass(frozen=True)
class Decodings:
    """The ends of the decoded change of every direction.

    Attributes:
        signs: which make the largest change of each direction a rise.
        ids: of the tokens that rise most, then of those that fall most.
        changes: theirs, in the same order, of the direction with its largest change made positive.
        texts: of every token that occurs.
    """

    signs: Float[Tensor, "n"]
    ids: Int[Tensor, "n 2 most"]
    changes: Float[Tensor, "n 2 most"]
    texts: dict[int, str]

    def ends(self, row: int, k: int) -> list[list[tuple[str, float]]]:
        """The ``k`` first of both ends, as text."""
        return [
            [(self.texts[token], change) for token, change in zip(ids[:k], changes[:k], strict=True)]
            for ids, changes in zip(self.ids[row].tolist(), self.changes[row].tolist(), strict=True)
        ]


def decoded(directions: Float[Tensor, "n d_model"], state: State, view: ModelView, probabilities: bool) -> Decodings:
    """Every direction, with the sign that makes its largest change a rise (of two alike, that of the more probable token)."""
    at_once = max(1, BLOCK // len(state.logits))
    parts = [_ends(changes(some, state, probabilities), state.logits) for some in directions.split(at_once)]
    signs, ids, ends = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    seen = ids.unique().tolist()
    return Decodings(signs, ids, ends, dict(zip(seen, to_str_tokens(view, seen), strict=True)))


def changes(directions: Float[Tensor, "n d_model"], state: State, probabilities: bool) -> Float[Tensor, "n d_vocab"]:
    """``D u`` less its mean over the vocabulary (logits mean nothing but their differences); ``p ⊙ (D u - p·D u)``."""
    slope = state.slope.to(directions)
    parts = [directions @ W.to(directions) for W in state.W_U.split(VOCAB_BLOCK, dim=1)]
    logits = torch.cat(parts, 1) * slope
    if not probabilities:
        return logits - logits.mean(1, keepdim=True)
    p = state.log_probs.detach().exp().to(directions)
    return p * (logits - (logits @ p).unsqueeze(1))


def _ends(
    change: Float[Tensor, "n d_vocab"], logits: Float[Tensor, "d_vocab"]
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n 2 most"], Float[Tensor, "n 2 most"]]:
    signs = _signs(change, logits)
    change = change * signs.unsqueeze(1)
    most = min(MOST, change.shape[1])
    ends = [change.topk(most, largest=largest) for largest in (True, False)]
    values, ids = (torch.stack([getattr(end, name) for end in ends], 1).cpu() for name in ("values", "indices"))
    return signs.cpu(), ids, values.float()


def _signs(change: Float[Tensor, "n d_vocab"], logits: Float[Tensor, "d_vocab"]) -> Float[Tensor, "n"]:
    """That of the largest change. Between two tokens, what one wins the other loses: then that of the more probable one."""
    sizes = change.abs()
    as_large = sizes >= (1 - TIE) * sizes.amax(1, keepdim=True)
    chosen = torch.where(as_large, logits.detach().to(change), -torch.inf).argmax(1, keepdim=True)
    return torch.where(change.gather(1, chosen).squeeze(1) < 0, -1.0, 1.0).to(change)
