"""The HTML that a notebook shows for each kind of result. It needs no network, and no script except for answers, which are interactive."""

from functools import singledispatch
from html import escape
from typing import Any

from jscope_tl.components.effects import ComponentEffects
from jscope_tl.components.token_flow import TokenFlow
from jscope_tl.corpus.component_means import ComponentMeans
from jscope_tl.corpus.row import Row
from jscope_tl.corpus.summary import Summary
from jscope_tl.corpus.two_runs import RunAgreement
from jscope_tl.diagnostics.linear_range import Linearity
from jscope_tl.faithfulness.results import Faithfulness
from jscope_tl.patching.ablation import EFFECTS, Ablation
from jscope_tl.patching.comparison import Comparison
from jscope_tl.patching.context_effects import ContextEffects
from jscope_tl.patching.three_runs import SideBySide
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.base import Result, ScoredToken
from jscope_tl.results.pattern import InfluencePattern
from jscope_tl.results.rows import JacobianRows
from jscope_tl.results.spectrum import Spectrum
from jscope_tl.results.text import score_text
from jscope_tl.results.text_attribution import TextAttribution
from jscope_tl.views.answer_view import answer_html
from jscope_tl.views.component_map import component_map
from jscope_tl.views.component_means import means_map
from jscope_tl.views.context_strip import context
from jscope_tl.views.corpus_html import agreement_html, row_html, summary_html
from jscope_tl.views.flow_graph import flow, flow_rows
from jscope_tl.views.html import coloured, layer_rows, picture, spans, table
from jscope_tl.views.linear import linearity
from jscope_tl.views.maps import heatmap
from jscope_tl.views.methods import faithfulness
from jscope_tl.views.patching_maps import comparison
from jscope_tl.views.scale import Scale, scale_of
from jscope_tl.views.spectra import spectrum
from jscope_tl.views.together import legible

SMALL = '<p style="margin:.4em 0;font-size:90%">{}</p>'


@singledispatch
def fragment(result: Any) -> str:
    """HTML for a result: its picture or table, and its text."""
    return f'<pre style="white-space:pre-wrap">{escape(repr(result))}</pre>'


@fragment.register
def _of_comparison(result: Comparison) -> str:
    return picture(comparison(result), "effects of patching, predictions and scores") + fragment.dispatch(object)(
        result
    )


@fragment.register
def _of_components(result: ComponentEffects) -> str:
    return component_map(result)


@fragment.register
def _of_component_means(result: ComponentMeans) -> str:
    return means_map(result)


@fragment.register
def _of_context(result: ContextEffects) -> str:
    return context(result).body


@fragment.register
def _of_linearity(result: Linearity) -> str:
    return picture(linearity(result), "predicted and actual changes") + fragment.dispatch(object)(result)


@fragment.register
def _of_faithfulness(result: Faithfulness) -> str:
    return picture(faithfulness(result), "means and intervals of all methods") + fragment.dispatch(object)(result)


@fragment.register
def _of_flow(result: TokenFlow) -> str:
    head, *rows = flow_rows(result, 5)
    return f"<div><p><b>{escape(result.headline())}</b></p>{flow(result).body}{table(head, rows)}</div>"


@fragment.register
def _of_answer(result: TextAttribution) -> str:
    return answer_html(result)


@fragment.register
def _of_ablation(result: Ablation) -> str:
    """A table of the tokens up to the explained position, with their scores and effects."""
    scope = result.scope
    rows = [
        (str(t), repr(scope.str_tokens[t]), f"{float(scope.scores[t]):.4g}",
         *(f"{float(getattr(result, effect)[t]):.3g}" for effect in EFFECTS))
        for t in range(scope.position + 1)
    ]  # fmt: skip
    names = ["position", "token", f"score ({scope.unit})", "logit", "log-probability (nat)", "KL (nat)"]
    return fragment.dispatch(object)(result) + table(names, rows)


