"""The agreement of each head's attention pattern with a scope."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jscope_tl.errors import InputError
from jscope_tl.model.patterns import Head, to_heads
from jscope_tl.results.pattern import InfluencePattern
from jscope_tl.results.ranks import spearman

FEWEST = 3
"""The fewest sources that a row needs: the rank correlation over two sources is always 1 or -1."""


@dataclass(frozen=True)
class HeadAgreement:
    """The agreement of a head's attention with a scope, over ``n_rows`` destinations.

    ``correlation`` is Spearman's correlation, averaged over the destinations; ``same_top`` is the share of destinations at which the
    head attends most to the source with the scope's highest score.
    """

    layer: int | None
    head: int
    name: str
    correlation: float
    same_top: float
    n_rows: int


def head_agreement(
    pattern: Any,
    cache_or_patterns: Any,
    layers: Iterable[int] | int | None = None,
    heads: Iterable[int] | int | None = None,
) -> list[HeadAgreement]:
    """How well each head's attention ranks the sources of a prediction as the scope does, the best agreement first.

    For every destination, the sources up to it except BOS are ranked by the head's attention and by the scope's scores. The result is
    Spearman's correlation of the two (1: the same order; 0: no relation; -1: the reverse order), averaged over the destinations with three
    sources or more. Scores of different destinations are never compared.

    Args:
        pattern: an `InfluencePattern`.
        cache_or_patterns: the cache of the same prompt, or a tensor ``[layer, head, dest, src]``.
        layers, heads: the layers and heads to compare; None: all.

    Raises:
        InputError: patterns of another prompt, or no destination with three sources.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "the keys to the cabinet near the doors"
        >>> _, cache = model.run_with_cache(prompt)
        >>> len(js.head_agreement(js.influence_pattern(model, prompt, "fisher"), cache))
        16
    """
    if not isinstance(pattern, InfluencePattern):
        raise InputError(
            f"head_agreement needs one InfluencePattern, the result of js.influence_pattern; got a {type(pattern).__name__}."
        )
    return agreement_of(pattern, to_heads(cache_or_patterns, pattern.tokens, layers, heads))


def agreement_of(pattern: InfluencePattern, heads: list[Head]) -> list[HeadAgreement]:
    """`head_agreement` for a list of heads."""
    rows = [row for i, dest in enumerate(pattern.positions) if (row := _row(pattern, heads, i, dest)) is not None]
    if not rows:
        raise InputError(
            f"No destination of this pattern has {FEWEST} sources besides BOS, which a ranking needs; give a longer prompt or later "
            "positions."
        )
    correlations, same_top = np.mean(rows, axis=0)
    found = [
        HeadAgreement(head.layer, head.head, head.name, float(correlations[i]), float(same_top[i]), len(rows))
        for i, head in enumerate(heads)
    ]
    return sorted(found, key=lambda agreement: -agreement.correlation)


def _row(pattern: InfluencePattern, heads: list[Head], i: int, dest: int) -> Any:
    """The correlation, and whether the strongest source is the same, for each head."""
    sources = [t for t in range(dest + 1) if t not in pattern.bos_positions]
    if len(sources) < FEWEST or not pattern.scores[i, sources].any():
        return None
    attention = np.stack([head.pattern[dest, sources].numpy() for head in heads])
    scores = pattern.scores[i, sources].numpy()
    return np.stack([spearman(attention, scores), attention.argmax(-1) == scores.argmax()])
