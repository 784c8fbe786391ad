"""Gradient rules on four families, against the papers' formulas written out on HuggingFace models in float64."""

from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import jscope_tl as js
from jscope_tl.engine.forward import run
from jscope_tl.engine.rules import CHOICES, RULES, Rules
from jscope_tl.engine.run import Settings
from jscope_tl.model.loading import has_bridge
from jscope_tl.model.view import ModelView
from tests import conftest, models, oracles
from tests.models import TOKENS

ALL = [Rules(*chosen) for chosen in product(*CHOICES.values())]
NAMED = {name: rules for name, rules in RULES.items() if name != "plain"}
QUICK_FIRST = [
    pytest.param(rules, id=rules.name or "plain", marks=[] if rules in NAMED.values() else pytest.mark.slow)
    for rules in ALL
]
TARGET = 44
TOLERANCE = 1e-5
"""Float32 against float64: three layers round to about 1e-6."""
needs_bridge = pytest.mark.skipif(not has_bridge(), reason="no TransformerBridge before 3.0")


@pytest.fixture
def oracle(architectures: Any) -> Any:
    return architectures.oracle


@cache
def in_float64(family: str) -> Any:
    import oracle

    return oracle.in_float64(models.hf_model(family))


def scale(family: str) -> float:
    """Of HuggingFace's embedding to what TransformerLens shows: transformers 4 multiplies Gemma's inside the model."""
    return models.D_MODEL**0.5 if family == "gemma2" and oracles.V4 else 1.0


def ruled(oracle: Any, family: str, rules: Rules) -> Any:
    frozen = ("norm",) if rules.norm == "constant" else ()
    return oracle.forward(in_float64(family), TOKENS, frozen, rules=(rules.attn, rules.mlp))


def gradient(value: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(value, at, retain_graph=True)[0]


@cache
def dense(oracle: Any, family: str, rules: Rules) -> oracles.Oracle:
    """Every entry of ``J`` under the rules; all else is as without."""
    found, plain = ruled(oracle, family, rules), conftest.dense(family, -1)
    torch.testing.assert_close(found.logits[-1], plain.z, rtol=1e-5, atol=1e-5)  # the oracle changes no value
    J = torch.stack([gradient(y, found.embeddings) for y in found.y[-1]]) / scale(family)
    return replace(plain, J=J)


def off(found: Tensor, expected: Tensor) -> float:
    return oracles.relative_difference(found, expected)


@pytest.mark.parametrize("rules", QUICK_FIRST)
def test_every_combination_against_the_formulas(oracle: Any, tiny: models.Tiny, rules: Rules) -> None:
    """Of four scores, all for the rules with names on Llama; else one, so that each is found under all rules and on all families."""
    o = dense(oracle, tiny.family, rules)
    along = torch.einsum("v,vpd,pd->p", o.D[TARGET], o.J, o.x).abs()
    asked = [(scope, *oracles.SCOPES[scope]) for scope in ("semantic", "log_prob", "fisher")]
    asked.append(("semantic", dict(target=TARGET, reduction="dot"), lambda o: along))
    turn = ALL.index(rules) + models.FAMILIES.index(tiny.family)
    for scope, options, expected in asked if tiny.family == "llama" and rules.name in RULES else [asked[turn % 4]]:
        found = js.attribute(tiny.model, TOKENS, scope, gradient=rules, **options)
        assert off(found.scores, expected(o)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("rules", NAMED.values(), ids=NAMED)
def test_every_scope(oracle: Any, tiny: models.Tiny, rules: Rules) -> None:
    """Every third, so that all are found under all rules and on all families."""
    o = dense(oracle, tiny.family, rules)
    turn = [*NAMED.values()].index(rules) + models.FAMILIES.index(tiny.family)
    for scope, (options, expected) in [*oracles.SCOPES.items()][turn % 3 :: 3]:
        found = js.attribute(tiny.model, TOKENS, scope, gradient=rules, **options)
        assert off(found.scores, expected(o)) < TOLERANCE


def test_rules_differ(tiny: models.Tiny) -> None:
    """Each rule of each kind does something on every family."""
    scores = [js.attribute(tiny.model, TOKENS[:4], target=TARGET, gradient=rules).scores for rules in ALL]
    assert min(off(a, b) for i, a in enumerate(scores) for b in scores[:i]) > 1e-3


@needs_bridge
@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "pythia"))]
)
@pytest.mark.parametrize("rules", [Rules(), *NAMED.values()], ids=["plain", *NAMED])
def test_fused_attention(oracle: Any, family: str, rules: Rules) -> None:
    """Gemma 2 has none."""
    model = models.tiny("bridge", family).model
    model.original_model.set_attn_implementation("sdpa")
    found = ruled(oracle, family, rules)
    expected = gradient(found.logits[-1, TARGET], found.embeddings).norm(dim=-1) / scale(family)
    assert off(js.attribute(model, TOKENS, target=TARGET, gradient=rules).scores, expected) < TOLERANCE
    by_entry = js.attribute(model, TOKENS, target=TARGET, gradient=rules, at="pattern").scores
    assert off(by_entry, of_entries(found, found.logits[-1, TARGET]).relu().sum((0, 1, 2))) < TOLERANCE


