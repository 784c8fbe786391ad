"""Several continuations of one prompt in one sequence: the prompt runs once, and continuations do not attend to each other."""

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
"""Minimum length of a prompt for which this saves time: a trial with a few tokens must first show that the model supports it."""
TRIED = (6, 3, 2)
"""Lengths of the prompt and of two continuations in this trial."""
WINDOWS = (
    "sliding_window", "sliding_windows", "sliding_window_size", "window_size", "attention_window", "attention_window_size",
    "attention_chunk_size", "local_attention",
)  # fmt: skip
"""Names in configurations for the window of local attention, in tokens; the trial is too short to show such a window."""
SAME = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest accepted difference of logits relative to the largest logit, by dtype; half precision rounds differently in each run."""


@dataclass(frozen=True)
class Branches:
    """Continuations of a prompt, concatenated after it.

    Attributes:
        prompt: the tokens of the prompt.
        continuations: the tokens of each continuation except its last one; empty for a continuation of one token.
    """

    prompt: Int[Tensor, "shared"]
    continuations: Sequence[Sequence[int]]

    @property
    def tokens(self) -> Int[Tensor, "pos"]:
        """The sequence."""
        return torch.cat([self.prompt, *(self.prompt.new_tensor(list(ids)) for ids in self.continuations)])

    @property
    def starts(self) -> list[int]:
        """The start of each continuation in the sequence."""
        lengths = [len(self.prompt), *map(len, self.continuations)]
        return [sum(lengths[: i + 1]) for i in range(len(self.continuations))]

    def positions(self, i: int) -> list[int]:
        """The positions of the last token of the prompt and of the tokens of the ``i``-th continuation."""
        return [len(self.prompt) - 1, *range(self.starts[i], self.starts[i] + len(self.continuations[i]))]

    def how(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Arguments of the forward pass: position ids as if each continuation were alone, and the attention mask."""
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
    """Whether, in a trial, the model gives the same logits for continuations in one sequence as for each of them alone.

    A HookedTransformer does not accept such a mask, and a window of local attention would count tokens of the other continuation.
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
        except Exception:  # any error of a model that does not accept the arguments
            return False
        alone = [_logits(view, torch.cat([prompt, ids]), passes, {})[len(prompt) - 1 :] for ids in continuations]
    found = [together[trial.positions(i)] for i in range(len(alone))]
    allowed = SAME.get(view.W_U.dtype, 0.03)
    return all(float((a - b).abs().max()) <= allowed * float(b.abs().max()) for a, b in zip(found, alone, strict=True))


def _reach(config: Any) -> int:
    """The number of tokens that every layer can attend to from any position."""
    found = (whole(getattr(getattr(config, "text_config", config), name, None)) for name in WINDOWS)
    return min((size for size in found if size is not None), default=sys.maxsize)


def _logits(
    view: ModelView, tokens: Int[Tensor, "pos"], passes: Passes, how: dict[str, Any]
) -> Float[Tensor, "pos d_vocab"]:
    return logits_of(view, tokens.unsqueeze(0), passes, how)[0]
