"""`tokens`: the prompt as circuitsvis' coloured tokens, for one scope or for several on the same scale."""

from html import escape
from typing import Any

from jscope_tl.model.pieces import pieces
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.text import percent, score_text, visible
from jscope_tl.views.circuitsvis_views import View, call, literal, place
from jscope_tl.views.scale import DARK, Scale, ink, scale_of
from jscope_tl.views.together import as_list, need_no_map, need_one_prompt, need_one_unit, prompt_text, to_labels


def tokens(results: Any, labels: Any = None, *, log: bool = False) -> View:
    """The prompt with every token coloured by its score, drawn by circuitsvis.

    Hovering shows the score, its standard error and the unit. All results share one scale, from 0 to the highest score outside BOS
    (``log``: logarithmic, over at most three decades). If BOS has a higher score, it gets the colour of the highest one. The explained
    position is outlined and followed by the target and its probability.

    Args:
        results: an `Attribution`, or several of the same prompt and unit, drawn one below the other.
        labels: a name for each result; by default the name of the scope.
        log: whether colours show the logarithm of the score.

    Returns:
        A view that shows itself in a notebook, with ``save(path)``. Both work without a network.

    Raises:
        InputError: results of different prompts or units, or a different number of labels than results.

    Example:
        >>> import jscope_tl as js
        >>> result = js.attribute(js.load_pocket_model(), "29 , 30 , 31 ,", "temperature")
        >>> js.views.tokens(result, log=True)
        View: temperature of "29 , 30 , 31 ," (shows itself in a notebook; .save(path) writes a page)
    """
    shown = as_list(results)
    need_no_map(shown)
    need_one_prompt(shown)
    need_one_unit(shown)
    names = to_labels(labels, shown)
    scale = scale_of(shown, log)
    parts, calls = [], []
    for result, name in zip(shown, names, strict=True):
        where, element = place()
        says = f"{result.headline()}, in {result.unit}; {result.provenance.model_name}"
        parts.append(f"<p><b>{escape(name)}</b>: {escape(says)}</p>{element}")
        calls.append(call(where, "ColoredTokens", _properties(result, scale)))
    note = f"{scale.note}; outlined: the explained position, with its target; hover over a token to see its score"
    warnings = dict.fromkeys(warning for result in shown for warning in result.warnings)
    foot = "".join(f'<p style="font-size:90%">{escape(line)}</p>' for line in (note, *(f"⚠ {w}" for w in warnings)))
    return View(
        f'{", ".join(names)} of "{prompt_text(shown[0], 60)}"', f"<div>{''.join(parts)}{foot}</div>", tuple(calls)
    )


def _properties(result: Attribution, scale: Scale) -> dict[str, str]:
    scored = [result.scored(i) for i in range(len(result.str_tokens))]
    intensities = [scale(token.score) for token in scored]
    texts = pieces(result.str_tokens)
    labels = [_label(result, i, texts[i], intensity) for i, intensity in enumerate(intensities)]
    values = [
        f"score({literal(f'{score_text(t.score, t.stderr)} {result.unit}, position {t.position}')},{intensity:.4f})"
        for t, intensity in zip(scored, intensities, strict=True)
    ]
    colour = f"rgb({','.join(map(str, DARK))})"
    return {
        "tokens": f"[{','.join(labels)}]",
        "values": f"[{','.join(values)}]",
        "minValue": "-1",
        "maxValue": "1",
        "positiveColor": literal(colour),
        "paddingBottom": "40",
    }


def _label(result: Attribution, i: int, text: str, intensity: float) -> str:
    shown = visible(text)
    html = escape(shown).replace(" ", "&nbsp;")
    inside = f'<span style="color:{ink(intensity)}">{html}</span>'
    if i == result.position:
        target = result.prediction.target
        says = escape(f"→ {visible(target.str_token)} {percent(target.probability)}").replace(" ", "&nbsp;")
        inside = f'<span style="outline:2px solid #0550ae">{inside}</span><span style="color:#0550ae;background:#fff;padding:1px 0">{says}</span>'
    return f"label({literal(shown)},{literal(inside)},{text.count(chr(10))})"