def of_entries(found: Any, value: Tensor) -> Tensor:
    """Pattern times gradient, ``[layer, head, dest, src]``."""
    gradients = torch.autograd.grad(value, found.patterns, retain_graph=True)
    return torch.stack([(P * dP)[0] for P, dP in zip(found.patterns, gradients, strict=True)]).detach()


@pytest.mark.parametrize("rules", [Rules(), *NAMED.values()], ids=["plain", *NAMED])
def test_entries_of_patterns(oracle: Any, tiny: models.Tiny, rules: Rules) -> None:
    found = ruled(oracle, tiny.family, rules)
    entries = of_entries(found, found.logits[-1].log_softmax(-1)[TARGET])
    how = dict(gradient=rules, at="pattern")

    def scores(**options: Any) -> Tensor:
        return js.attribute(tiny.model, TOKENS, "log_prob", target=TARGET, **how, **options).scores

    assert off(scores(per="head"), entries.relu().sum(2)) < TOLERANCE
    if tiny.family == "llama":
        assert off(scores(), entries.relu().sum((0, 1, 2))) < TOLERANCE
        assert off(scores(per="layer"), entries.relu().sum((1, 2))) < TOLERANCE
    o = oracles.fisher_matrix(conftest.dense(tiny.family, -1))
    values, U = torch.linalg.eigh(o)
    each = [value * of_entries(found, u @ found.y[-1]).square() for value, u in zip(values, U.T, strict=True)]
    fisher = js.attribute(tiny.model, TOKENS, "fisher", method="exact", **how).scores
    assert off(fisher, 0.5 * torch.stack(each).sum((0, 1, 2, 3))) < TOLERANCE


