"""Attention patterns and norm scales held constant, architecture by architecture, against oracles made without the package."""

from typing import Any

import pytest
import torch
from torch.nn import functional

import jscope_tl as js
from jscope_tl.engine.ruled_pass import HeldConstant
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.under_rules import under_rules
from jscope_tl.model.loading import has_bridge
from jscope_tl.model.view import ModelView
from tests import models, oracles, real_model
from tests.models import TOKENS

KINDS = [("attn",), ("norm",), ("attn", "norm")]
needs_bridge = pytest.mark.skipif(not has_bridge(), reason="no TransformerBridge before 3.0")


def case_of(architectures: Any, name: str) -> Any:
    from tiny_models import bridge_of, tiny

    hf = tiny(name)
    bridge = bridge_of(hf)
    bridge(TOKENS.unsqueeze(0) % hf.config.get_text_config().vocab_size)
    return architectures.Case(bridge, architectures.oracle.in_float64(hf))


def off(case: Any, frozen: tuple[str, ...], **options: Any) -> float:
    return oracles.relative_difference(case.attribute("semantic", frozen=frozen, **options), case.gradient(frozen))


ARCHITECTURES = {
    "OPTForCausalLM": "TransformerLens leaves attention and norms to the model, beside the hook points",
    "Qwen3ForCausalLM": "norms of queries and keys, whose hook points may show what is not used",
    "OlmoForCausalLM": "norms without a gain",
    "BitNetForCausalLM": "norms without hook points",
    "MixtralForCausalLM": "routers have a softmax which is no attention pattern",
    "Llama4ForCausalLM": "norms of queries and keys that are no modules of the bridge",
    "DeepseekV2ForCausalLM": "norms of low-rank queries and keys",
    "StableLmForCausalLM": "layer norms",
    "GPTNeoForCausalLM": "local attention",
    "GptOssForCausalLM": "sinks beside the keys",
    "BambaForCausalLM": "gated norms of a hybrid, with attention in every second layer",
    "Qwen3NextForCausalLM": "norms inside functions",
}
ONE = "OPTForCausalLM"


