"""Embeddings that replace a token's embedding: zero, the mean of the vocabulary, or that of another token."""

from collections import OrderedDict

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.model.running import Passes, logits_of, undisturbed
from jscope_tl.model.view import ModelView

NAMED = ("zero", "mean", "bos", "pad")


def named_token(view: ModelView, name: str) -> int:
    """Id of the BOS or padding token."""
    token = getattr(view.tokenizer, f"{name}_token_id", None)
    if token is None or not 0 <= token < view.d_vocab:
        raise InputError(f"{view.name} has no {name.upper()} token of its own. Use 'zero', 'mean', or another token.")
    return int(token)


def embedding(view: ModelView, what: str, pos: int, passes: Passes) -> Float[Tensor, "d_model"]:
    """The embedding ``"zero"``, ``"mean"``, ``"bos"`` or ``"pad"`` at ``hook_embed`` of a prompt of ``pos`` tokens."""
    if what == "zero":
        return torch.zeros(view.W_E.shape[1], device=view.input_device)
    if what in ("bos", "pad"):
        tokens = torch.full((pos,), named_token(view, what), device=view.input_device)
        return embedded(view, tokens, passes)[0].float()
    # Gemma multiplies its embeddings by a factor, which is computed from some of them.
    some = torch.linspace(0, view.d_vocab - 1, max(pos, 2), device=view.input_device).long()[-pos:]
    table = view.W_E.float()
    own, shown = table[some.to(table.device)], embedded(view, some, passes).to(table)
    return table.mean(0) * (own * shown).sum() / own.square().sum().clamp_min(1e-30)


def embedded(view: ModelView, tokens: Int[Tensor, "pos"], passes: Passes) -> Float[Tensor, "pos d_model"]:
    """The activation at ``hook_embed`` for these tokens, before the user's hooks at that point."""
    kept: list[Tensor] = []
    point = view.points["hook_embed"]
    with undisturbed(view, []):
        theirs, point._forward_hooks = point._forward_hooks, OrderedDict()
        try:
            point.register_forward_hook(lambda module, args, shown: kept.append(shown.clone()))
            logits_of(view, rearrange(tokens, "pos -> 1 pos"), passes)
        finally:
            point._forward_hooks = theirs
    return kept[0][0].detach()
