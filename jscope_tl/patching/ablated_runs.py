"""What a model predicts with some tokens' embeddings taken away."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jscope_tl.model.embeddings import embedding
from jscope_tl.engine.forward import undisturbed
from jscope_tl.model.view import ModelView
from jscope_tl.engine.progress import bar
from jscope_tl.model.prompts import to_id, to_str_tokens

REPLACEMENTS = ("zero", "mean", "pad")


def replaced_by(view: ModelView, replacement: Any) -> tuple[str | int, str]:
    """What takes an embedding's place, ``"zero"``, ``"mean"``, ``"pad"`` or a token's id, and its name."""
    if isinstance(replacement, str) and replacement in REPLACEMENTS:
        return replacement, replacement
    token = to_id(view, replacement, view.d_vocab)
    return token, f"token {to_str_tokens(view, [token])[0]!r}"


def ablated_logits(
    view: ModelView,
    tokens: Int[Tensor, "pos"],
    masks: Bool[Tensor, "n pos"],
    replacement: str | int,
    position: int,
    hooks: list[Any],
    batch_size: int,
    progress: bool | None = False,
) -> Float[Tensor, "n d_vocab"]:
    """Logits at ``position`` with the tokens of each mask replaced, in float64 on the CPU."""
    value = embedding(view, replacement, len(tokens)) if isinstance(replacement, str) else None
    batch_size = min(batch_size, view.prompts_at_once(len(tokens), hooks))
    found = []
    for batch in bar(masks.to(tokens.device).split(batch_size), progress, "ablated runs", "run"):
        rows = tokens.repeat(len(batch), 1)
        if isinstance(replacement, int):
            rows[batch] = replacement
        own = [] if value is None else [("hook_embed", partial(_blank, batch, value))]
        with undisturbed(view, [*hooks, *own]):
            found.append(view.model(rows, return_type="logits")[:, position].double().cpu())
    return torch.cat(found)


def _blank(
    batch: Bool[Tensor, "b pos"], value: Float[Tensor, "d_model"], embedded: Float[Tensor, "b pos d_model"], hook: Any
) -> Float[Tensor, "b pos d_model"]:
    """In each row of the batch other positions are replaced, in what the user's hooks leave at ``hook_embed``."""
    return torch.where(batch.to(embedded.device).unsqueeze(-1), value.to(embedded), embedded)
