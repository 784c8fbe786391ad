"""Which models are refused, and how the weight processing is recognised."""

import inspect
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

import jscope_tl as js
from jscope_tl.model.basis import _is_centered as is_centered
from jscope_tl.model.hook_names import ALIASES, with_aliases
from jscope_tl.model.loading import has_bridge
from jscope_tl.model.view import ModelView, walk
from tests import models
from tests.conftest import shared_tiny
from tests.models import TOKENS, tiny

needs_bridge = pytest.mark.skipif(not has_bridge(), reason="no TransformerBridge before 3.0")
needs_hooked = pytest.mark.skipif(not models.has_hooked(), reason="no HookedTransformer from 4.0 on")

UNCHANGED_BY_FOLDING = {
    "semantic": {"target": 44}, "log_prob": {"target": 44}, "contrastive": {"target": 44, "baseline": 3},
    "logit_temperature": {}, "entropy": {}, "fisher": {"method": "exact"},
}  # fmt: skip


def test_raw_weights_are_seen_as_raw(tiny: models.Tiny) -> None:
    assert ModelView(tiny.model).basis == js.Basis(ln_folded=False, unembed_centered=False)


def test_folding_is_seen(kind: str, family: str) -> None:
    model = tiny(kind, family, fold_ln=True).model
    assert ModelView(model).basis == js.Basis(ln_folded=True, unembed_centered=False)


@pytest.mark.parametrize("family", ["gpt2", "llama", "pythia"])  # soft-capped logits are never centred
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_centring_is_seen(kind: str, family: str, dtype: torch.dtype) -> None:
    model = tiny(kind, family, center_unembed=True).model.to(dtype)
    assert ModelView(model).basis == js.Basis(ln_folded=False, unembed_centered=True)


@needs_bridge
def test_compatibility_mode_is_seen() -> None:
    model = tiny("bridge", "llama").model
    model.enable_compatibility_mode()
    assert ModelView(model).basis == js.Basis(ln_folded=True, unembed_centered=True)
    with pytest.raises(js.InputError, match="enable_compatibility_mode"):
        js.attribute(model, TOKENS, "temperature")


@needs_hooked
def test_norms_without_gain_are_seen() -> None:
    """What from_pretrained makes: the configuration says LNPre, and the module has no parameters at all."""
    model = models.hooked_of(models.hf_model("gpt2"), "gpt2", pre=True, fold_ln=True, center_unembed=True)
    assert not hasattr(model.ln_final, "w")
    assert ModelView(model).basis == js.Basis(ln_folded=True, unembed_centered=True)
    with pytest.raises(js.InputError, match="from_pretrained_no_processing"):
        js.attribute(model, TOKENS, "temperature")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_temperature_is_refused_where_it_is_noise(kind: str, family: str) -> None:
    model = tiny(kind, family, fold_ln=True).model
    with pytest.raises(js.InputError, match="from_pretrained_no_processing.*logit_temperature"):
        js.attribute(model, TOKENS, "temperature")
    # What it would have returned: nothing but rounding.
    y = js.jacobian(model, TOKENS)
    assert y.norm() > 1
    state_y = y.new_zeros(models.D_MODEL)

    def direction(state: js.State) -> torch.Tensor:
        state_y.copy_(state.y.detach())
        return state.y.detach() / state.y.detach().norm()

    noise = js.attribute(model, TOKENS, direction).scores
    assert float(state_y.norm()) == pytest.approx(models.D_MODEL**0.5, rel=1e-3)
    assert noise.max() < 1e-3


@pytest.mark.parametrize("scope", UNCHANGED_BY_FOLDING)
def test_folding_does_not_change(kind: str, family: str, scope: str) -> None:
    options = UNCHANGED_BY_FOLDING[scope]
    folded = js.attribute(tiny(kind, family, fold_ln=True).model, TOKENS, scope, **options)
    raw = js.attribute(shared_tiny(kind, family).model, TOKENS, scope, **options)
    torch.testing.assert_close(folded.scores, raw.scores, rtol=1e-4, atol=1e-5 * float(raw.scores.max()))


def test_folding_changes_low_rank_fisher_and_it_is_said(kind: str) -> None:
    folded = js.attribute(tiny(kind, "gpt2", fold_ln=True).model, TOKENS, "fisher", method="low_rank", rank=2)
    raw = js.attribute(shared_tiny(kind, "gpt2").model, TOKENS, "fisher", method="low_rank", rank=2)
    assert not torch.allclose(folded.scores, raw.scores, rtol=1e-3)
    assert any("folded" in warning for warning in folded.warnings)
    assert raw.warnings == []


