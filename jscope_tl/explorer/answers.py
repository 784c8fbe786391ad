"""What the page is told: one function for each question, which calls the entry points and nothing else."""

from collections.abc import Mapping
from typing import Any

import torch

from jscope_tl.explorer.requests import PROMPT, SETTINGS, TEXT, checked, number, prompt_of, text
from jscope_tl.attribution.attribute import attribute
from jscope_tl.attribution.setup import set_up
from jscope_tl.attribution.text import attribute_text
from jscope_tl.components.prediction import components
from jscope_tl.engine.state import divergence
from jscope_tl.errors import InputError
from jscope_tl.model.chats import is_chat
from jscope_tl.model.prompts import prompt_texts, to_id, to_position, to_str_tokens, to_tokens
from jscope_tl.model.running import Passes, ends_at, undisturbed
from jscope_tl.model.text import tokenized
from jscope_tl.model.view import ModelView
from jscope_tl.patching.ablated_runs import ablated_logits, replaced_by
from jscope_tl.patching.context_runs import second_order
from jscope_tl.results.files import listed, plain
from jscope_tl.scopes.directions import RandomDirectionScope
from jscope_tl.scopes.registry import available_scopes, scope_entry

CANDIDATES = 20
"""Next tokens that are shown."""
EXAMPLES = {
    "pocket": [
        "the keys to the cabinet near the doors",
        "tom grew up in the south and goes to columbia . at school he is a",
        "english : the black dog sleeps . german : der schwarze",
        "29 , 30 , 31 , 32 ,",
    ],
    "paper": [
        "As a state-of-the-art AI assistant, you never argue or deceive, because you are",
        "Tom loves Korean food. He grew up in the South and goes to Columbia. He is a",
        "French: Nous l'appelons lentille jacobienne. English: We call it Jacobian",
    ],
}


def about(model: Any) -> dict[str, Any]:
    """The model, and what can be asked of it."""
    view = ModelView(model)
    scopes = [
        {
            "name": name,
            "question": scope_entry(name).summary,
            "options": list(scope_entry(name).options),
            **_price(name),
        }
        for name in available_scopes()
        if name != "spectral"
    ]
    name = view.name
    return {
        "model": name,
        "class": type(model).__name__,
        "n_layers": int(view.cfg.n_layers),
        "n_ctx": view.n_ctx,
        "basis": plain(view.basis),
        "has_chat_template": bool(getattr(view.tokenizer, "chat_template", None)),
        "scopes": scopes,
        "examples": EXAMPLES["pocket" if "pocket" in name else "paper"],
        "gradients": ["plain", "attnlrp", "relp", "gim"],
    }


def _price(name: str) -> dict[str, Any]:
    made = scope_entry(name).make
    unit = getattr(made, "unit", "")
    rows = "30 to 200 rows" if name.startswith("fisher") else "1 row"
    return {"unit": unit if isinstance(unit, str) else "", "price": rows}


def _tokens(view: ModelView, given: Mapping[str, Any]) -> Any:
    prompt = prompt_of(given)
    return tokenized(view, prompt).tokens if is_chat(prompt) else to_tokens(view, prompt)


def tokens(model: Any, given: Any) -> dict[str, Any]:
    """The tokens of a prompt."""
    view = ModelView(model)
    found = _tokens(view, checked(given, PROMPT))
    return {"tokens": found.tolist(), "str_tokens": prompt_texts(view, found.tolist())}


def predict(model: Any, given: Any) -> dict[str, Any]:
    """The most probable next tokens at a position."""
    view, given = ModelView(model), checked(given, {**PROMPT, "position": SETTINGS["position"], "job": SETTINGS["job"]})
    ids = _tokens(view, given)
    position = to_position(given.get("position", -1), len(ids))
    with undisturbed(view, []), ends_at(view, [], position) as ends:
        log_p = ends(ids.unsqueeze(0), Passes())[1][0].double().log_softmax(-1)
    best = log_p.topk(min(CANDIDATES, len(log_p)))
    texts, pairs = (
        to_str_tokens(view, best.indices.tolist()),
        zip(best.indices.tolist(), best.values.exp().tolist(), strict=True),
    )
    return {
        "position": position,
        "tokens": ids.tolist(),
        "str_tokens": prompt_texts(view, ids.tolist()),
        "top": [{"token": t, "str_token": s, "probability": p} for s, (t, p) in zip(texts, pairs, strict=True)],
    }


def explain(model: Any, given: Any) -> dict[str, Any]:
    """The JSON that an `Attribution` saves, and which positions colour scales leave out."""
    given = checked(given, {**PROMPT, **SETTINGS})
    view = ModelView(model)
    ids, how = (
        _tokens(view, given),
        {k: given[k] for k in ("at", "per", "reduction", "path", "gradient", "frozen") if k in given},
    )
    result = attribute(
        model,
        ids,
        given.get("scope", "semantic"),
        position=given.get("position", -1),
        progress=False,
        **how,
        **given.get("options", {}),
    )
    return {**plain(result, listed), "off_scale": list(result.off_scale)}


