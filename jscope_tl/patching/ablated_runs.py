"""A model's predictions with the embeddings of some tokens replaced."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jscope_tl.engine.batches import in_batches
from jscope_tl.engine.progress import progress_bar
from jscope_tl.model.embeddings import embedding
from jscope_tl.model.prompts import to_id, to_str_tokens
from jscope_tl.model.running import ONE_AT_A_TIME, Passes, ends_at, undisturbed
from jscope_tl.model.view import ModelView

REPLACEMENTS = ("zero", "mean", "pad")


def replaced_by(view: ModelView, replacement: Any) -> tuple[str | int, str]:
    """The replacement of an embedding (``"zero"``, ``"mean"``, ``"pad"`` or the id of a token), and its name."""
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
    hooks: Sequence[Any],
    batch_size: int,
    passes: Passes,
    progress: bool | None = False,
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """Logits at ``position`` with the tokens of each mask replaced, in float64 on the CPU, batch by batch."""
    value = embedding(view, replacement, len(tokens), passes) if isinstance(replacement, str) else None
    with ONE_AT_A_TIME:  # waits until the hooks of another thread's run are removed
        at_once = min(batch_size, view.prompts_at_once(len(tokens), hooks))

    def run(part: slice) -> Float[Tensor, "batch d_vocab"]:
        batch = masks[part].to(tokens.device)
        rows = repeat(tokens, "pos -> batch pos", batch=len(batch)).clone()
        if isinstance(replacement, int):
            rows[batch] = replacement
        own = [] if value is None else [("hook_embed", partial(blank, batch, value))]
        with undisturbed(view, hooks, own), ends_at(view, [*hooks, *own], position) as ends:
            return ends(rows, passes)[1].double().cpu()

    with progress_bar(progress, "ablated runs", "run", total=len(masks)) as bar:
        for logits in in_batches(run, len(masks), at_once):
            bar.update(len(logits))
            yield logits


def blank(
    batch: Bool[Tensor, "batch pos"],
    value: Float[Tensor, "*d_model"],
    embedded: Float[Tensor, "batch pos d_model"],
    hook: Any,
) -> Float[Tensor, "batch pos d_model"]:
    """A hook that replaces the masked positions of each row at ``hook_embed``, after the user's hooks."""
    masked = rearrange(batch, "batch pos -> batch pos 1").to(embedded.device)
    return torch.where(masked, value.to(embedded), embedded)
