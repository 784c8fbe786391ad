"""Texts for the views of `ComponentEffects`: names of components, effects, captions, and a table of the strongest components."""

from html import escape

from jscope_tl.components.effects import ComponentEffects
from jscope_tl.components.names import ERROR, ComponentEffect
from jscope_tl.model.pieces import text_of
from jscope_tl.results.text import score_text, visible
from jscope_tl.views.html import table
from jscope_tl.views.together import prompt_text

MARKS = {"measured": "●", "refined": "○", "predicted": ""}
SMALL = '<p style="font-size:90%;margin:.4em 0">{}</p>'


def short_name(found: ComponentEffect) -> str:
    """``L9H6`` for a head; ``L9`` or ``L9 unit 7`` for other components, and ``L9 error`` for the error of an autoencoder."""
    name = f"L{found.layer}" + ("" if found.head is None else f"H{found.head}")
    if found.unit is None:
        return name
    return f"{name} error" if found.unit == ERROR else f"{name} unit {found.unit}"


def tokens_at(effects: ComponentEffects, found: ComponentEffect) -> str:
    """The token at the position of a component, or both tokens of an edge; empty for all positions together."""
    if found.dest is not None and found.src is not None:
        return f"{_token(effects, found.dest)} ← {_token(effects, found.src)}"
    return "" if found.pos is None else _token(effects, found.pos)


def _token(effects: ComponentEffects, position: int) -> str:
    return f"{visible(effects.str_tokens[position])!r} {position}"


def said(effects: ComponentEffects, found: ComponentEffect) -> str:
    """``L9H6 blocks.9.attn.hook_z head 6: 0.123 ± 0.004 nat (KL), refined``."""
    tokens = tokens_at(effects, found)
    name = f"{short_name(found)} {found.name}" + (f" ({tokens})" if tokens else "")
    return f"{name}: {score_text(found.effect, found.stderr)} {effects.unit}, {found.how}"


def caption(effects: ComponentEffects) -> str:
    """The explained quantity, the changed components and the unit, and the model."""
    of = f"{effects.scope} scope of the prediction at position {effects.position}{visible(effects.asked)}"
    changed = f"effect of changing {effects.of}, one by one (source: {_source(effects)}; {effects.direction}), in {effects.unit}"
    where = f'{effects.provenance.model_name}, "{prompt_text(effects, 90)}"'
    return f"<p><b>{escape(of)}</b>: {escape(f'{changed}; {where}')}</p>"


def _source(effects: ComponentEffects) -> str:
    """The source of the replacing activations, with the text of the other prompt if there is one."""
    if effects.source_str_tokens is None:
        return effects.source
    text = visible(text_of(effects.source_str_tokens)).strip()
    return f'{effects.source}, "{text if len(text) <= 90 else text[:90] + "..."}"'


def foot(effects: ComponentEffects, notes: list[str]) -> str:
    """Notes about the colours and marks of the picture, and the warnings."""
    counted = {how: _count(effects, how) for how in ("measured", "refined")}
    marks = [f"{MARKS[how]} {how} ({n} of {effects.predicted.numel()})" for how, n in counted.items() if n]
    lines = ["; ".join([*notes, *marks]), *(f"⚠ {warning}" for warning in effects.warnings)]
    return "".join(SMALL.format(escape(line)) for line in lines if line)


def _count(effects: ComponentEffects, how: str) -> int:
    measured = effects.refined.new_zeros(()) if effects.measured is None else ~effects.measured.isnan()
    return int(measured.sum() if how == "measured" else (effects.refined & ~measured).sum())


def strongest_table(effects: ComponentEffects, k: int = 10) -> str:
    """A table of the ``k`` strongest components, with the tokens at their positions."""
    listed = effects.top(min(k, effects.predicted.numel()))
    rows = [_row(effects, rank, found) for rank, found in enumerate(listed, start=1)]
    names = ["", "component", "tokens", f"effect ({effects.unit})", "how", "name"]
    kept = [i for i in range(len(names)) if i == 0 or any(row[i] for row in rows)]
    return table([names[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _row(effects: ComponentEffects, rank: int, found: ComponentEffect) -> list[str]:
    effect, how = score_text(found.effect, found.stderr), f"{MARKS[found.how]} {found.how}".strip()
    return [str(rank), short_name(found), tokens_at(effects, found), effect, how, found.name]
