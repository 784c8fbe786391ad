"""Directions of ``y`` decoded into tokens: how a small step along each changes the logits or the probabilities."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.engine.state import State
from jscope_tl.model.prompts import to_str_tokens
from jscope_tl.model.view import ModelView
from jscope_tl.results.spectrum import MOST, SHOWN, Decodings

BLOCK = 2**24
"""Number of changes held in memory at once, ``directions x d_vocab``."""
TIE = 0.01
"""Relative difference below which two changes count as equally large."""
VOCAB_BLOCK = 8192
"""Number of tokens whose unembedding is converted to full precision at once."""
CONTROLS, SEED = 64, 0
"""Number and seed of the random directions that serve as a control."""


def decoded(directions: Float[Tensor, "n d_model"], state: State, view: ModelView, probabilities: bool) -> Decodings:
    """Decode every direction, with the sign that makes its largest change positive (of two equal ones, the more probable token's).

    Random directions are decoded as a control, to tell the tokens of a direction from chance.
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
    """Share of the squared change in the `SHOWN` tokens that rise most and the `SHOWN` tokens that fall most."""
    most = min(SHOWN, change.shape[1] // 2)
    ends = torch.cat([change.topk(most).values, change.topk(most, largest=False).values], 1)
    total = change.square().sum(1)
    return torch.where(total > 0, ends.square().sum(1) / total, 0.0).float().cpu()


def changes(directions: Float[Tensor, "n d_model"], state: State, probabilities: bool) -> Float[Tensor, "n d_vocab"]:
    """Changes of the logits, ``D u`` minus its mean (only differences of logits matter), or of probabilities, ``p ⊙ (D u - p·D u)``."""
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
    """The sign of each direction's largest change; if several changes are equally large, that of the most probable token."""
    sizes = change.abs()
    as_large = sizes >= (1 - TIE) * sizes.amax(1, keepdim=True)
    chosen = torch.where(as_large, logits.detach().to(change), -torch.inf).argmax(1, keepdim=True)
    return torch.where(change.gather(1, chosen).squeeze(1) < 0, -1.0, 1.0).to(change)
