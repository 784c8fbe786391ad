"""Several continuations of one prompt in one sequence: the prompt runs once, and no continuation sees another."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import whole
from jscope_tl.model.running import Passes, logits_of, undisturbed
from jscope_tl.model.view import ModelView

LONG = 64
"""Tokens of a prompt from which on it is worth running once: whether a model can is found out by runs of a few tokens."""
TRIED = (6, 3, 2)
"""Tokens of a prompt and two continuations by which that is found out."""
WINDOWS = (
    "sliding_window", "sliding_windows", "sliding_window_size", "window_size", "attention_window", "attention_window_size",
    "attention_chunk_size", "local_attention",
)  # fmt: skip
"""What configurations call the reach of local attention, in tokens; a trial of a few tokens is within all of them."""
SAME = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest difference of logits relative to their largest, by dtype; half precision rounds each sum in its own way."""


@dataclass(frozen=True)
class Branches:
    """Continuations of a prompt, one after the other behind it.

    Attributes:
        prompt: its tokens.
        continuations: the tokens of each, none for one of the next token alone.
    """

    prompt: Int[Tensor, "shared"]
    continuations: Sequence[Sequence[int]]

    @property
    def tokens(self) -> Int[Tensor, "pos"]:
        """The sequence."""
        return torch.cat([self.prompt, *(self.prompt.new_tensor(list(ids)) for ids in self.continuations)])

    @property
    def starts(self) -> list[int]:
        """Where each continuation begins in the sequence."""
        lengths = [len(self.prompt), *map(len, self.continuations)]
        return [sum(lengths[: i + 1]) for i in range(len(self.continuations))]

    def positions(self, i: int) -> list[int]:
        """The last token of the prompt, and those of the ``i``-th continuation."""
        return [len(self.prompt) - 1, *range(self.starts[i], self.starts[i] + len(self.continuations[i]))]

    def how(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Arguments of the forward pass: positions as if each continuation stood alone, and who attends to whom."""
        n, device = len(self.prompt), self.prompt.device
        places = [
            torch.arange(n, device=device),
            *(n + torch.arange(len(ids), device=device) for ids in self.continuations),
        ]
        owner = torch.cat([torch.full_like(place, i) for i, place in enumerate(places)])
        seen = (owner.unsqueeze(0) == owner.unsqueeze(1)) | (owner.unsqueeze(0) == 0)
        seen &= torch.ones(len(owner), len(owner), dtype=torch.bool, device=device).tril()
        mask = torch.zeros(1, 1, *seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
        return {"attention_mask": mask, "position_ids": torch.cat(places).unsqueeze(0)}


def can_branch(view: ModelView, branches: Branches, passes: Passes) -> bool:
    """Whether the model gives the same logits for continuations that share a sequence as for each alone, as far as a trial tells.

    A HookedTransformer takes no such mask, and attention within a window counts tokens of the other continuation.
    """
    config = getattr(getattr(view.model, "original_model", None), "config", None)
    if config is None or len(branches.prompt) < LONG or len(branches.tokens) > _reach(config):
        return False
    some = torch.randint(0, view.d_vocab, (sum(TRIED),), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    prompt, *continuations = some.to(view.input_device).split(list(TRIED))
    trial = Branches(prompt, [ids.tolist() for ids in continuations])
    with undisturbed(view, []):
        try:
            together = _logits(view, trial.tokens, passes, trial.how(view.W_U.dtype))
        except Exception:  # whatever a model does with arguments that it does not take
            return False
        alone = [_logits(view, torch.cat([prompt, ids]), passes, {})[len(prompt) - 1 :] for ids in continuations]
    found = [together[trial.positions(i)] for i in range(len(alone))]
    allowed = SAME.get(view.W_U.dtype, 0.03)
    return all(float((a - b).abs().max()) <= allowed * float(b.abs().max()) for a, b in zip(found, alone, strict=True))


def _reach(config: Any) -> int:
    """Tokens that every layer sees from any position."""
    found = (whole(getattr(getattr(config, "text_config", config), name, None)) for name in WINDOWS)
    return min((size for size in found if size is not None), default=sys.maxsize)


def _logits(
    view: ModelView, tokens: Int[Tensor, "pos"], passes: Passes, how: dict[str, Any]
) -> Float[Tensor, "pos d_vocab"]:
    return logits_of(view, tokens.unsqueeze(0), passes, how)[0]