@pytest.mark.parametrize(
    "gradient", ["attnlrp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("plain", "relp", "gim"))]
)
@pytest.mark.parametrize(
    "at", ["pattern", *(pytest.param(at, marks=pytest.mark.slow) for at in ("hook_embed", "resid_mid"))]
)
def test_batches_and_influence_patterns(llama: Any, at: str, gradient: str) -> None:
    """Prompt by prompt and position by position. One scope of three, so that each is found under all rules and at all places."""

    def two(state: Any) -> Tensor:
        return state.W_U[:, [3, TARGET]].T * 7

    prompts = [TOKENS, TOKENS[:5], TOKENS.flip(0)]
    scopes = [("log_prob", {}), (two, {}), ("fisher", {"method": "exact"})]
    turn = [*RULES].index(gradient) + ("pattern", "hook_embed", "resid_mid").index(at)
    for scope, options in scopes if (at, gradient) == ("pattern", "attnlrp") else [scopes[turn % 3]]:
        how = dict(gradient=gradient, at=at, **options)
        for prompt, result in zip(prompts, js.attribute_batch(llama, prompts, scope, **how), strict=True):
            alone = js.attribute(llama, prompt, scope, **how)
            assert off(result.scores, alone.scores) < TOLERANCE
            assert (result.unit, result.scope, result.options) == (alone.unit, alone.scope, alone.options)
        if at != "resid_mid":
            rows = js.influence_pattern(llama, TOKENS, scope, [2, 5, 7], **how).scores
            for position, row in zip((2, 5, 7), rows, strict=True):
                alone = js.attribute(llama, TOKENS, scope, position=position, **how)
                assert off(row, alone.scores) < TOLERANCE


@pytest.mark.parametrize("gradient_rules", NAMED)
def test_layer_maps(oracle: Any, tiny: models.Tiny, gradient_rules: str) -> None:
    found = ruled(oracle, tiny.family, RULES[gradient_rules])
    layers = [gradient(found.logits[-1, TARGET], x).norm(dim=-1) for (x,) in found.layers]
    scores = js.attribute(tiny.model, TOKENS, target=TARGET, at="resid_pre", gradient=gradient_rules).scores
    assert off(scores, torch.stack(layers)) < TOLERANCE


@pytest.mark.parametrize("name", ["attnlrp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("relp", "gim"))])
@pytest.mark.parametrize("path", [js.Line(steps=3), js.Noise(samples=3, seed=1)], ids=["line", "noise"])
def test_paths(llama: Any, path: js.Path, name: str) -> None:
    """Rows are averaged over the points; scales and patterns that are held constant are those of the prompt, at each of them."""
    W = torch.randn(2, models.D_MODEL, generator=torch.Generator().manual_seed(0))
    kept: list[Tensor] = []
    js.attribute(llama, TOKENS, fwd_hooks=[("hook_embed", lambda value, hook: kept.append(value.detach()))])
    x = kept[0][0]
    points = path.points(x, torch.zeros_like(x[0]), range(path.n_points()))
    free = replace(
        RULES[name], **{kind: "plain" for kind in ("norm", "attn") if getattr(RULES[name], kind) == "constant"}
    )
    rows = [
        js.jacobian(
            llama, TOKENS, W, gradient=free, fwd_hooks=[("hook_embed", lambda value, hook, at=point: at.unsqueeze(0))]
        )
        for point in points
    ]
    expected = torch.stack([row.as_subclass(Tensor) for row in rows]).mean(0).square().sum((0, -1)).sqrt()
    found = js.attribute(llama, TOKENS, lambda state: W, path=path, gradient=free).scores
    assert off(found, expected) < TOLERANCE
    held = js.attribute(llama, TOKENS, lambda state: W, path=path, gradient=name).scores
    assert off(held, expected) > 1e-3


def logits(model: Any, rules: Rules, patterns: bool = False) -> Tensor:
    with run(Settings(ModelView(model), ["hook_embed"], rules=rules, patterns=patterns), TOKENS, [7]) as forward:
        return forward.state().logits.detach()


def test_the_forward_pass_is_unchanged(tiny: models.Tiny) -> None:
    """To the last bit where norms are made of torch's elementary functions; fused norms are written out, which rounds otherwise."""
    plain = logits(tiny.model, Rules())
    for rules in ALL:
        exact = rules.norm == "plain" or tiny.family in ("llama", "gemma2")
        torch.testing.assert_close(
            logits(tiny.model, rules), plain, rtol=0, atol=0 if exact else 1e-6 * plain.abs().max()
        )
    torch.testing.assert_close(logits(tiny.model, Rules(), patterns=True), plain, rtol=0, atol=0)


def conserved(model: Any, gradient: str, tokens: Any = TOKENS) -> tuple[float, float]:
    """The sum of the tokens' signed contributions to a logit, and that logit."""
    kept: list[Tensor] = []
    hook = [("hook_embed", lambda value, hook: kept.append(value.detach()[0]))]
    target = js.attribute(model, tokens, fwd_hooks=hook).prediction.top[0].token
    rows = js.jacobian(model, tokens, ModelView(model).W_U[:, target].detach(), gradient=gradient).as_subclass(Tensor)
    return float((rows[0] * kept[0]).double().sum()), float(model(tokens.unsqueeze(0))[0, -1, target].detach())


def test_contributions_are_conserved(llama: Any) -> None:
    """Without biases the network under RelP is linear in its input; a softmax is not, so that AttnLRP's sum is another."""
    total, logit = conserved(llama, "relp")
    assert abs(total - logit) < 1e-5 * abs(logit)
    for other in ("plain", "attnlrp", "gim"):
        total, logit = conserved(llama, other)
        assert abs(total - logit) > 1e-3 * abs(logit)
