"""Interventions: ablating a token, and the effects of heads and of edges of attention patterns."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jscope_tl.attribution.setup import set_up
from jscope_tl.components.effects import ComponentEffects
from jscope_tl.components.prediction import components
from jscope_tl.engine.state import divergence
from jscope_tl.errors import InputError
from jscope_tl.explorer.answers import most_probable, tokens_of
from jscope_tl.explorer.requests import PROMPT, SETTINGS, checked, number, text
from jscope_tl.model.prompts import prompt_texts, to_id, to_position, to_str_tokens
from jscope_tl.model.running import Passes
from jscope_tl.model.view import ModelView
from jscope_tl.patching.ablated_runs import ablated_logits, replaced_by
from jscope_tl.patching.context_runs import second_order
from jscope_tl.results.files import listed, plain
from jscope_tl.views.attention_heads import attention
from jscope_tl.views.page import page

ABLATE = {
    **PROMPT,
    "position": SETTINGS["position"],
    "token": (number, "the position of the token to replace"),
    "replacement": (text, "'zero', 'mean', or a token"),
    "target": (lambda value: text(value) or number(value), "a token: its text or its id"),
    "job": SETTINGS["job"],
}
COMPONENTS = {**PROMPT, **{name: SETTINGS[name] for name in ("scope", "options", "position", "gradient", "job")}}
LISTED = 20
"""How many heads are listed with their effects."""


def ablate(model: Any, given: Any) -> dict[str, Any]:
    """The measured effect of replacing one token; if it is replaced by zero, also the second-order prediction of Fisher information."""
    given = checked(given, ABLATE)
    view = ModelView(model)
    if "token" not in given:
        raise InputError("token is missing: give the position of the token to replace.")
    ids = tokens_of(view, given)
    position, token = to_position(given.get("position", -1), len(ids)), to_position(given["token"], len(ids))
    if token > position:
        raise InputError(
            f"The token at {token} comes after the explained position {position}, and has no influence on it. Give an earlier token."
        )
    put, named = replaced_by(view, given.get("replacement", "zero"))
    masks = torch.zeros(2, len(ids), dtype=torch.bool, device="cpu")
    masks[1, token] = True
    base, without = torch.cat(list(ablated_logits(view, ids, masks, put, position, [], 2, Passes()))).log_softmax(-1)
    target = to_id(view, given["target"], len(base)) if "target" in given else int(base.argmax())
    return {
        "token": token,
        "str_token": prompt_texts(view, ids.tolist())[token],
        "replacement": named,
        "target": to_str_tokens(view, [target])[0],
        "kl": float(divergence(base, without).clamp_min(0)),
        "predicted_kl": _predicted(model, ids, position, masks[1:]) if put == "zero" else None,
        "log_prob": float(without[target] - base[target]),
        "probability": float(base[target].exp()),
        "without": float(without[target].exp()),
        "top": most_probable(view, base, 5),
        "top_without": most_probable(view, without, 5),
    }


def _predicted(model: Any, ids: Int[Tensor, "pos"], position: int, masks: Bool[Tensor, "1 pos"]) -> float | None:
    """The effect of setting the token's vector to 0 as predicted by the exact Fisher information; None if there are no Jacobian-vector products."""
    with set_up(model, "fisher", {}, progress=False).run(ids, [position]) as (forward, backward):
        found = second_order(forward, backward, masks)
        return None if found is None else float(found)


def heads(model: Any, given: Any) -> dict[str, Any]:
    """The JSON of the saved `ComponentEffects` of all heads, with the strongest ones measured if the request has ``measure``."""
    given = checked(given, {**COMPONENTS, "measure": (number, "a whole number")})
    effects = _effects(model, tokens_of(ModelView(model), given), given, "heads")
    if given.get("measure"):
        effects = effects.measure(given["measure"], progress=False)
    top = [{**plain(one), "name": one.name} for one in effects.top(LISTED)]
    return {**plain(effects, listed), "values": listed(effects.values), "top": top}


def edges(model: Any, given: Any) -> dict[str, Any]:
    """A page with the effects of edges beside the attention patterns, drawn by circuitsvis."""
    given = checked(given, COMPONENTS)
    view = ModelView(model)
    ids = tokens_of(view, given)
    effects = _effects(model, ids, given, "edges")
    _, cache = model.run_with_cache(ids.unsqueeze(0), names_filter=lambda name: name.endswith("hook_pattern"))
    shown = attention(effects, cache)
    best = effects.top(1)[0]
    return {
        "page": page(shown.title, shown._repr_html_()),
        "says": f"Each head's attention pattern, and beside it the effect on the prediction of setting each entry to 0. "
        f"Strongest: {best.name}, {best.effect:.4g} {effects.unit}.",
    }


def _effects(model: Any, ids: Int[Tensor, "pos"], given: dict[str, Any], of: str) -> ComponentEffects:
    how = {name: given[name] for name in ("position", "gradient") if name in given}
    return components(
        model, ids, given.get("scope", "fisher"), of=of, progress=False, **how, **given.get("options", {})
    )
