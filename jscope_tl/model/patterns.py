"""Attention patterns from a cache or a tensor, checked against the prompt that they are compared with."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError, whole

ROW_SUM = 0.02
"""Tolerance for the sum of a row of attention, which is 1 up to rounding in half precision."""
SAME_DIRECTION = 0.99
"""Minimum cosine between an embedding in a cache and that of the prompt; models scale embeddings but do not rotate them."""


@dataclass(frozen=True)
class Head:
    """One head's attention pattern, on the CPU; ``layer`` is None if a tensor does not specify it."""

    layer: int | None
    head: int
    pattern: Float[Tensor, "dest src"]

    @property
    def name(self) -> str:
        """The name of the head in the usual notation, such as ``L2H0``."""
        return f"H{self.head}" if self.layer is None else f"L{self.layer}H{self.head}"


def to_heads(cache_or_patterns: Any, tokens: Int[Tensor, "pos"], layers: Any = None, heads: Any = None) -> list[Head]:
    """The patterns of the chosen layers and heads.

    Args:
        cache_or_patterns: the cache that ``run_with_cache`` returned for the same prompt, or a tensor ``[layer, head, dest, src]`` or
            ``[head, dest, src]`` (of one layer, whose number can be passed as ``layers``).
        tokens: the prompt that the patterns must belong to.
        layers, heads: the layers and heads to return, a number or several (negative numbers count from the end); None: all.

    Raises:
        InputError: the cache has no patterns, they are not attention patterns, a layer or head does not exist, or they belong to
            another prompt. A prompt of the same length is detected only if the cache has ``hook_embed`` and a reference to its
            model, as caches of TransformerLens do.
    """
    layers, heads = _listed(layers), _listed(heads)
    named = not isinstance(cache_or_patterns, Tensor)
    if isinstance(cache_or_patterns, Tensor):
        by_layer = _from_tensor(cache_or_patterns, layers)
    elif isinstance(cache_or_patterns, Mapping) or hasattr(cache_or_patterns, "cache_dict"):
        by_layer = _from_cache(cache_or_patterns, tokens)
        by_layer = {layer: by_layer[layer] for layer in _chosen("layers", layers, list(by_layer))}
    else:
        raise InputError(
            "Attention patterns must be the cache of model.run_with_cache(prompt) or a tensor [layer, head, dest, src]; "
            f"got a {type(cache_or_patterns).__name__}."
        )
    return [
        Head(layer, head, _checked(patterns[head], tokens, named))
        for layer, patterns in by_layer.items()
        for head in _chosen("heads", heads, list(range(len(patterns))))
    ]


def _listed(wanted: Any) -> Any:
    """A number unchanged, several as a list, because an iterator would be empty the second time."""
    several = isinstance(wanted, Iterable) and whole(wanted) is None
    return list(wanted) if several else wanted


def _from_tensor(patterns: Tensor, layers: Any) -> dict[int | None, Tensor]:
    if (
        patterns.ndim not in (3, 4)
        or patterns.shape[-1] != patterns.shape[-2]
        or not patterns.numel()
        or patterns.is_meta
    ):
        raise InputError(
            f"A tensor of patterns must be [layer, head, dest, src] or [head, dest, src]; got {list(patterns.shape)}."
        )
    stacked = patterns if patterns.ndim == 4 else patterns.unsqueeze(0)
    if len(stacked) > 1:
        return {layer: stacked[layer] for layer in _chosen("layers", layers, list(range(len(stacked))))}
    named = layers if isinstance(layers, list) else [layers]
    number = whole(named[0]) if len(named) == 1 else None
    if len(named) != 1 or (number is None and named[0] is not None) or (number or 0) < 0:
        raise InputError(f"The tensor has the patterns of one layer; layers can be its number or None, got {layers!r}.")
    return {number: stacked[0]}


