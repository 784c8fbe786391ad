"""The effects of edges beside the attention patterns, for each head, drawn by circuitsvis."""

from dataclasses import dataclass
from html import escape
from math import isqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.components.effects import ComponentEffects
from jscope_tl.components.names import ComponentEffect
from jscope_tl.errors import InputError
from jscope_tl.model.patterns import Head, to_heads
from jscope_tl.model.pieces import pieces
from jscope_tl.results.text import visible
from jscope_tl.views.circuitsvis_views import View, call, literal, place
from jscope_tl.views.component_words import caption, foot, said, strongest_table
from jscope_tl.views.effect_scale import WORDS, EffectScale, effect_scale
from jscope_tl.views.scale import DECADES
from jscope_tl.views.together import prompt_text

SHAPES = {"linear": "share => share", "sqrt": "root", "log": f"decades({DECADES})"}
"""The scales of `EffectScale`, in JavaScript."""
PATTERN, RISES, FALLS = "#08519c", "#a63603", "#542788"
PAIR = """<h4 style="margin:1.2em 0 .2em">{name}</h4><p style="margin:.2em 0">strongest edge: {strongest}</p>
<div style="display:flex;flex-wrap:wrap;gap:0 1rem">{pictures}</div>"""
PICTURE = '<div style="flex:1 1 22rem;min-width:min(22rem,100%);max-width:34rem">{title}<div style="padding:0 15px">{element}</div></div>'


@dataclass(frozen=True)
class HeadEdges:
    """A head's attention pattern, and the place of its edges among the effects.

    Attributes:
        head: the attention pattern of the head.
        row: the index of the head's layer among the effects.
    """

    head: Head
    row: int

    def strongest(self, effects: ComponentEffects) -> ComponentEffect:
        """The strongest of the head's edges."""
        start = (self.row * effects.predicted.shape[1] + self.head.head) * effects.predicted[0, 0].numel()
        return effects.component(start + int(effects.values[self.row, self.head.head].abs().argmax()))

    def effects(self, effects: ComponentEffects) -> Float[Tensor, "dest src"]:
        """The effects of all edges of the head up to the explained position; NaN for edges that were not kept."""
        n, own = effects.position + 1, effects.values[self.row, self.head.head]
        if effects.index is None:
            return own[:n, :n]
        pos = len(effects.tokens)
        square = torch.full((pos * pos,), torch.nan)
        square[effects.index[self.row, self.head.head]] = own
        return square.reshape(pos, pos)[:n, :n]