def test_centring_changes_semantic_alone_and_it_is_said(kind: str) -> None:
    model = tiny(kind, "gpt2", center_unembed=True).model
    raw = shared_tiny(kind, "gpt2").model
    for scope, options in UNCHANGED_BY_FOLDING.items():
        centred, plain = (js.attribute(m, TOKENS, scope, **options) for m in (model, raw))
        same = torch.allclose(centred.scores, plain.scores, rtol=1e-4, atol=1e-5)
        assert same == (scope != "semantic"), scope
        assert any("not the paper's score" in warning for warning in centred.warnings) == (scope == "semantic")


@needs_bridge
def test_training_mode_is_refused_on_a_bridge() -> None:
    model = tiny("bridge", "gpt2").model
    model.train()
    with pytest.raises(js.InputError, match=r"training mode.*model\.eval\(\)"):
        js.attribute(model, TOKENS)
    model.eval()
    model.original_model.train()  # hidden from model.training
    with pytest.raises(js.InputError, match="training mode"):
        js.attribute(model, TOKENS)


@needs_hooked
def test_a_hooked_transformer_has_no_dropout_to_refuse() -> None:
    """Its loaders never call eval(), so a refusal would hit everyone; training mode changes none of its numbers."""
    model = tiny("hooked", "gpt2").model
    expected = js.attribute(model, TOKENS).scores
    model.train()
    assert torch.equal(js.attribute(model, TOKENS).scores, expected)
    assert model.training


@needs_bridge
def test_bridged_encoders_are_refused() -> None:
    from transformer_lens.model_bridge import TransformerBridge

    sizes = dict(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    bert = BertForMaskedLM(BertConfig(**sizes)).eval()
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).eval()
    for hf, word in ((bert, "is an encoder;"), (t5, "is an encoder-decoder;")):
        bridge = TransformerBridge.boot_transformers("tiny", hf_model=hf, tokenizer=models.tokenizer(), device="cpu")
        with pytest.raises(js.InputError, match=word):
            js.attribute(bridge, TOKENS[:3])


@needs_bridge
def test_a_remote_bridge_is_refused_by_name() -> None:
    try:
        from transformer_lens.model_bridge import RemoteBridge
    except ImportError:
        pytest.skip("no RemoteBridge before 4.0")
    with pytest.raises(js.InputError, match="RemoteBridge runs elsewhere"):
        js.attribute(object.__new__(RemoteBridge), TOKENS)


@needs_hooked
def test_hooked_encoders_are_refused_by_name() -> None:
    from transformer_lens import HookedEncoder, HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=9, n_ctx=9, act_fn="relu", d_mlp=8
    )
    with pytest.raises(js.InputError, match="HookedEncoder is an encoder"):
        js.attribute(HookedEncoder(cfg, move_to_device=False), [1, 2])
    cfg.attention_dir = "bidirectional"
    with pytest.raises(js.InputError, match="is an encoder"):
        js.attribute(HookedTransformer(cfg, move_to_device=False), [1, 2])


def test_other_things_are_refused() -> None:
    with pytest.raises(js.InputError, match=r"Linear is not a TransformerLens model.*Use a HookedTransformer"):
        js.attribute(torch.nn.Linear(2, 2), [1])
    with pytest.raises(js.InputError, match="LlamaForCausalLM is not a TransformerLens model"):
        js.attribute(models.hf_model("llama"), [1])


def test_weights_loaded_in_inference_mode_are_refused(kind: str) -> None:
    with torch.inference_mode():
        model = tiny(kind, "gpt2").model
        for parameter in list(model.parameters())[:1]:
            parameter.data = parameter.data.clone()
    if not any(parameter.is_inference() for parameter in model.parameters()):
        pytest.skip("this class makes ordinary weights even inside inference_mode")
    with pytest.raises(js.InputError, match="inference_mode"):
        js.attribute(model, TOKENS)


def test_hook_points(llama: Any) -> None:
    with pytest.raises(js.InputError, match=r"no hook point 'hook_embd'. Did you mean 'hook_embed'\?"):
        js.attribute(llama, TOKENS, at="hook_embd")
    with pytest.raises(js.InputError, match="not in the residual stream"):
        js.attribute(llama, TOKENS, at="blocks.0.attn.hook_pattern")
    with pytest.raises(js.InputError, match="fwd_hooks"):
        js.attribute(llama, TOKENS, fwd_hooks=[("blocks.0.hook_resid_prе", lambda a, hook: a)])
    with pytest.raises(js.InputError, match="pairs"):
        inspect.unwrap(js.attribute)(llama, TOKENS, fwd_hooks=["hook_embed"])  # past the tests' type checks