def _from_cache(cache: Any, tokens: Int[Tensor, "pos"]) -> dict[int | None, Tensor]:
    entries = {name: value for name, value in cache.items() if isinstance(name, str) and isinstance(value, Tensor)}
    matches = {name: re.fullmatch(r"blocks\.(\d+)\.attn\.hook_pattern", name) for name in entries}
    found = {int(match[1]): entries[name] for name, match in matches.items() if match}
    if not found:
        raise InputError(
            "There is no attention pattern in this cache. Keep blocks.N.attn.hook_pattern: "
            "model.run_with_cache(prompt), or a names_filter that includes them."
        )
    batched = {layer: pattern if pattern.ndim == 4 else pattern.unsqueeze(0) for layer, pattern in found.items()}
    rows = {len(pattern) for pattern in batched.values()}
    if rows != {1}:
        raise InputError(f"This cache has {max(rows)} prompts; cache only the prompt that the scope explains.")
    need_same_prompt(cache, entries, tokens)
    return {layer: batched[layer][0] for layer in sorted(batched)}


def need_same_prompt(cache: Any, entries: dict[str, Tensor], tokens: Int[Tensor, "pos"]) -> None:
    """Refuse the cache of another prompt of the same length, if the cache has embeddings and its model; `_checked` compares lengths."""
    model = getattr(cache, "model", None)
    table = getattr(model, "W_E", None)
    # If a norm follows the embedding table, hook_embed is after the norm; a bridge also has a hook point before it.
    before = entries.get("embed.hook_out")
    normed = before is None and getattr(getattr(model, "cfg", None), "post_embedding_ln", False)
    embedded = entries.get("hook_embed") if before is None else before
    if table is None or embedded is None or normed:
        return
    embedded = embedded if embedded.ndim == 2 else embedded[0]
    if embedded.shape != (len(tokens), table.shape[1]):
        return
    if tokens.max() >= len(table):
        raise InputError(
            f"This cache is of another model: its vocabulary has {len(table)} tokens, the prompt has id {int(tokens.max())}."
        )
    own = table.detach()[tokens.to(table.device)].float().to(embedded.device)
    there = embedded.detach().float()
    empty = (own.norm(dim=-1) == 0) & (there.norm(dim=-1) == 0)  # padding has no direction
    other = ((torch.cosine_similarity(own, there, dim=-1) < SAME_DIRECTION) & ~empty).nonzero().flatten().tolist()
    if other:
        raise InputError(
            f"This cache is of another prompt (or of patched embeddings): its tokens differ at positions {other[:8]}. "
            "Cache the prompt that the scope explains, with model.run_with_cache(result.tokens)."
        )


def _chosen(what: str, wanted: Any, there: list[Any]) -> list[int]:
    if wanted is None:
        return there
    numbers = wanted if isinstance(wanted, list) else [wanted]
    n = max(there) + 1
    chosen = [None if (number := whole(w)) is None else number + n * (number < 0) for w in numbers]
    if not chosen or any(number not in there for number in chosen):
        known = f"{there[0]} to {there[-1]}" if there == list(range(n)) else str(there)
        raise InputError(f"{what} must be numbers among {known} (negative numbers count from the end); got {wanted!r}.")
    return [number for number in dict.fromkeys(chosen) if number is not None]


def _checked(pattern: Tensor, tokens: Int[Tensor, "pos"], named: bool) -> Float[Tensor, "dest src"]:
    """Check the shape and the row sums, which may be below 1 for a cached hook point (``named``), as in attention with sinks."""
    n = len(tokens)
    if pattern.shape != (n, n):
        raise InputError(
            f"The patterns are of a prompt of {pattern.shape[-1]} tokens, but the scope explains one of {n} (with BOS). Cache the "
            "prompt that the scope explains, with model.run_with_cache(result.tokens)."
        )
    pattern = pattern.detach().float().cpu()
    beyond = pattern.sum(-1) - 1
    off = (beyond.clamp_min(0) if named else beyond.abs()).max()
    if not off < ROW_SUM or pattern.min() < 0:
        raise InputError(
            "These are not attention patterns: the entries of each row must add up to 1. Use hook_pattern, not "
            "hook_attn_scores."
        )
    return pattern