def beside_patterns(
    effects: ComponentEffects, cache_or_patterns: Any, layers: Any, heads: Any, most: int, max_cells: int
) -> View:
    """Each head's attention pattern beside the effects of its edges, the strongest heads first.

    Args:
        effects: effects of edges.
        cache_or_patterns, layers, heads: as for `attention`.
        most: the largest number of heads that are drawn.
        max_cells: the largest number of cells of all pictures together.
    """
    _need_edges(effects, cache_or_patterns)
    found = [_matched(effects, head) for head in to_heads(cache_or_patterns, effects.tokens, layers, heads)]
    n = min(effects.position + 1, len(effects.tokens))
    sizes = effects.values.abs().flatten(2).amax(-1)
    ranked = sorted(found, key=lambda head: -float(sizes[head.row, head.head.head]))
    shown = ranked[: max(1, min(most, max_cells // n**2))]
    edges = [head.effects(effects) for head in shown]
    kept = _positions(edges, isqrt(max_cells // len(shown)))
    parts, calls = _pairs(effects, shown, edges, kept)
    says = foot(effects, _notes(effects, len(shown), len(found), len(kept), n))
    body = f"{caption(effects)}{says}{''.join(parts)}<h4>Strongest edges</h4>{strongest_table(effects)}"
    return View(f'edges of {len(shown)} heads on "{prompt_text(effects, 60)}"', body, tuple(calls))


def _need_edges(effects: ComponentEffects, cache_or_patterns: Any) -> None:
    if effects.of != "edges":
        raise InputError(
            f"Only effects of edges can be shown beside attention patterns; these are effects of {effects.of}, which js.views.heads shows. "
            'js.patching.components(model, prompt, of="edges") finds effects of edges.'
        )
    if cache_or_patterns is None:
        raise InputError(
            "Edges are shown beside the model's attention patterns; give the cache of model.run_with_cache(effects.tokens), or a "
            "tensor [layer, head, dest, src]."
        )


def _matched(effects: ComponentEffects, head: Head) -> HeadEdges:
    """The head with the index of its layer among the effects, which is found from the hook points."""
    size = effects.predicted[0].numel()
    rows = {effects.component(row * size).layer: row for row in range(len(effects.predicted))}
    row = 0 if head.layer is None and len(rows) == 1 else rows.get(-1 if head.layer is None else head.layer)
    n_heads = effects.predicted.shape[1]
    if row is None or head.head >= n_heads:
        raise InputError(
            f"The effects have layers {min(rows)} to {max(rows)} with {n_heads} heads each, and no {head.name}. Give the patterns of the "
            "same model; for a tensor of one layer, give its number as layers=."
        )
    return HeadEdges(head, row)


def _pairs(
    effects: ComponentEffects, shown: list[HeadEdges], edges: list[Tensor], kept: list[int]
) -> tuple[list[str], list[str]]:
    """HTML with an empty element for every picture, and the calls that draw the pictures."""
    texts = _texts(effects, kept, len(edges[0]))
    parts, calls = [], []
    for head, matrix in zip(shown, edges, strict=True):
        own = matrix[matrix.isfinite().tril()]
        scale = effect_scale(own)
        drawn = {
            "attention": _attention(head.head.pattern[kept][:, kept]),
            f"effect of each edge ({effects.unit}), {WORDS[scale.kind]}": _effects(
                matrix[kept][:, kept], effects.unit, scale
            ),
        }
        pictures = []
        for title, properties in drawn.items():
            where, element = place()
            calls.append(call(where, "AttentionPattern", {"tokens": texts, **properties}))
            pictures.append(PICTURE.format(title=escape(title), element=element))
        strongest = escape(said(effects, head.strongest(effects)))
        parts.append(PAIR.format(name=head.head.name, strongest=strongest, pictures="".join(pictures)))
    return parts, calls


def _positions(edges: list[Float[Tensor, "dest src"]], side: int) -> list[int]:
    """All positions if they fit, else the last one and those with the strongest edges relative to the strongest edge of their head, in order."""
    n = len(edges[0])
    if side >= n:
        return list(range(n))
    shares = torch.zeros(n)
    for matrix in edges:
        sizes = matrix.nan_to_num().abs()
        shares += (sizes.amax(0) + sizes.amax(1)) / sizes.max().clamp_min(1e-30)
    shares[-1] = torch.inf
    return sorted(shares.topk(max(2, side)).indices.tolist())


def _texts(effects: ComponentEffects, kept: list[int], n: int) -> str:
    shown = pieces(effects.str_tokens)
    return literal([visible(shown[i]) + ("" if len(kept) == n else f" @{i}") for i in kept])


def _attention(pattern: Float[Tensor, "dest src"]) -> dict[str, str]:
    rows = [[round(value, 4) for value in row[: i + 1]] for i, row in enumerate(pattern.tolist())]
    return {"attention": literal(rows), "positiveColor": literal(PATTERN), "maxValue": "1", "minValue": "-1"}


def _effects(edges: Float[Tensor, "dest src"], unit: str, scale: EffectScale) -> dict[str, str]:
    """Cells that show their effects and are coloured on the head's own scale."""
    rows = [[_short(value) for value in row[: i + 1]] for i, row in enumerate(edges.tolist())]
    cells = f"scores({literal(rows)},{literal([scale.high] * len(rows))},{literal(unit)},{SHAPES[scale.kind]})"
    return {"attention": cells, "positiveColor": literal(RISES), "negativeColor": literal(FALLS), "maxValue": "1", "minValue": "-1"}  # fmt: skip


def _short(value: float) -> float | None:
    return None if value != value else float(f"{value:.4g}")


def _notes(effects: ComponentEffects, n_shown: int, n_heads: int, n_kept: int, n: int) -> list[str]:
    sign = (
        "orange where the change raises what is explained, purple where it lowers it"
        if bool((effects.values < 0).any())
        else "orange"
    )
    notes = [
        "left: attention from 0 to 1 (blue)",
        f"right: the effect of changing each edge ({sign}), each head on a scale of its own, up to its strongest edge",
        f"{'all' if n_shown == n_heads else f'{n_shown} of'} {n_heads} heads, those with the strongest edges first",
    ]
    if effects.index is not None:
        notes.append(f"of each head the {effects.index.shape[-1]} strongest edges were kept, the others are white")
    if n_kept < n:
        notes.append(
            f"{n_kept} of {n} positions, those with the strongest edges; the number after @ is a token's position in the prompt"
        )
    return notes
