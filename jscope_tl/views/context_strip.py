"""`context`: the answer once for every part of its prompt, with its tokens coloured by how much they depend on that part."""

from html import escape
from typing import Any

from jscope_tl.errors import InputError
from jscope_tl.patching.context_effects import ContextEffects, DependentToken
from jscope_tl.results.text import percent, shortened, visible
from jscope_tl.views.circuitsvis_views import View
from jscope_tl.views.html import spans, table
from jscope_tl.views.scale import DECADES, Scale

SMALL = '<p style="margin:.4em 0;font-size:90%">{}</p>'
ASKED = "Which words of the answer depend on which part of the prompt"
MEANS = (
    "Measured: the KL divergence, in nats, of the prediction of each word when the part is removed from the text. 0: the part makes no "
    "difference to this word."
)


def context(effects: Any, k: int = 10) -> View:
    """The answer once for every part of its prompt, with each token coloured by how much its prediction changes without the part.

    All parts share one logarithmic scale over three decades. Hovering shows the measured divergence, the divergence with vectors set to 0
    and its prediction by Fisher information, and the probabilities with and without the part. A table lists the strongest effects. The
    view is static HTML, without scripts or a network.

    Args:
        effects: the result of `jscope_tl.patching.context`.
        k: the number of rows of the table.

    Raises:
        InputError: ``effects`` is something else.

    Example:
        >>> import jscope_tl as js
        >>> found = js.patching.context(js.load_pocket_model(), "the keys to the cabinet", " are old", by="word")
        >>> js.views.context(found)
        View: 5 parts of a prompt, 2 tokens of its answer (shows itself in a notebook; .save(path) writes a page)
    """
    if not isinstance(effects, ContextEffects):
        raise InputError(f"views.context shows what js.patching.context returns; got {type(effects).__name__}.")
    high = float(effects.removed.max())
    scale = Scale(high / 10**DECADES, high, True)
    strips = [_strip(effects, i, scale) for i in range(len(effects.parts))]
    foot = [
        scale.note.replace("highest score", "largest divergence"),
        *(f"⚠ {warning}" for warning in effects.warnings),
    ]
    body = "".join(
        [
            f"<p><b>{ASKED}</b>: {escape(f'{effects.provenance.model_name}, answer {effects.continued}')}</p>",
            SMALL.format(escape(MEANS)),
            *strips,
            _table(effects, k),
            SMALL.format(escape(_predicted(effects))),
            *(SMALL.format(escape(line)) for line in foot),
        ]
    )
    return View(
        f"{len(effects.parts)} parts of a prompt, {len(effects.answer)} tokens of its answer", f"<div>{body}</div>", ()
    )


def _strip(effects: ContextEffects, i: int, scale: Scale) -> str:
    part, kl = effects.parts[i], effects.removed[i]
    said = [
        _said(effects, i, token) for token in sorted(effects.top(len(effects.answer), i), key=lambda token: token.out)
    ]
    name = f"without {visible(shortened(part.text, 90))!r} ({part.role})"
    drawn = spans(effects.answer, [scale(float(value)) for value in kl], said, -1)
    head = f'<p style="margin:.8em 0 0"><b>{escape(name)}</b>: mean {float(kl.mean()):.3g} nat</p>'
    return head + drawn


def _said(effects: ContextEffects, i: int, token: DependentToken) -> str:
    zeroed, predicted = float(effects.zeroed[i, token.out]), effects.predicted
    hidden = f"vectors set to 0: {zeroed:.3g} nat" + (
        "" if predicted is None else f", predicted {float(predicted[i, token.out]):.3g}"
    )
    instead = f"most probable without it: {visible(token.instead.str_token)!r} {percent(token.instead.probability)}"
    said = f"{visible(token.str_token)!r}: {token.kl:.3g} nat; {percent(token.probability)}, without the part {percent(token.without)}"
    return escape(f"{said}; {instead}; {hidden}")


def _table(effects: ContextEffects, k: int) -> str:
    rows = [
        (repr(visible(t.str_token)), visible(shortened(t.source.text, 50)), f"{t.kl:.3g}", percent(t.probability), percent(t.without),
         f"{visible(t.instead.str_token)!r} {percent(t.instead.probability)}")
        for t in effects.top(k)
    ]  # fmt: skip
    return table(["word", "depends on", "KL (nat)", "probability", "without", "most probable without"], rows)


def _predicted(effects: ContextEffects) -> str:
    if effects.predicted is None:
        return "There are no predictions by Fisher information, because Jacobian-vector products were not available."
    return (
        f"For vectors set to 0, the effects predicted by Fisher information have a rank correlation of {effects.correlation():.2f} with the "
        "measured ones; the second-order prediction is only accurate for small changes, and a whole part is a large one."
    )
