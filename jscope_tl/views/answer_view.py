"""`answer`: an answer whose tokens or spans show their sources when they are clicked or focused."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Any

from jscope_tl.model.pieces import pieces
from jscope_tl.results.text import NAMED, percent, score_text, visible
from jscope_tl.results.text_attribution import TextAttribution
from jscope_tl.scopes.registry import available_scopes, scope_entry
from jscope_tl.views.answer_script import SCRIPT, STYLE
from jscope_tl.views.answer_words import (
    n_sources,
    need_text,
    off_scale,
    place,
    predicted,
    quoted,
    row_name,
    row_shares,
    row_text,
    row_tops,
    scored_name,
    source_texts,
    where,
)
from jscope_tl.views.circuitsvis_views import View, literal
from jscope_tl.views.together import prompt_text

MOST_CELLS = 300_000
"""If a result has more scores, the page leaves out those below `LEAST` times the highest score of their row."""
LEAST = 0.01
NO_MATHS = "tex2jax_ignore mathjax_ignore"
"""Classes that prevent MathJax, which notebooks run over HTML, from treating dollar signs in a text as formulas."""
LISTED = 8
"""How many sources are listed for each row."""


def answer(result: Any) -> View:
    """The answer as buttons, one for each row of the result. A click or keyboard focus shows the sources of a row.

    The view shows the prediction of the chosen row (probability, rank, the most probable tokens), its strongest sources, and the whole
    text, message by message, coloured by score. Each row has its own scale, from 0 to its highest score. A source shows its score, standard
    error and unit on hovering and on focus. The arrow keys move between rows and between sources.

    BOS and the text of the chat template are hidden until "show BOS and template text" is ticked, and are never included in the scale;
    a line gives their scores. Without JavaScript, every row has its prediction and its strongest sources as a section that opens, and the
    text is coloured by the first row.

    Args:
        result: a `TextAttribution`; `TextAttribution.grouped` gives other sources, ``spans=`` of `attribute_text` other rows.

    Returns:
        A view that shows itself in a notebook, with ``save(path)``. Both work without a network.

    Raises:
        InputError: ``result`` is not a `TextAttribution`.

    Example:
        >>> import jscope_tl as js
        >>> result = js.attribute_text(js.load_pocket_model(), "the keys to the cabinet near the doors", " are old")
        >>> js.views.answer(result)
        View: the answer " are old" to "the keys to the cabinet near the doors" (shows itself in a notebook; .save(path) writes a page)
    """
    need_text(result)
    text = "".join(pieces(result.str_tokens[result.text.n_prompt :]))
    text = visible(text if len(text) <= 60 else f"{text[:60]}...")
    return View(f'the answer "{text}" to "{prompt_text(result, 60)}"', answer_html(result), ())


def answer_html(result: TextAttribution) -> str:
    """The whole view, as an HTML fragment with its own style and script."""
    parts = [
        f"<p><b>{escape(result.headline())}</b>; {escape(result.provenance.model_name)}</p>",
        *(f"<p>⚠ {escape(warning)}</p>" for warning in result.warnings),
        "<h4>Answer</h4>",
        '<p class="how">Open a row below to see its prediction and its strongest sources; the colours are those of row 1.</p>',
        f'<div class="rows" role="group" aria-label="the answer" dir="auto">{_buttons(result)}</div>',
        '<div class="sides"><div class="panels"><h4>Sources of the chosen row</h4>',
        *(_panel(result, row) for row in range(len(result.rows))),
        f"{_meaning(result)}</div><div><h4>The sources in the text</h4>{_legend(result)}{_template(result)}",
        f'<div class="text">{"".join(_messages(result))}</div></div></div>',
        '<p class="said" aria-live="polite"></p><p class="spoken" aria-live="polite"></p>',
        f'<script type="application/json">{literal(_data(result))}</script>',
    ]
    return f'{STYLE}<div class="jscope-answer {NO_MATHS}">{"".join(parts)}</div>{SCRIPT}'


def _buttons(result: TextAttribution) -> str:
    """The rows as buttons, in their order, and the text that no row explains as plain text."""
    texts, at, parts = pieces(result.str_tokens[result.text.n_prompt :]), 0, []
    for row, span in enumerate(result.rows):
        parts.append(escape(visible("".join(texts[at : span.start]))))
        text = row_text(result, row)
        pressed, name = "false" if row else "true", escape(row_name(result, row))
        parts.append(
            f'<button type="button" aria-pressed="{pressed}" aria-label="{name}">{escape(visible(text))}</button>'
        )
        parts.append("<br>" * text.endswith("\n"))
        at = max(at, span.stop)
    return "".join([*parts, escape(visible("".join(texts[at:])))])


def _panel(result: TextAttribution, row: int) -> str:
    """The prediction and the strongest sources of a row."""
    name, opened = escape(row_name(result, row)), "" if row else " open"
    body = "".join(_listed(result, row))
    table = (
        f'<div class="listed"><table><thead><tr><th scope="col">source</th><th scope="col">in</th><th scope="col">score ({escape(result.unit)})'
        f"</th></tr></thead><tbody>{body}</tbody></table></div>"
    )
    none = "<p>Only BOS and template text come before it.</p>"
    return f'<details class="panel"{opened}><summary>{name}</summary><p>{_unbroken(predicted(result, row))}</p>{table if body else none}</details>'


def _unbroken(text: str) -> str:
    """Escaped text without a line break between a quotation mark and the space at the beginning of a token."""
    return escape(text).replace("&#x27; ", "&#x27;&nbsp;")


def _listed(result: TextAttribution, row: int) -> Iterator[str]:
    listed = [scored for scored in result.top(LISTED, row) if scored.score > 0]
    for scored in listed:
        source, score = scored.source, score_text(scored.score, scored.stderr)
        bar = f'<i style="width:{4 * scored.score / listed[0].score:.2f}rem"></i>'
        at = f"{where(result, source)}, {place(source)}"
        yield f"<tr><td><bdi>{_unbroken(quoted(source.text))}</bdi></td><td>{escape(at)}</td><td>{bar} {score}</td></tr>"


def _legend(result: TextAttribution) -> str:
    """The colour scale of the chosen row, with its limits."""
    high = float(row_tops(result)[0])
    notes = "".join(f"; {note}" for note in off_scale(result))
    swatch = '<span class="scale" aria-hidden="true"></span>'
    return f'<p class="legend">0 {swatch} <b class="top">{high:.4g}</b> {escape(result.unit)}: the highest score of this row{notes}</p>'


def _template(result: TextAttribution) -> str:
    """A checkbox that shows BOS and template text, and a line with their scores."""
    line = result.template_line()
    return (
        f'<label><input type="checkbox"> show BOS and template text</label> <small>{escape(line)}</small>'
        if line
        else ""
    )


def _messages(result: TextAttribution) -> Iterator[str]:
    """The sources by message, coloured by the first row."""
    texts, shares, n = source_texts(result), row_shares(result)[0].tolist(), n_sources(result, 0)
    n_prompt = result.text.n_prompt
    numbered = list(enumerate(result.sources))
    for _, run in groupby(numbered, lambda one: (one[1].role, one[1].message, one[1].positions[0] >= n_prompt)):
        block = list(run)
        hidden = all(result.hidden(source) for _, source in block)
        heading = "" if hidden else f"<h5>{escape(where(result, block[0][1]))}</h5>"
        spans = "".join(_source(result, j, texts[j], shares[j], j >= n) for j, _ in block)
        yield f'<div class="message{" hid" * hidden}">{heading}<p dir="auto" role="list">{spans}</p></div>'


def _source(result: TextAttribution, j: int, text: str, share: float, later: bool) -> str:
    source = result.sources[j]
    classes = ["src", *["hid"] * result.hidden(source), *["later"] * later, *["strong"] * (share > 0.98)]
    style = f' style="--i:{share:.3f}"' if share > 0 else ""
    shown = escape(visible(text).replace(NAMED["\n"], NAMED["\n"] + "\n"))
    return f'<span role="listitem" class="{" ".join(classes)}"{style} data-at="{place(source)}">{shown}</span>'


def _meaning(result: TextAttribution) -> str:
    """A short explanation of the scope and the scores."""
    scope = result.scope.partition(",")[0]
    about = f"{scope}: {scope_entry(scope).summary.replace('``', '')} " if scope in available_scopes() else ""
    x = f", where x is the vector of a token at {result.provenance.hook_point}" if "of x" in result.unit else ""
    says = (
        f"{about}The target is the chosen row. Scores are in {result.unit}{x}; they have no sign and are not shares of a total. Scores of the same "
        "row are comparable, colours of different rows are not."
    )
    return f'<p class="hint"><b>What the numbers mean.</b> {escape(says)}</p>'


def _data(result: TextAttribution) -> dict[str, Any]:
    tops, n_prompt = row_tops(result).tolist(), result.text.n_prompt
    rows = []
    for row, span in enumerate(result.rows):
        explained = range(n_prompt + span.start, n_prompt + span.stop)
        own = [j for j, source in enumerate(result.sources) if {*source.positions} & {*explained}]
        strongest = [scored_name(result, scored) for scored in result.top(1, row) if scored.score > 0]
        says = "; strongest source: ".join([row_name(result, row), *strongest])
        rows.append(
            {"top": f"{tops[row]:.4g}", "says": says, "explained": own, "scores": _scores(result, row, tops[row])}
        )
    return {"unit": result.unit, "least": percent(LEAST), "rows": rows}


def _scores(result: TextAttribution, row: int, top: float) -> Sequence[str]:
    """The scores of the sources of a row, in their order, as text; empty for small scores that a large result leaves out."""
    n = n_sources(result, row)
    least = LEAST * top if result.scores.numel() > MOST_CELLS else 0.0
    scores = result.scores[row, :n].tolist()
    errors = [None] * n if result.stderr is None else result.stderr[row, :n].tolist()
    return [score_text(s, e) if s >= least else "" for s, e in zip(scores, errors, strict=True)]