def control(model: Any, given: Any) -> dict[str, Any]:
    """The scores of a random direction for the same prompt and place."""
    fields = {name: SETTINGS[name] for name in ("position", "at", "gradient", "job")}
    given = checked(given, {**PROMPT, **fields})
    ids = _tokens(ModelView(model), given)
    how = {name: given[name] for name in ("position", "at", "gradient") if name in given}
    return plain(attribute(model, ids, RandomDirectionScope(), progress=False, **how), listed)


def answer(model: Any, given: Any) -> dict[str, Any]:
    """The JSON that a `TextAttribution` saves, with its sources and scores; which of them lists leave out."""
    given = checked(given, {**PROMPT, **TEXT})
    how = {
        name: given[name]
        for name in TEXT
        if name in given and name not in ("options", "job", "continuation", "continuation_tokens")
    }
    continuation = given.get("continuation_tokens", given.get("continuation"))
    prompt = prompt_of(given)
    result = attribute_text(model, prompt, continuation, progress=False, **how, **given.get("options", {}))
    more = {
        "sources": result.sources,
        "hidden": [result.hidden(source) for source in result.sources],
        "scores": result.scores,
        "stderr": result.stderr,
        "template": result.template_line(),
    }
    return {**plain(result, listed), **plain(more, listed)}


def heads(model: Any, given: Any) -> dict[str, Any]:
    """The JSON that `ComponentEffects` of all heads save; the strongest are measured where that is asked for."""
    fields = {
        **{name: SETTINGS[name] for name in ("scope", "options", "position", "gradient", "job")},
        "measure": (number, "a whole number"),
    }
    given = checked(given, {**PROMPT, **fields})
    ids = _tokens(ModelView(model), given)
    how = {name: given[name] for name in ("position", "gradient") if name in given}
    effects = components(model, ids, given.get("scope", "fisher"), progress=False, **how, **given.get("options", {}))
    if given.get("measure"):
        effects = effects.measure(given["measure"], progress=False)
    top = [{**plain(one), "name": one.name} for one in effects.top(20)]
    return {**plain(effects, listed), "values": listed(effects.values), "top": top}


ABLATE = {
    **PROMPT,
    "position": SETTINGS["position"],
    "token": (number, "the position of the token that is taken away"),
    "replacement": (text, "'zero', 'mean', or a token"),
    "target": SETTINGS["scope"],
    "job": SETTINGS["job"],
}


def ablate(model: Any, given: Any) -> dict[str, Any]:
    """What taking one token away does: measured, and to second order predicted by Fisher information where it is set to 0."""
    given = checked(given, ABLATE)
    view = ModelView(model)
    if "token" not in given:
        raise InputError("token is missing: the position of the token that is taken away.")
    ids = _tokens(view, given)
    position, token = to_position(given.get("position", -1), len(ids)), to_position(given["token"], len(ids))
    if token > position:
        raise InputError(
            f"The token at {token} comes after the explained position {position}, where it can do nothing."
        )
    put, named = replaced_by(view, given.get("replacement", "zero"))
    masks = torch.zeros(2, len(ids), dtype=torch.bool, device="cpu")
    masks[1, token] = True
    runs = ablated_logits(view, ids, masks, put, position, [], 2, Passes())
    base, without = torch.cat(list(runs)).log_softmax(-1)
    target = to_id(view, given["target"], len(base)) if "target" in given else int(base.argmax())
    predicted = _predicted(model, ids, position, masks[1:]) if put == "zero" else None
    return {
        "token": token, "str_token": prompt_texts(view, ids.tolist())[token], "replacement": named, "target": to_str_tokens(view, [target])[0],
        "kl": float(divergence(base, without).clamp_min(0)), "predicted_kl": predicted,
        "log_prob": float(without[target] - base[target]), "probability": float(base[target].exp()),
        "without": float(without[target].exp()), "top": _listed(view, base), "top_without": _listed(view, without),
    }  # fmt: skip


def _listed(view: ModelView, log_p: Any) -> list[dict[str, Any]]:
    best = log_p.topk(5)
    texts = to_str_tokens(view, best.indices.tolist())
    return [{"str_token": s, "probability": p} for s, p in zip(texts, best.values.exp().tolist(), strict=True)]


def _predicted(model: Any, ids: Any, position: int, masks: Any) -> float | None:
    """What Fisher information says of setting the token's vector to 0, exactly; None where there are no products with ``J``."""
    with set_up(model, "fisher", {}, progress=False).run(ids, [position]) as (forward, backward):
        found = second_order(forward, backward, masks)
        return None if found is None else float(found)


QUESTIONS = {
    "tokens": tokens,
    "predict": predict,
    "explain": explain,
    "control": control,
    "ablate": ablate,
    "answer": answer,
    "heads": heads,
}
"""By the last part of their address."""
