"""What the entry points share: keywords, warnings, documentation."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.attribution.keywords import NOT_TAKEN, SHARED
from tests import models
from tests.models import TOKENS, snapshot

OTHER = TOKENS.clone()
OTHER[3] = 45
ENTRY_POINTS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "attribute": (js.attribute, (TOKENS,)),
    "attribute_batch": (lambda model, **how: list(js.attribute_batch(model, [TOKENS, TOKENS[:5]], **how)), ()),
    "attribute_text": (js.attribute_text, (TOKENS[:5], TOKENS[5:])),
    "influence_pattern": (js.influence_pattern, (TOKENS,)),
    "jacobian": (js.jacobian, (TOKENS, torch.ones(32))),
    "spectrum": (js.spectrum, (TOKENS,)),
    "patching.compare": (js.patching.compare, (TOKENS, OTHER)),
    "patching.ablate": (js.patching.ablate, (TOKENS,)),
    "patching.side_by_side": (js.patching.side_by_side, (TOKENS, OTHER, "blocks.1.hook_resid_pre", [3])),
    "patching.flow": (js.patching.flow, (TOKENS, 3)),
    "diagnostics.linearity": (partial(js.diagnostics.linearity, sizes=(0.1, 0.2), n_random=1), (TOKENS,)),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(getattr(js, name.partition(".")[0]), name.partition(".")[2]) if "." in name else getattr(js, name)
    for name in ENTRY_POINTS
}
VALUES: dict[str, Any] = {
    "position": -2, "at": "blocks.1.hook_resid_pre", "prepend_bos": None, "fwd_hooks": [("hook_embed", lambda x, hook: 2 * x)],
    "reduction": "dot", "path": js.Line(steps=2), "gradient": "attnlrp", "frozen": ("attn", "norm"), "chunk_size": 2, "matmul_precision": "highest",
    "progress": False,
}  # fmt: skip


def call(name: str, model: Any, **how: Any) -> Any:
    function, given = ENTRY_POINTS[name]
    return function(model, *given, **how)


@pytest.mark.parametrize("keyword", SHARED)
@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_takes_a_keyword_or_says_why_not(llama: Any, name: str, keyword: str) -> None:
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    if keyword in NOT_TAKEN.get(name, {}):
        assert keyword not in parameters
        before = snapshot(llama)
        with pytest.raises(js.InputError, match=f"js.{name} takes no '{keyword}': {NOT_TAKEN[name][keyword]}"):
            call(name, llama, **{keyword: VALUES[keyword]})
        assert snapshot(llama) == before
        return
    assert parameters[keyword].kind is inspect.Parameter.KEYWORD_ONLY
    default = inspect.signature(js.attribute).parameters[keyword].default
    own = {"patching.compare": {"at": "resid_pre"}}  # what is patched are streams, not embeddings
    assert parameters[keyword].default == own.get(name, {}).get(keyword, default)
    at = {} if keyword in ("at", "path") or "at" not in parameters else {"at": "blocks.0.hook_resid_pre"}
    call(name, llama, **{keyword: VALUES[keyword]}, **at)


PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (js, js.views, js.patching, js.diagnostics, js.faithfulness, js.series)
    for name in getattr(
        module, "__all__", ("lorenz", "logistic_map", "brownian", "sine", "to_integers", "prompt", "drifting")
    )
    if inspect.isfunction(getattr(module, name))
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_documented(name: str) -> None:
    """``help()`` is enough."""
    text = inspect.getdoc(PUBLIC[name]) or ""
    assert "{shared}" not in text
    assert "see `attribute`" not in text
    described = text.partition("Args:\n")[2].partition("\n\n")[0].splitlines()
    heads = [line.partition(":")[0].replace(",", " ").split() for line in described if line[4:5].strip()]
    missing = {*inspect.signature(PUBLIC[name]).parameters} - {word for head in heads for word in head}
    assert not missing


@pytest.mark.parametrize("name", ["jacobian", "spectrum"])
def test_unknown_keywords_are_named(llama: Any, name: str) -> None:
    with pytest.raises(js.InputError, match=f"js.{name} has no keyword 'positon'. Did you mean 'position'"):
        call(name, llama, positon=3)


@pytest.mark.parametrize("name", [name for name in ENTRY_POINTS if name not in ("jacobian", "attribute_batch")])
def test_doubts_about_the_prompt_are_said_by_all(pocket: Any, name: str) -> None:
    """A second BOS changes every map."""
    tokens = pocket.to_tokens("the keys to the cabinet", prepend_bos=True)[0]
    twice, other = torch.cat([tokens[:1], tokens]), torch.cat([tokens[:1], tokens.roll(1)])
    other[1] = tokens[0]
    further = {
        "patching.compare": (other,), "patching.side_by_side": (other, "blocks.1.hook_resid_pre", [3]), "patching.flow": (3,)
    }.get(name, ())  # fmt: skip
    found = FUNCTIONS[name](pocket, twice, *further)
    result = {"patching.side_by_side": "clean", "patching.flow": ""}.get(
        name, "scope" if name.startswith("patching") else ""
    )
    assert any("more than one BOS" in warning for warning in (getattr(found, result) if result else found).warnings)


def test_a_warning_about_the_basis_is_said_by_linearity(kind: str) -> None:
    from tests.models import tiny

    centred = tiny(kind, "gpt2", center_unembed=True).model
    found = js.diagnostics.linearity(centred, TOKENS, "semantic")
    assert any("W_U is centred" in warning for warning in found.warnings)


def test_provenance_has_the_keys_of_transformerlens_analyses(llama: Any) -> None:
    """As its own saved analyses name them: the model, the basis of its weights, the hook point by its pattern."""
    result = js.attribute(llama, TOKENS, "entropy", at="blocks.1.hook_resid_pre")
    found = result.provenance
    assert found.hook_convention == "blocks.{layer}.hook_resid_pre"
    assert found.transformer_lens_version == found.versions["transformer_lens"]
    assert found.processing == {"compatibility_mode": False, "weight_basis": "raw_huggingface"}
    assert found.model_revision is None
    assert js.attribute(llama, TOKENS, "entropy", at="resid_pre").provenance.hook_convention == found.hook_convention


def test_provenance_knows_revision_and_folding(kind: str) -> None:
    folded = models.tiny(kind, "llama", fold_ln=True).model
    inner = getattr(folded, "original_model", None)
    if inner is not None:
        inner.config._commit_hash = "0123abc"
    found = js.attribute(folded, TOKENS, "entropy").provenance
    assert found.processing["weight_basis"].startswith("ln_folded")
    assert found.model_revision == ("0123abc" if inner is not None else None)
