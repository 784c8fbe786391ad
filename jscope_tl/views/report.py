"""The body of a report: results as HTML, with tables that are readable without a network, scripts or colours."""

from collections.abc import Iterator
from contextlib import suppress
from html import escape
from typing import Any

import torch

from jscope_tl.components.effects import ComponentEffects
from jscope_tl.components.token_flow import TokenFlow
from jscope_tl.errors import InputError
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.base import PredictedToken
from jscope_tl.results.pattern import InfluencePattern
from jscope_tl.results.text import percent, score_text, visible
from jscope_tl.results.text_attribution import TextAttribution
from jscope_tl.views.answer_bars import sources
from jscope_tl.views.answer_view import answer_html
from jscope_tl.views.answer_words import row_name, source_name
from jscope_tl.views.attention_heads import attention
from jscope_tl.views.circuitsvis_views import View, script
from jscope_tl.views.component_map import heads as effects_map
from jscope_tl.views.component_words import strongest_table
from jscope_tl.views.figures import series
from jscope_tl.views.flow_graph import flow, flow_rows
from jscope_tl.views.html import coloured, layer_rows, picture, table
from jscope_tl.views.maps import heatmap
from jscope_tl.views.scale import scale_of
from jscope_tl.views.together import Result, as_list, legible, prompt_text


def report_body(shown: list[Any], cache_or_patterns: Any = None, layers: Any = None, heads: Any = None) -> str:
    """HTML for some results, prompt by prompt: coloured tokens, tables, predictions, figures, attention. All values are readable without
    scripts.

    Raises:
        InputError: a cache is given without influence patterns or edges, or it is of another prompt.
    """
    if cache_or_patterns is not None and not any(map(_of_attention, shown)):
        raise InputError(
            "Attention patterns are shown beside an influence pattern or the effects of edges, but the results have neither; add "
            "js.influence_pattern(model, prompt, scope)."
        )
    parts = [_provenance(shown)]
    calls: list[str] = []
    for same in _by_prompt(shown):
        parts.append(f"<h2>{escape(prompt_text(same[0], 90))}</h2>")
        attributions = [result for result in same if isinstance(result, Attribution)]
        parts += [*map(_section, attributions), *_figures(attributions)]
        parts += [_flow(result) for result in same if isinstance(result, TokenFlow)]
        parts += [_answer(result) for result in same if isinstance(result, TextAttribution)]
        beside = [result for result in same if isinstance(result, InfluencePattern)]
        if beside:
            view = attention(beside, cache_or_patterns, layers, heads)
            parts += [f"<h3>{_of_patterns(beside)}</h3>", f'<div class="wide">{view.body}</div>']
            parts += map(_pattern_table, beside)
            calls += view.calls
        for effects in (result for result in same if isinstance(result, ComponentEffects)):
            edges = cache_or_patterns is not None and _of_attention(effects)
            views = [effects_map(effects), *([attention(effects, cache_or_patterns, layers, heads)] if edges else [])]
            parts.append(_effects(effects, views))
            calls += [call for view in views for call in view.calls]
    return "\n".join([*parts, script(tuple(calls))])


def _of_attention(result: Any) -> bool:
    """Whether a result is shown beside attention patterns."""
    return isinstance(result, InfluencePattern) or (isinstance(result, ComponentEffects) and result.of == "edges")


def _effects(effects: ComponentEffects, views: list[View], most: int = 300) -> str:
    k = min(most, effects.predicted.numel())
    return "\n".join(
        [
            f"<h3>Effects of changing {effects.of}: {escape(f'{effects.scope} scope{effects.asked}')}</h3>",
            *(f'<div class="wide">{view.body}</div>' for view in views),
            _probabilities(effects),
            _details(f"The {k} strongest as a table ({effects.unit})", strongest_table(effects, k)),
        ]
    )


def _of_patterns(patterns: list[InfluencePattern]) -> str:
    several = any(len(pattern.positions) > 1 for pattern in patterns)
    return f"Scopes of {'several predictions' if several else 'one prediction'}, as an attention pattern"


def _provenance(results: list[Any]) -> str:
    lines = dict.fromkeys(
        f"{p.model_name} ({p.model_class}, {p.dtype}); " + ", ".join(f"{name} {v}" for name, v in p.versions.items())
        for p in (result.provenance for result in results)
    )
    return "".join(f'<p class="quiet">{escape(line)}</p>' for line in lines)


def _by_prompt(results: list[Any]) -> Iterator[list[Any]]:
    """The results of each prompt, with prompts in the order of their first result."""
    rest = list(results)
    while rest:
        same = [result for result in rest if torch.equal(result.tokens, rest[0].tokens)]
        rest = [result for result in rest if not torch.equal(result.tokens, rest[0].tokens)]
        yield same


def _section(result: Attribution) -> str:
    result, notes = legible(result)
    colours = "" if result.hook_points else f"{scale_of([result]).note}; outlined: the explained position"
    says = [colours, *notes, result.resolved_line()]
    return "\n".join(
        [
            f"<h3>{escape(result.headline())}</h3>",
            f'<p class="quiet">{escape(result.provenance.model_name)}</p>',
            f"<p>{escape(result.prediction_line())}</p>",
            f"{_map(result)}{_layers(result)}" if result.hook_points else _line(result),
            *(f'<p class="quiet">{escape(line)}</p>' for line in says if line),
            *_warnings(result),
            _probabilities(result),
            _details(f"{'Scores' if notes else 'All scores'} as a table ({result.unit})", _scores(result)),
        ]
    )