@fragment.register
def _of_three_runs(result: SideBySide) -> str:
    runs = {"clean": result.clean, "corrupted": result.corrupted, "patched": result.patched}
    if result.clean.hook_points:
        return "".join(f"<h4>{name}</h4>{_of_result(run)}" for name, run in runs.items())
    scale = scale_of(list(runs.values()))
    parts = [
        f"<p><b>{name}</b>: {escape(f'{run.headline()}; {run.prediction_line()}')}</p>{coloured(run, scale)}"
        for name, run in runs.items()
    ]
    return f"<div>{''.join(parts)}{SMALL.format(escape(f'{scale.note}, in {result.clean.unit}'))}</div>"


@fragment.register
def _of_summary(result: Summary) -> str:
    return summary_html(result)


@fragment.register
def _of_agreement(result: RunAgreement) -> str:
    return agreement_html(result)


@fragment.register
def _of_row(result: Row) -> str:
    return row_html(result)


@fragment.register
def _of_rows(rows: JacobianRows) -> str:
    """The prompt, coloured by the norm of the rows at each position."""
    norms = rows.plain.float().norm(dim=(0, 2)).tolist()
    scale = Scale(0.0, max(norms), False)
    said = spans(rows.str_tokens, [scale(norm) for norm in norms], [f"{norm:.4g}" for norm in norms], rows.position)
    note = f"{scale.note.replace('highest score', 'highest norm')}; outlined: the explained position"
    return f"<div><p><b>{escape(rows.headline())}</b></p>{said}{SMALL.format(escape(note))}</div>"


@fragment.register
def _of_result(result: Result, k: int = 5) -> str:
    """The coloured prompt (with scores on hovering), map or spectrum, the strongest tokens, and the warnings."""
    result, notes = legible(result)
    prediction = result.prediction_line() if isinstance(result, Attribution) else ""
    resolved = result.resolved_line() if isinstance(result, Attribution) else ""
    resolved = result.decoding_line() if isinstance(result, Spectrum) else resolved
    parts = [
        f"<p><b>{escape('; '.join([result.headline(), *notes]))}</b></p>",
        *_drawn(result),
        f"<p>{escape(prediction)}</p>" if prediction else "",
        _strongest(result, k),
        SMALL.format(escape(resolved)) if resolved else "",
        *(SMALL.format(f"⚠ {escape(warning)}") for warning in result.warnings),
    ]
    return f"<div>{''.join(parts)}</div>"


def _drawn(result: Any) -> list[str]:
    """The picture of a result, with a note about its colours."""
    if isinstance(result, Spectrum):
        return [picture(spectrum(result), "spectrum of every position")]
    if isinstance(result, Attribution) and not result.hook_points:
        return [coloured(result), SMALL.format(escape(f"{scale_of([result]).note}; outlined: the explained position"))]
    return [picture(heatmap(result), f"map of {result.scope} scores")]


def _strongest(result: Result, k: int) -> str:
    """A table of the strongest tokens; for a layer map those of each layer."""
    if isinstance(result, Attribution) and result.hook_points:
        return table(("at", f"strongest tokens, their positions and scores ({result.unit})"), layer_rows(result))
    more = {
        InfluencePattern: ["explained position"],
        Spectrum: ["tokens that rise and fall along the leading direction"],
    }
    rows = [
        (str(t.position), repr(t.str_token), score_text(t.score, t.stderr), *_more(result, t)) for t in result.top(k)
    ]
    return table(["position", "token", f"score ({result.unit})", *more.get(type(result), [])], rows)


def _more(result: Result, token: ScoredToken) -> list[str]:
    if isinstance(result, InfluencePattern):
        return [str(token.explained)]
    if isinstance(result, Spectrum):
        rises, falls = result.texts(token.position, 0, 3)
        return [
            f"{', '.join(map(repr, rises))} against {', '.join(map(repr, falls))}" if rises else "none above chance"
        ]
    return []
