"""Directions of ``y`` decoded into tokens: what a small step along them does to the logits, or to the probabilities."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.engine.state import State
from jscope_tl.model.prompts import to_str_tokens
from jscope_tl.model.view import ModelView
from jscope_tl.results.spectrum import MOST, SHOWN, Decodings

BLOCK = 2**24
"""Changes that are held at once, ``directions x d_vocab``."""
TIE = 0.01
"""Relative difference of two changes that are taken for the same size."""
VOCAB_BLOCK = 8192
"""Tokens whose unembedding is brought to full precision at once."""
CONTROLS, SEED = 64, 0
"""Random directions that the others are held against."""


def decoded(directions: Float[Tensor, "n d_model"], state: State, view: ModelView, probabilities: bool) -> Decodings:
    """Every direction, with the sign that makes its largest change a rise (of two alike, that of the more probable token).

    Beside them random directions, to tell what their tokens say from chance.
    """
    at_once, random = max(1, BLOCK // len(state.logits)), _random(directions)
    parts = [_ends(changes(some, state, probabilities), state.logits) for some in directions.split(at_once)]
    signs, ids, ends, shares = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    control = torch.cat([_shares(changes(some, state, probabilities)) for some in random.split(at_once)])
    seen = ids.unique().tolist()
    texts = dict(zip(seen, to_str_tokens(view, seen), strict=True))
    return Decodings(signs, ids, ends, texts, shares, (float(control.mean()), float(control.std())))


def _random(directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "controls d_model"]:
    drawn = torch.randn(CONTROLS, directions.shape[1], generator=torch.Generator("cpu").manual_seed(SEED), device="cpu")
    return drawn.to(directions)


def _shares(change: Float[Tensor, "n d_vocab"]) -> Float[Tensor, "n"]:
    """Of the squared change, that of the `SHOWN` tokens that rise most and the `SHOWN` that fall most."""
    most = min(SHOWN, change.shape[1] // 2)
    ends = torch.cat([change.topk(most).values, change.topk(most, largest=False).values], 1)
    total = change.square().sum(1)
    return torch.where(total > 0, ends.square().sum(1) / total, 0.0).float().cpu()


def changes(directions: Float[Tensor, "n d_model"], state: State, probabilities: bool) -> Float[Tensor, "n d_vocab"]:
    """``D u`` less its mean over the vocabulary (logits mean nothing but their differences); ``p ⊙ (D u - p·D u)``."""
    slope = state.slope.to(directions)
    parts = [directions @ W.to(directions) for W in state.W_U.split(VOCAB_BLOCK, dim=1)]
    logits = torch.cat(parts, 1) * slope
    if not probabilities:
        return logits - logits.mean(1, keepdim=True)
    p = state.log_probs.detach().exp().to(directions)
    return p * (logits - rearrange(logits @ p, "n -> n 1"))


def _ends(
    change: Float[Tensor, "n d_vocab"], logits: Float[Tensor, "d_vocab"]
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n 2 most"], Float[Tensor, "n 2 most"], Float[Tensor, "n"]]:
    signs = _signs(change, logits)
    change = change * rearrange(signs, "n -> n 1")
    most = min(MOST, change.shape[1])
    ends = [change.topk(most, largest=largest) for largest in (True, False)]
    values, ids = (torch.stack([getattr(end, name) for end in ends], 1).cpu() for name in ("values", "indices"))
    return signs.cpu(), ids, values.float(), _shares(change)


def _signs(change: Float[Tensor, "n d_vocab"], logits: Float[Tensor, "d_vocab"]) -> Float[Tensor, "n"]:
    """That of the largest change. Between two tokens, what one wins the other loses: then that of the more probable one."""
    sizes = change.abs()
    as_large = sizes >= (1 - TIE) * sizes.amax(1, keepdim=True)
    chosen = torch.where(as_large, logits.detach().to(change), -torch.inf).argmax(1, keepdim=True)
    return torch.where(change.gather(1, chosen).squeeze(1) < 0, -1.0, 1.0).to(change)
