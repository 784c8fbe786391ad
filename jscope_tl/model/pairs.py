"""Pairs of a base run and a source run, whose activations are patched into the base run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.model.patterns import need_same_prompt
from jscope_tl.model.prompts import to_position, to_tokens
from jscope_tl.model.running import Passes, captured
from jscope_tl.model.view import ModelView

DIRECTIONS = ("noising", "denoising")


@dataclass(frozen=True)
class Pair:
    """The tokens of the run that is patched, and of the run that the activations come from."""

    base: Int[Tensor, "pos"]
    source: Int[Tensor, "pos"]


def to_pair(
    view: ModelView, clean: Any, corrupted: Any, direction: Any, prepend_bos: bool | None, position: Any = -1
) -> tuple[Pair, int]:
    """Two prompts of the same length, and the explained position in them.

    ``noising`` patches the corrupted run into the clean one, ``denoising`` the reverse.

    Raises:
        InputError: the prompts have different lengths, are identical up to the position, or the direction is unknown.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"direction must be 'noising' or 'denoising', not {direction!r}.")
    first, second = (to_tokens(view, prompt, prepend_bos) for prompt in (clean, corrupted))
    if len(first) != len(second):
        raise InputError(
            f"The clean prompt has {len(first)} tokens, the corrupted one {len(second)}; patching goes position by position, "
            "so they must have the same number. Replace words by words with as many tokens."
        )
    explained = to_position(position, len(first))
    if torch.equal(first[: explained + 1], second[: explained + 1]):
        raise InputError(
            f"The clean and the corrupted prompt are the same up to the explained position {explained}; there is nothing to "
            "patch in."
        )
    return (Pair(first, second) if direction == "noising" else Pair(second, first)), explained


def need_patchable(view: ModelView, points: Sequence[str]) -> None:
    """Refuse hook points outside the residual stream."""
    beside = [name for name in points if view.reads_beside(name)]
    if beside:
        raise InputError(
            f"On a TransformerBridge {beside[0]!r} is a copy of the stream that only the MLP reads; a patch there would not change the stream. Patch "
            "at 'resid_pre' or 'resid_post', or use a HookedTransformer."
        )


def source_activations(
    view: ModelView, pair: Pair, points: Sequence[str], fwd_hooks: Sequence[Any], passes: Passes, cache: Any = None
) -> dict[str, Float[Tensor, "1 pos d_in"]]:
    """The source run's activations at the hook points, from the user's cache or from a new run.

    Raises:
        InputError: the cache belongs to another model or prompt, or lacks a hook point.
    """
    if cache is None:
        cache = captured(view, rearrange(pair.source, "pos -> 1 pos"), points, fwd_hooks, passes)
    elif not (isinstance(cache, Mapping) or hasattr(cache, "cache_dict")):
        raise InputError(
            f"cache must be the second return value of model.run_with_cache, or a dict; got a {type(cache).__name__}."
        )
    elif getattr(cache, "model", view.model) is not view.model:
        raise InputError("This cache is of another model. Cache the source prompt with the model that is patched.")
    else:
        need_same_prompt(cache, dict(cache.items()), pair.source.cpu())
    return _checked(cache, points, len(pair.base), int(view.cfg.d_model))


def _checked(cache: Any, points: Sequence[str], pos: int, d_model: int) -> dict[str, Float[Tensor, "1 pos d_in"]]:
    missing = [name for name in points if name not in cache]
    if missing:
        raise InputError(f"The cache has no {missing[0]!r}; include it in names_filter, or pass no cache.")
    found = {name: cache[name] for name in points}
    for name, activation in found.items():
        shape = list(activation.shape) if isinstance(activation, Tensor) else type(activation).__name__
        if shape != [1, pos, d_model]:
            raise InputError(
                f"The cache has {shape} at {name!r}, but [1, {pos}, {d_model}] is needed. Cache the source prompt by itself, with "
                "this model."
            )
        if not activation.isfinite().all():
            raise InputError(f"There are infinite or undefined values in the cache at {name!r}.")
    return {name: activation.detach() for name, activation in found.items()}