@needs_bridge
@pytest.mark.parametrize("frozen", KINDS, ids="-".join)
@pytest.mark.parametrize(
    "name", [name if name == ONE else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)
def test_every_pattern_and_scale_is_held(architectures: Any, name: str, frozen: tuple[str, ...]) -> None:
    try:
        case = case_of(architectures, name)
    except Exception as error:
        if not models.has_hooked():
            raise
        pytest.skip(f"this TransformerLens does not run it: {error}")
    assert off(case, frozen) < 2e-5  # recurrences round more than the others
    for other in [(), *KINDS]:
        if other != frozen:
            assert oracles.relative_difference(case.gradient(other), case.gradient(frozen)) > 1e-4


@needs_bridge
@pytest.mark.parametrize("name", ["GPTJForCausalLM", "GPTNeoForCausalLM"])
def test_a_hook_of_the_users_changes_nothing(architectures: Any, name: str) -> None:
    case = case_of(architectures, name)
    watch = [("blocks.0.hook_resid_post", lambda x, hook: None)]
    assert off(case, ("attn", "norm"), fwd_hooks=watch) < 1e-5


@needs_bridge
@pytest.mark.skipif(models.has_hooked(), reason="TransformerLens 3 puts none on this architecture")
def test_hooks_of_transformer_lens_are_not_the_users(architectures: Any) -> None:
    bridge = case_of(architectures, "OPTForCausalLM").bridge
    assert any(point.fwd_hooks for point in bridge.hook_dict.values())
    assert not ModelView(bridge).is_hooked([])
    bridge.add_hook("blocks.0.hook_resid_post", lambda x, hook: None)
    assert ModelView(bridge).is_hooked([])


@needs_bridge
def test_fused_attention_is_held_too(architectures: Any) -> None:
    case = case_of(architectures, "OPTForCausalLM")
    case.bridge.original_model.set_attn_implementation("sdpa")
    assert off(case, ("attn",)) < 1e-5


@pytest.mark.parametrize("causal", [True, False])
def test_the_pattern_of_fused_attention(llama: Any, causal: bool) -> None:
    """Four heads of queries on two of keys and values: nothing changes but that queries and keys have no part in gradients."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 6, 5, generator=generator, requires_grad=True) for heads in (4, 2, 2))
    mask = None if causal else torch.full((6, 6), -torch.inf).triu(1)
    with under_rules(ModelView(llama), Rules(attn="constant"), HeldConstant(), pos=6):
        out = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
    expected = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(out, expected)
    grads = torch.autograd.grad(out.sum(), (q, k, v), allow_unused=True)
    assert grads[0] is grads[1] is None
    torch.testing.assert_close(grads[2], torch.autograd.grad(expected.sum(), v)[0])


def test_a_norm_that_is_computed_otherwise_is_named(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ln2 = llama.blocks[1].ln2
    norm = getattr(ln2, "original_component", ln2)
    monkeypatch.setattr(norm, "forward", lambda x: x / x.abs().mean(-1, keepdim=True))
    js.attribute(llama, TOKENS)  # TransformerLens puts hooks of its own at the first run
    before = models.snapshot(llama)
    with pytest.raises(
        js.InputError, match=r"blocks\.1\.(ln2|post_attention_layernorm) compute no norm scales.*Leave 'norm' out"
    ):
        js.attribute(llama, TOKENS, frozen=("attn", "norm"))
    assert models.snapshot(llama) == before
    assert js.attribute(llama, TOKENS, frozen="attn").options["frozen"] == ["attn"]
    after = js.attribute(llama, TOKENS, at="blocks.2.hook_resid_pre", frozen="norm")  # behind it all are held
    assert after.options["frozen"] == ["norm"]


@needs_bridge
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("MambaForCausalLM", "computes no attention patterns, so frozen='attn' would change nothing"),
        ("RwkvForCausalLM", r"blocks\.0\..*, blocks\.1\..* compute no attention patterns"),
    ],
)
def test_models_without_attention_patterns(architectures: Any, name: str, says: str) -> None:
    case = case_of(architectures, name)
    with pytest.raises(js.InputError, match=says):
        case.attribute("semantic", frozen="attn")
    assert off(case, ("norm",)) < 1e-5  # what is advised


@needs_bridge
def test_temperature_is_refused_where_the_last_of_several_stacks_ends_without_a_gain(architectures: Any) -> None:
    case = case_of(architectures, "HrmTextForCausalLM")
    with pytest.raises(js.InputError, match="the norm of y is the same for every input"):
        case.attribute("temperature")


def test_nothing_is_computed_twice_or_otherwise(llama: Any) -> None:
    """The forward pass is that of the model, to the last bit where its norms are made of torch's elementary functions."""
    plain, held = (js.attribute(llama, TOKENS, frozen=frozen) for frozen in ((), ("attn", "norm")))
    assert plain.prediction == held.prediction
    assert (plain.provenance.n_forward, plain.provenance.n_backward) == (
        held.provenance.n_forward,
        held.provenance.n_backward,
    )


@needs_bridge
def test_patterns_without_a_batch_axis_along_a_path(architectures: Any) -> None:
    """Held values of one prompt for several points side by side: the same as point by point."""
    case = case_of(architectures, "BloomForCausalLM")
    watch = [("blocks.0.hook_resid_post", lambda x, hook: None)]  # with a hook points are run one by one
    how = dict(frozen=("attn", "norm"), path=js.Line(steps=3))
    together, alone = (case.attribute("semantic", fwd_hooks=hooks, **how) for hooks in ((), watch))
    assert oracles.relative_difference(together, alone) < 1e-5


def test_a_prompt_of_one_token(llama: Any) -> None:
    """Its pattern is 1 whatever it is computed from."""
    one = TOKENS[:1]
    plain, held = (js.attribute(llama, one, target=44, frozen=frozen) for frozen in ((), "attn"))
    assert oracles.relative_difference(held.scores, plain.scores) < 1e-6
    assert js.attribute(llama, one, frozen=("attn", "norm")).options["frozen"] == ["attn", "norm"]


def test_what_is_no_pattern_and_no_scale_is_left_alone(llama: Any) -> None:
    """Routers see all experts; a root of each number is no norm's; what is computed without a graph is only shown."""
    x = torch.rand(2, 6, 6, requires_grad=True)
    later = torch.ones(6, 6).triu(1).bool()
    with under_rules(ModelView(llama), Rules(norm="constant", attn="constant"), HeldConstant(), pos=6):
        assert not x.masked_fill(later, -torch.inf).softmax(-1).requires_grad
        assert not x.square().mean(-1, keepdim=True).sqrt().requires_grad
        assert not (x.square().mean(-1, keepdim=True) ** -0.5).requires_grad
        for free in (
            x.softmax(-1),
            x[:, :4].softmax(-1),
            x[0].softmax(-1),
            x.sqrt(),
            x**0.5,
            x.mean(-1, keepdim=True) ** 2,
        ):
            assert free.requires_grad
    with (
        pytest.raises(js.InputError, match="computes no norm scales"),
        under_rules(ModelView(llama), Rules(norm="constant"), HeldConstant(), pos=6),
        torch.no_grad(),
    ):
        x.square().mean(-1, keepdim=True).rsqrt()


@pytest.mark.parametrize(
    ("function", "how"),
    [
        (functional.layer_norm, ((5,),)),
        (functional.layer_norm, ((6, 5), torch.rand(6, 5), torch.rand(6, 5), 1e-3)),
        (functional.normalize, (2.0, -1)),
        (getattr(functional, "rms_norm", None), ((5,), torch.rand(5))),
    ],
)
def test_functions_of_torch_with_a_scale_inside(llama: Any, function: Any, how: tuple[Any, ...]) -> None:
    """The value is that of torch; by Euler's theorem the gradient along ``x`` (from its mean) is the value without bias."""
    if function is None:
        pytest.skip("rms_norm is in torch from 2.4 on")
    x = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    how = tuple(given.double() if isinstance(given, torch.Tensor) else given for given in how)
    with under_rules(ModelView(llama), Rules(norm="constant"), HeldConstant(), pos=6):
        out = function(x, *how)
    torch.testing.assert_close(out, function(x, *how))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    bias = how[2] if len(how) > 2 else 0.0
    torch.testing.assert_close((gradient * x).sum(), ((out - bias) * weights).sum())


@pytest.mark.real
@pytest.mark.slow
def test_a_real_model(architectures: Any, smollm2: Any) -> None:
    """Thirty layers in float32, against HuggingFace's in float64."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(real_model.folder(), attn_implementation="eager").double().eval()
    tokens = smollm2.to_tokens("The keys to the cabinet near the door", prepend_bos=False)[0]
    scores = {}
    for frozen in [(), *KINDS]:
        run = architectures.oracle.forward(hf, tokens, frozen)
        (gradient,) = torch.autograd.grad(run.logits[-1, 300], run.embeddings)
        scores[frozen] = js.attribute(smollm2, tokens, target=300, frozen=frozen).scores
        assert oracles.relative_difference(scores[frozen], gradient.norm(dim=-1)) < 2e-5
    assert len({tuple(of_one.tolist()) for of_one in scores.values()}) == 4