@needs_bridge
def test_canonical_names_of_a_bridge_are_accepted() -> None:
    model = shared_tiny("bridge", "llama").model
    alias, canonical = (
        js.attribute(model, TOKENS, at=at).scores for at in ("blocks.1.hook_resid_pre", "blocks.1.hook_in")
    )
    assert torch.equal(alias, canonical)


@pytest.mark.slow
def test_import_needs_neither_transformer_lens_nor_views() -> None:
    """HookedTransformer must not be imported at import time (4.x has none), nor circuitsvis or matplotlib at all.

    pandas is imported with `jscope_tl`, as with every version of TransformerLens.
    """
    code = (
        "import sys, jscope_tl; "
        "heavy = {'transformer_lens', 'transformers', 'circuitsvis', 'matplotlib', 'ray'} & set(sys.modules); "
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_bridge
@needs_hooked
@pytest.mark.parametrize("at", ["hook_embed", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"])
def test_both_classes_mean_the_same_point(family: str, at: str) -> None:
    bridge, hooked = (
        js.attribute(shared_tiny(k, family).model, TOKENS, at=at, target=44) for k in ("bridge", "hooked")
    )
    torch.testing.assert_close(bridge.scores, hooked.scores, rtol=1e-4, atol=1e-5)


@needs_hooked
def test_resid_mid_of_a_hooked_transformer() -> None:
    model = shared_tiny("hooked", "llama").model
    mid = js.jacobian(model, TOKENS, at="blocks.2.hook_resid_mid")
    cache = model.run_with_cache(TOKENS[None])[1]
    x = cache["blocks.2.hook_resid_mid"][0, -1].clone().requires_grad_()
    y = model.ln_final((x + model.blocks[2].mlp(model.blocks[2].ln2(x[None, None]))[0, 0])[None, None])[0, 0]
    expected = torch.stack([torch.autograd.grad(y[i], x, retain_graph=True)[0] for i in range(models.D_MODEL)])
    torch.testing.assert_close(mid[:, -1], expected, rtol=1e-4, atol=1e-5)


@needs_bridge
def test_resid_mid_of_a_bridge_by_any_of_its_names() -> None:
    """It feeds the MLP alone, the skip connection goes round it: both must count, whatever the point is called."""
    model = shared_tiny("bridge", "llama").model
    mid, alias = (js.attribute(model, TOKENS, at=f"blocks.1.{name}") for name in ("hook_resid_mid", "ln2.hook_in"))
    assert torch.equal(mid.scores, alias.scores)


@needs_hooked
def test_models_without_a_final_norm_keep_temperature() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=1, d_model=16, n_heads=2, d_head=8, d_vocab=60, d_vocab_out=20, n_ctx=9, act_fn="relu", d_mlp=16,
        normalization_type=None, seed=0,
    )  # fmt: skip
    model = HookedTransformer(cfg, move_to_device=False)
    assert not ModelView(model).basis.ln_folded
    # Fewer outputs than inputs: the prompt's own next token may be none of them, and the arg-max is explained then.
    result = js.attribute(model, [1, 2, 55, 3], "temperature", position=1)
    assert result.scores[:2].all()
    assert result.prediction.target == result.prediction.top[0]


def test_a_gain_of_one_with_a_bias_is_no_folded_norm(kind: str) -> None:
    model = tiny(kind, "gpt2", fold_ln=True).model
    assert ModelView(model).basis.ln_folded
    bias = getattr(model.ln_final, "bias", None) if kind == "bridge" else getattr(model.ln_final, "b", None)
    if bias is None:
        pytest.skip("this version replaces a folded norm by one without parameters")
    with torch.no_grad():
        bias.copy_(torch.linspace(-1, 1, models.D_MODEL))
    assert not ModelView(model).basis.ln_folded


def test_almost_centred_is_not_centred(kind: str) -> None:
    model = tiny(kind, "llama", center_unembed=True).model
    W_U = model.unembed.W_U if kind == "hooked" else model.unembed.weight.T
    with torch.no_grad():
        W_U += 0.3 * W_U.norm() / W_U.numel() ** 0.5 / W_U.shape[1] ** 0.5
    assert not ModelView(model).basis.unembed_centered


def test_tokenizers_larger_than_the_model(kind: str) -> None:
    model = shared_tiny(kind, "llama").model
    cfg, d_vocab = model.cfg, model.cfg.d_vocab
    cfg.d_vocab = 50
    try:
        with pytest.raises(js.InputError, match="out of range"):
            js.attribute(model, "the keys to the cabinet")
    finally:
        cfg.d_vocab = d_vocab


def test_every_module_and_parameter_is_seen(kind: str, family: str) -> None:
    model = shared_tiny(kind, family).model
    assert {id(module) for module in walk(model)} == {id(module) for module in model.modules()}
    assert len(walk(model)) == len(list(model.modules()))
    assert {id(p) for p in ModelView(model).parameters} == {id(p) for p in model.parameters()}


def test_what_changes_between_calls_is_seen(kind: str) -> None:
    """Hooks, weights in place, weights replaced, weights in inference mode: nothing is remembered from one call to the next."""
    model = tiny(kind, "llama").model
    first = js.attribute(model, TOKENS, target=44)
    handle = model.ln_final.register_forward_hook(lambda module, args, y: 2 * y)
    torch.testing.assert_close(js.attribute(model, TOKENS, target=44).scores, 2 * first.scores)
    handle.remove()
    assert torch.equal(js.attribute(model, TOKENS, target=44).scores, first.scores)
    owner, name = (model.unembed, "W_U") if kind == "hooked" else (model.unembed.original_component, "weight")
    weight = getattr(owner, name)
    with torch.no_grad():
        weight -= weight.mean(weight.shape.index(models.D_VOCAB), keepdim=True)
    centred = js.attribute(model, TOKENS, target=44)
    assert centred.basis == js.Basis(ln_folded=False, unembed_centered=True)
    assert not torch.allclose(centred.scores, first.scores)
    setattr(owner, name, torch.nn.Parameter(3 * weight.detach()))
    torch.testing.assert_close(js.attribute(model, TOKENS, target=44).scores, 3 * centred.scores)
    assert getattr(owner, name).requires_grad
    with torch.inference_mode():
        setattr(owner, name, torch.nn.Parameter(weight.detach().clone()))
    with pytest.raises(js.InputError, match="was loaded inside torch.inference_mode"):
        js.attribute(model, TOKENS)


@pytest.mark.parametrize("shared", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("by_row", [True, False])
def test_centring_is_seen_whatever_tokens_have_in_common(shared: float, by_row: bool) -> None:
    """In large vocabularies some tokens tell; groups of tokens that lie together must not pass for a mean."""
    W_U = torch.randn(32, 20_000, generator=torch.Generator().manual_seed(0)) + shared
    W_U[:, :2000] += 5 * torch.randn(32, 1, generator=torch.Generator().manual_seed(1))
    W_U = W_U if by_row else W_U.T.contiguous().T
    assert not is_centered(W_U)
    assert is_centered(W_U - W_U.mean(1, keepdim=True))


@pytest.mark.slow
@needs_bridge
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_bridges_that_know_hook_points_by_their_own_names_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older names are aliases on bridges, announced to go: without them everything is found, and says the same."""
    model = tiny("bridge", family).model
    known = ModelView(model).model.hook_dict
    asked = {
        "scores": {},
        "layers": {"at": "resid_pre"},
        "post": {"at": "blocks.0.hook_resid_post"},
        "pattern": {"at": "pattern"},
    }

    def everything() -> dict[str, torch.Tensor]:
        found = {name: js.attribute(model, TOKENS, "log_prob", target=44, **how).scores for name, how in asked.items()}
        for of in ("heads", "mlps", "neurons"):
            found[of] = js.patching.components(model, TOKENS, "log_prob", target=44, of=of, progress=False).predicted
        found["compared"] = js.patching.compare(
            model, TOKENS, TOKENS.flip(0), "log_prob", target=44, at="blocks.1.hook_resid_pre", progress=False
        ).effects  # fmt: skip
        return found

    before = everything()
    older = {m.expand(alias) for own, alias in ALIASES for name in known if (m := re.fullmatch(own, name))}
    assert len(older) > 8
    own = {name: point for name, point in known.items() if name not in older}
    monkeypatch.setattr(type(model), "hook_dict", property(lambda self: own))
    assert {name for name in older & known.keys() if with_aliases(own)[name] is not known[name]} == set()
    for name, value in everything().items():
        torch.testing.assert_close(value, before[name], msg=name)
