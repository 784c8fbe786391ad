"""The activations that replace those of components: zero, a mean, or those of another prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError, count, nearest
from jscope_tl.model.pairs import DIRECTIONS, to_pair
from jscope_tl.model.prompts import prompt_texts, to_position, to_tokens
from jscope_tl.model.view import ModelView

NAMED = ("zero", "mean", "resample")
Activations = dict[str, Float[Tensor, "pos ..."]]
"""Activations by the name of the hook point."""


@dataclass(frozen=True)
class Source:
    """Where the replacing activations come from.

    Attributes:
        kind: ``"zero"``, ``"mean"``, or ``"prompt"``.
        name: a description for the result.
        prompts: the prompts whose activations are used; empty for the mean over the explained prompt itself.
        direction: ``"noising"``, or ``"denoising"`` if the corrupted prompt is run.
    """

    kind: str
    name: str
    prompts: tuple[Int[Tensor, "_"], ...] = ()
    direction: str = "noising"

    def activations(
        self, base: Activations, last: int, collect: Callable[[Int[Tensor, "_"]], Activations]
    ) -> Activations:
        """The activations that replace the ``base`` activations, in the same shape.

        Args:
            last: the explained position; the mean over the prompt itself goes up to it.
            collect: returns the activations of another prompt.
        """
        if self.kind == "zero":
            return {name: torch.zeros_like(own) for name, own in base.items()}
        others = [collect(prompt) for prompt in self.prompts]
        if self.kind == "prompt":
            return others[0]
        found = {}
        for name, own in base.items():
            given = [other[name] for other in others] or [own[: last + 1]]
            alike = bool(others) and all(other.shape == own.shape for other in given)
            mean = torch.stack(given).mean(0) if alike else torch.cat(given).mean(0, keepdim=True)
            found[name] = mean.to(own).expand_as(own)
        return found


def to_source(
    view: ModelView,
    prompt: Any,
    source: Any,
    prompts: Any,
    direction: Any,
    prepend_bos: bool | None,
    position: Any,
    seed: Any,
) -> tuple[Source, Int[Tensor, "pos"], int]:
    """The source, the prompt that is run, and the explained position in it.

    Raises:
        InputError: an unknown source or direction; ``prompts`` with a source that does not use them, or missing where they are needed;
            another length.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"direction is 'noising' or 'denoising', not {direction!r}.")
    named = isinstance(source, str) and source in NAMED
    if prompts is not None and (not named or source == "zero"):
        raise InputError(
            "prompts are used by source='mean' and source='resample' only; leave them out, or give one of these sources."
        )
    if not named:
        pair, explained = _pair(view, prompt, source, direction, prepend_bos, position)
        return Source("prompt", "another prompt", (pair.source,), direction), pair.base, explained
    if direction == "denoising":
        raise InputError(
            f"direction='denoising' puts a clean prompt's activations into a corrupted prompt: give the corrupted prompt as source, not {source!r}."
        )
    tokens = to_tokens(view, prompt, prepend_bos)
    explained, others = to_position(position, len(tokens)), _prompts(view, prompts, prepend_bos)
    if source == "resample":
        return _drawn(others, tokens, count("resample_seed", seed, 0)), tokens, explained
    words = {"zero": "zero", "mean": f"the mean over {f'{len(others)} prompts' if others else 'positions'}"}
    return Source(source, words[source], others), tokens, explained


def _pair(view: ModelView, prompt: Any, source: Any, direction: str, prepend_bos: bool | None, position: Any) -> Any:
    """The prompt and the other prompt. A single word that resembles the name of a source is refused as a misspelling."""
    if isinstance(source, str) and " " not in source.strip() and nearest(source, NAMED):
        raise InputError(
            f"There is no source {source!r}.{nearest(source, NAMED)} A source is one of {', '.join(NAMED)}, or another prompt with the same "
            "number of tokens."
        )
    return to_pair(view, prompt, source, direction, prepend_bos, position)


def _prompts(view: ModelView, prompts: Any, prepend_bos: bool | None) -> tuple[Int[Tensor, "_"], ...]:
    if prompts is None:
        return ()
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        raise InputError(f"prompts is a list of prompts, one or more; got {prompts!r}.")
    return tuple(to_tokens(view, prompt, prepend_bos) for prompt in prompts)


def _drawn(prompts: Sequence[Int[Tensor, "_"]], tokens: Int[Tensor, "pos"], seed: int) -> Source:
    if not prompts:
        raise InputError(
            "source='resample' takes activations from one of prompts=[...], drawn at random; give prompts."
        )
    lengths = sorted({len(other) for other in prompts})
    if lengths != [len(tokens)]:
        raise InputError(
            f"source='resample' replaces activations position by position: prompts need {len(tokens)} tokens, like the explained prompt; "
            f"these have {', '.join(map(str, lengths))}. Replace words by words with as many tokens, or use source='mean'."
        )
    if any(torch.equal(other, tokens) for other in prompts):
        raise InputError(
            "source='resample' uses the activations of other prompts, but one of prompts is the explained prompt. Leave it out."
        )
    drawn = int(torch.randint(len(prompts), (), generator=torch.Generator("cpu").manual_seed(seed), device="cpu"))
    return Source("prompt", f"prompt {drawn} of {len(prompts)}, drawn with seed {seed}", (prompts[drawn],))


def texts_of_source(view: ModelView, source: Source) -> list[str] | None:
    """The texts of the other prompt's tokens, or None if the source is not a prompt."""
    return prompt_texts(view, source.prompts[0].tolist()) if source.kind == "prompt" else None
