"""`attention`: scopes as additional heads in circuitsvis' attention view, and the agreement of heads with them."""

from collections.abc import Iterable, Sequence
from html import escape
from math import isqrt
from typing import Any

import torch

from jscope_tl.components.effects import ComponentEffects
from jscope_tl.diagnostics.heads import HeadAgreement, agreement_of
from jscope_tl.errors import InputError, whole
from jscope_tl.model.patterns import Head, to_heads
from jscope_tl.model.pieces import pieces
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.pattern import InfluencePattern, as_pattern
from jscope_tl.results.text import visible
from jscope_tl.views.circuitsvis_views import View, call, literal, place
from jscope_tl.views.edges import beside_patterns
from jscope_tl.views.scale import left_out, tops
from jscope_tl.views.together import as_list, need_no_map, need_one_prompt, to_labels, unique

MAX_CELLS = 150_000
"""The number of cells of all heads together that a browser draws in a few seconds."""
MAX_HEADS = 32
ROOM = """<style>#{where} div[style*="max-width: min"] {{ width: 100% !important; min-width: 26rem }}</style>
<div style="max-width:60rem;overflow-x:auto">{element}</div>"""
"""On a narrow screen, circuitsvis' large picture would shrink to nothing; with this style it scrolls instead."""


def attention(
    results: Any,
    cache_or_patterns: Any = None,
    layers: Iterable[int] | int | None = None,
    heads: Iterable[int] | int | None = None,
    *,
    labels: Sequence[str] | None = None,
    max_cells: Any = MAX_CELLS,
) -> View:
    """Scopes beside the model's attention patterns, with the same tokens and axes, drawn by circuitsvis.

    Each scope is one additional head. Its colour is the score as a fraction of the highest score outside BOS in the same row, so that its
    rows are comparable with rows of attention; hovering shows the score and its unit. A table below shows how well each head agrees with
    the first scope (`head_agreement`).

    For the effects of edges from `patching.components` (``of="edges"``), each head has two pictures side by side with the same axes: its
    attention pattern, and the effect of each edge. The heads whose strongest edge has the largest effect come first. Each head has its own
    colour scale: orange if the change raises the explained quantity, purple if it lowers it.

    Args:
        results: one or several results of `influence_pattern`, or `Attribution` (one row each), for the same prompt; or one
            `patching.ComponentEffects` of edges.
        cache_or_patterns: the cache of ``run_with_cache`` for the same prompt, or a tensor ``[layer, head, dest, src]``; None: only the
            scopes are shown (not allowed for edges).
        layers, heads: the layers and heads of the model to show; None: all.
        labels: a name for each scope; by default the name of the scope, numbered if several have the same name.
        max_cells: the largest number of cells of all heads together (up to the diagonal). If there are more cells, or more than 32 heads,
            only the heads that agree most with the first scope are shown, and if that is not enough, only the positions with the highest
            scores. The view says what is shown.

    Returns:
        A view that shows itself in a notebook, with ``save(path)``. Both work without a network.

    Raises:
        InputError: results of different prompts, patterns or a cache of another prompt; effects that are not of edges.
    """
    if (whole(max_cells) or 0) < 1:
        raise InputError(f"max_cells is how many cells to draw, 1 or more; got {max_cells!r}.")
    if isinstance(results, ComponentEffects):
        return beside_patterns(results, cache_or_patterns, layers, heads, MAX_HEADS // 4, max_cells)
    given = as_list(results, (InfluencePattern, Attribution))
    need_no_map(given)
    scopes = [as_pattern(result) for result in given]
    need_one_prompt(scopes)
    whole_names = to_labels(labels, scopes)
    names = unique(_tile_names(whole_names, scopes))
    own = [] if cache_or_patterns is None else to_heads(cache_or_patterns, scopes[0].tokens, layers, heads)
    agreement = _agreement(scopes[0], own)
    shown, notes = _selected(own, agreement, len(scopes), len(scopes[0].tokens), max_cells)
    kept = _positions(scopes, 2 * max_cells // (len(scopes) + len(shown)))
    if len(kept) < len(scopes[0].tokens):
        notes.append(
            f"{len(kept)} of {len(scopes[0].tokens)} positions, those with the highest scores; the number after @ is a token's position in the "
            "prompt"
        )
    where, element = place()
    picture = ROOM.format(where=where, element=element)
    body = _caption(scopes, names) + picture + _notes(notes) + _table(agreement, whole_names[0])
    properties = _properties(scopes, names, shown, kept)
    return View(
        f"{', '.join(names)} beside {len(shown)} attention heads", body, (call(where, "AttentionHeads", properties),)
    )


def _tile_names(names: list[str], scopes: list[InfluencePattern]) -> list[str]:
    """Short names for the tiles of the heads, without settings of the scope, which are in the caption."""
    return [name.replace(of.scope, of.scope.partition(",")[0]) for name, of in zip(names, scopes, strict=True)]


def _agreement(scope: InfluencePattern, heads: list[Head]) -> list[HeadAgreement]:
    try:
        return agreement_of(scope, heads) if heads else []
    except InputError:  # the prompt is too short for a ranking, so there is no table
        return []


def _selected(
    heads: list[Head], agreement: list[HeadAgreement], n_scopes: int, n_tokens: int, max_cells: int
) -> tuple[list[Head], list[str]]:
    room = max(1, min(MAX_HEADS, 2 * max_cells // n_tokens**2 - n_scopes))
    if len(heads) <= room:
        return heads, []
    best = [found.name for found in agreement[:room]] or [head.name for head in heads[:room]]
    shown = [head for head in heads if head.name in best]
    which = (
        "those that agree most with the first scope"
        if agreement
        else "the first ones, as the prompt is too short to rank"
    )
    return shown, [f"{room} of {len(heads)} heads, {which} (choose with layers, heads)"]


def _positions(scopes: list[InfluencePattern], cells: int) -> list[int]:
    """All positions if they fit, else those with the highest scores (as fractions of their rows), in order."""
    n = len(scopes[0].tokens)
    side = max(2, isqrt(cells))
    if side >= n:
        return list(range(n))
    explained = list(dict.fromkeys(position for scope in scopes for position in scope.positions))
    # If there are few explained positions, they come first, because a scope is only visible in their rows.
    first = explained if len(explained) <= side // 2 else explained[-1:]
    fractions = torch.cat([scope.scores / tops(scope).unsqueeze(-1).clamp_min(1e-30) for scope in scopes])
    order = [*first, *(t for t in fractions.sum(0).argsort(descending=True).tolist() if t not in first)]
    return sorted(order[:side])


def _properties(scopes: list[InfluencePattern], names: list[str], heads: list[Head], kept: list[int]) -> dict[str, str]:
    whole = len(kept) == len(scopes[0].tokens)
    shown = pieces(scopes[0].str_tokens)
    texts = [visible(shown[i]) for i in kept]
    matrices = [_scope_cells(scope, kept) for scope in scopes]
    matrices += [_rows([[round(v, 4) for v in row] for row in head.pattern[kept][:, kept].tolist()]) for head in heads]
    return {
        "attention": f"[{','.join(matrices)}]",
        "attentionHeadNames": literal(names + [head.name for head in heads]),
        "tokens": literal(texts if whole else [f"{text} @{i}" for text, i in zip(texts, kept, strict=True)]),
        "maxValue": "1",
        "minValue": "-1",
        "positiveColor": literal("#a63603"),
        "maskUpperTri": "true",
    }


def _scope_cells(scope: InfluencePattern, kept: list[int]) -> str:
    """The cells of a scope. Rows that were not explained are empty."""
    scores = scope.scores.new_zeros(len(scope.tokens), len(scope.tokens))
    highest = scope.scores.new_zeros(len(scope.tokens))
    scores[list(scope.positions)] = scope.scores
    highest[list(scope.positions)] = tops(scope)
    rows = [[_short(value) for value in row] for row in scores[kept][:, kept].tolist()]
    return f"scores({_rows(rows)},{literal([_short(top) for top in highest[kept].tolist()])},{literal(scope.unit)})"


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _rows(square: list[list[float]]) -> str:
    """The lower triangle; the rest of a causal pattern is empty."""
    return literal([row[: i + 1] for i, row in enumerate(square)])


def _caption(scopes: list[InfluencePattern], names: list[str]) -> str:
    lines = []
    for scope, name in zip(scopes, names, strict=True):
        says = (
            f"{scope.scope} scope of {_of(scope)}, at {scope.provenance.hook_point}, in {scope.unit}{scope.prepended}"
        )
        lines.append(f"<b>{escape(name)}</b>: {escape(f'{says}; {scope.provenance.model_name}')}")
    colour = (
        "Colour of a scope: the score as a fraction of the highest of its row"
        + "; of a head: attention from 0 to 1. Hover over a cell to see the score itself"
        + "".join(f"; {left}" for left in left_out(scopes))
        + "."
    )
    return f"<p>{'<br>'.join(lines)}</p><p>{escape(colour)}</p>"


def _of(scope: InfluencePattern) -> str:
    """The explained predictions of a pattern, in words."""
    if len(scope.positions) == 1:
        asked = scope.asked or f", target {scope.targets[0].str_token!r}"
        return f"the prediction at position {scope.positions[0]}{asked}"
    return f"the predictions at {len(scope.positions)} of {len(scope.tokens)} positions{scope.asked}"


def _notes(notes: list[str]) -> str:
    return "".join(f"<p><b>Shown: {escape(note)}.</b></p>" for note in notes)


def _table(agreement: list[HeadAgreement], scope: str, most: int = 12) -> str:
    if not agreement:
        return ""
    rows = "".join(
        f"<tr><td>{found.name}</td><td>{found.correlation:+.2f}</td><td>{found.same_top:.0%}</td></tr>"
        for found in agreement[:most]
    )
    rest = f" ({len(agreement) - most} further heads: js.head_agreement)" if len(agreement) > most else ""
    return (
        f"<p>Agreement of heads with {escape(scope)} over {agreement[0].n_rows} predictions, BOS left out{rest}: Spearman's "
        "correlation over the sources of a prediction (mean), and how often the head attends most to the strongest source</p>"
        "<table><thead><tr><th>head</th><th>correlation</th><th>same top</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
