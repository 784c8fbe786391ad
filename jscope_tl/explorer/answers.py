"""Answers to the page's requests: one function for each kind of request, which only calls the entry points."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from jaxtyping import Int
from torch import Tensor

from jscope_tl.attribution.attribute import attribute
from jscope_tl.attribution.explain import UNIT
from jscope_tl.attribution.explain import explain as cause
from jscope_tl.attribution.text import attribute_text
from jscope_tl.errors import InputError, nearest
from jscope_tl.explorer.examples import examples
from jscope_tl.explorer.requests import PROMPT, SETTINGS, TEXT, as_request, checked, prompt_of
from jscope_tl.model.chats import is_chat
from jscope_tl.model.prompts import prompt_texts, to_position, to_str_tokens, to_tokens
from jscope_tl.model.running import Passes, ends_at, undisturbed
from jscope_tl.model.text import tokenized
from jscope_tl.model.view import ModelView
from jscope_tl.pocket.load import NAME
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.files import listed, plain
from jscope_tl.scopes.directions import RandomDirectionScope
from jscope_tl.scopes.registry import available_scopes, scope_entry
from jscope_tl.views.figures import series_of

EXPLAIN = {
    "name": "explain",
    "question": "Which tokens caused it: gradient x attention under AttnLRP's rules, against the model's alternatives.",
    "options": ["target", "baseline"],
    "unit": UNIT,
    "price": "up to ten backward rows",
}
"""The entry of `js.explain` in the list of scopes, although it is not a scope."""
CANDIDATES = 20
"""The number of next tokens that are shown."""


def about(model: Any) -> dict[str, Any]:
    """The model, its scopes, examples and gradient rules."""
    view = ModelView(model)
    return {
        "model": view.name,
        "class": type(model).__name__,
        "n_layers": int(view.cfg.n_layers),
        "n_ctx": view.n_ctx,
        "basis": plain(view.basis),
        "has_chat_template": bool(getattr(view.tokenizer, "chat_template", None)),
        "scopes": [EXPLAIN, *(_scope(name) for name in available_scopes() if name != "spectral")],
        "examples": plain(examples(view.name == NAME)),
        "gradients": ["plain", "attnlrp", "relp", "gim"],
    }


def _scope(name: str) -> dict[str, Any]:
    entry = scope_entry(name)
    unit = getattr(entry.make, "unit", "")
    return {
        "name": name,
        "question": entry.summary.replace("`", ""),
        "options": list(entry.options),
        "unit": unit if isinstance(unit, str) else "",
        "price": "30 to 200 backward rows" if name.startswith("fisher") else "one backward row",
    }


def tokens_of(view: ModelView, given: Mapping[str, Any]) -> Int[Tensor, "pos"]:
    """The tokens of the prompt of a request."""
    prompt = prompt_of(given)
    return tokenized(view, prompt).tokens if is_chat(prompt) else to_tokens(view, prompt)


def tokens(model: Any, given: Any) -> dict[str, Any]:
    """The tokens of a prompt."""
    view = ModelView(model)
    found = tokens_of(view, checked(given, PROMPT))
    return {"tokens": found.tolist(), "str_tokens": prompt_texts(view, found.tolist())}


def predict(model: Any, given: Any) -> dict[str, Any]:
    """The most probable next tokens at a position."""
    view, fields = ModelView(model), {name: SETTINGS[name] for name in ("position", "gradient", "job")}
    given = checked(given, {**PROMPT, **fields})
    ids = tokens_of(view, given)
    position = to_position(given.get("position", -1), len(ids))
    with undisturbed(view, []), ends_at(view, [], position) as ends:
        log_p = ends(ids.unsqueeze(0), Passes())[1][0].double().log_softmax(-1)
    return {
        "position": position,
        "tokens": ids.tolist(),
        "str_tokens": prompt_texts(view, ids.tolist()),
        "top": most_probable(view, log_p, CANDIDATES),
    }


def most_probable(view: ModelView, log_p: Tensor, k: int) -> list[dict[str, Any]]:
    """The ``k`` tokens with the highest log-probability."""
    best = log_p.topk(min(k, len(log_p)))
    ids, p = best.indices.tolist(), best.values.exp().tolist()
    named = zip(ids, to_str_tokens(view, ids), p, strict=True)
    return [{"token": token, "str_token": text, "probability": share} for token, text, share in named]


def explain(model: Any, given: Any) -> dict[str, Any]:
    """The JSON of an `Attribution`, with the additions of `described` and the time in seconds. The saved JSON is also a valid request."""
    given = checked(as_request(given), {**PROMPT, **SETTINGS})
    ids = tokens_of(ModelView(model), given)
    how = {name: given[name] for name in ("at", "per", "reduction", "path", "gradient", "frozen") if name in given}
    how = {"position": given.get("position", -1), "progress": False, **how, **given.get("options", {})}
    started = time.perf_counter()
    scope = given.get("scope", "semantic")
    result = _caused(model, ids, how) if scope == EXPLAIN["name"] else attribute(model, ids, scope, **how)
    return {**described(result), "seconds": time.perf_counter() - started}


def _caused(model: Any, ids: Int[Tensor, "pos"], how: Mapping[str, Any]) -> Attribution:
    taken = ("target", "baseline", "n", "position", "gradient", "progress")
    for name in how:
        if name not in taken:
            raise InputError(f"explain takes no {name}.{nearest(name, taken)} It takes {', '.join(taken[:-1])}.")
    return cause(model, ids, **how)


def described(result: Attribution) -> dict[str, Any]:
    """The JSON of an `Attribution`, the positions that colour scales leave out, and the values and scores of a number series if it is one."""
    found = {**plain(result, listed), "off_scale": list(result.off_scale), "series": None}
    with suppress(InputError):
        values, scores = series_of(result)
        found["series"] = {"values": values, "scores": scores}
    return found


def control(model: Any, given: Any) -> dict[str, Any]:
    """The scores of a random direction for the same prompt, position and hook point."""
    fields = {name: SETTINGS[name] for name in ("position", "at", "gradient", "job")}
    given = checked(given, {**PROMPT, **fields})
    ids = tokens_of(ModelView(model), given)
    how = {name: given[name] for name in ("position", "at", "gradient") if name in given}
    return plain(attribute(model, ids, RandomDirectionScope(), progress=False, **how), listed)


def answer(model: Any, given: Any) -> dict[str, Any]:
    """The JSON of a `TextAttribution`, with its sources and scores, and which sources are hidden in lists."""
    given = checked(given, {**PROMPT, **TEXT})
    aside = ("options", "job", "continuation", "continuation_tokens")
    how = {name: given[name] for name in TEXT if name in given and name not in aside}
    continuation = given.get("continuation_tokens", given.get("continuation"))
    how = {**how, "progress": False, **given.get("options", {})}
    result = attribute_text(model, prompt_of(given), continuation, **how)
    more = {
        "sources": result.sources,
        "hidden": [result.hidden(source) for source in result.sources],
        "scores": result.scores,
        "stderr": result.stderr,
        "template": result.template_line(),
    }
    return {**plain(result, listed), **plain(more, listed)}