def _flow(result: TokenFlow) -> str:
    head, *rows = flow_rows(result)
    edges = _table(list(head), [[escape(cell) for cell in row] for row in rows])
    return f"<h3>{escape(result.headline())}</h3>{flow(result).body}{_details('The strongest edges as a table', edges)}"


def _answer(result: TextAttribution, most: int = 300) -> str:
    says = f"map of {result.scope} scores: parts of the answer by their sources"
    parts = [answer_html(result), picture(heatmap(result), says)]
    if max(result.text.messages) > 0:
        with suppress(InputError):  # scores that cannot be grouped by message
            by_message = sources(result.grouped("message"))
            parts.append(picture(by_message, "each message's scores as shares of the highest of their row"))
    listed = result.top(most, template=True)
    rows = [
        [escape(row_name(result, s.row)), escape(source_name(result, s.source)), score_text(s.score, s.stderr)]
        for s in listed
    ]
    table = _table(["explained", "source", f"score ({escape(result.unit)})"], rows)
    return "".join([*parts, _details(f"The {len(listed)} highest scores as a table", table)])


def _line(result: Attribution) -> str:
    return f'<div class="tokens" role="group" aria-label="the prompt">{coloured(result)}</div>'


def _map(result: Any) -> str:
    scope = as_list(result)[0].scope
    return picture(heatmap(result), f"map of {scope} scores: position by hook point")


def _layers(result: Attribution) -> str:
    return table(("at", f"strongest tokens, their positions and scores ({result.unit})"), layer_rows(result))


def _warnings(result: Result) -> list[str]:
    return [f"<p>⚠ {escape(warning)}</p>" for warning in result.warnings]


def _probabilities(result: Attribution | ComponentEffects) -> str:
    target = result.prediction.target
    listed = list(result.prediction.top)
    if target.token not in {token.token for token in listed}:
        listed.append(target)
    rows = [[_named(token, target), percent(token.probability), _bar(token.probability)] for token in listed]
    return _details("Predicted next tokens", _table(["token", "probability", ""], rows))


def _named(token: PredictedToken, target: PredictedToken) -> str:
    return escape(repr(visible(token.str_token)) + (" (target)" if token.token == target.token else ""))


def _bar(share: float) -> str:
    return f'<span class="bar" style="width:{8 * share:.2f}rem"></span>'


def _scores(result: Attribution) -> str:
    n = result.scores.numel()
    listed = result.top(n, include_bos=True)
    ranks = {(token.hook_point, token.position): rank for rank, token in enumerate(listed, start=1)}
    ordered = sorted(listed, key=lambda t: (result.hook_points.index(t.hook_point) if t.hook_point else 0, t.position))
    at = ["at"] if result.hook_points else []
    rows = [
        [*([escape(t.hook_point)] if t.hook_point else []), str(t.position), escape(repr(visible(t.str_token))),
         score_text(t.score, t.stderr), str(ranks[t.hook_point, t.position])]
        for t in ordered
    ]  # fmt: skip
    return _table([*at, "position", "token", "score", "rank"], rows)


def _pattern_table(pattern: InfluencePattern) -> str:
    rows = []
    for scores, dest, target in zip(pattern.scores, pattern.positions, pattern.targets, strict=True):
        best = [t for t in scores.argsort(descending=True).tolist() if t <= dest and t not in pattern.bos_positions][:3]
        strongest = ", ".join(f"{visible(pattern.str_tokens[t])!r} at {t}: {scores[t]:.4g}" for t in best)
        rows.append([str(dest), *(escape(repr(visible(t))) for t in (pattern.str_tokens[dest], target.str_token)),
                     percent(target.probability), escape(strongest)])  # fmt: skip
    names = ["position", "token", "target", "probability", f"strongest sources ({escape(pattern.unit)})"]
    summary = f"The strongest sources of each explained prediction ({pattern.scope}) as a table"
    return "\n".join([*_warnings(pattern), _details(summary, _table(names, rows))])


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A table whose cells are HTML."""
    top = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _details(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def _figures(results: list[Attribution]) -> list[str]:
    figures = []
    for unit in dict.fromkeys(result.unit for result in results if not result.hook_points):
        same = [result for result in results if result.unit == unit and not result.hook_points]
        points = {result.provenance.hook_point for result in same}
        if len(points) == len(same) > 1 and len({result.scope for result in same}) == 1:
            figures.append(_map(same))
        else:
            figures += _series(same)
    return figures


def _series(results: list[Attribution], most: int = 4) -> list[str]:
    """The figure of a number series; none for other prompts."""
    try:
        drawn = picture(series(results[:most]), f"the number series and its {results[0].scope} scores as bars")
    except InputError:
        return []
    left_out = f'<p class="quiet">The first {most} of {len(results)} results.</p>' if len(results) > most else ""
    return [drawn + left_out]
