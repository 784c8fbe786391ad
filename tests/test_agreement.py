"""Rank agreement of heads with a scope, against scipy's own correlation; and patterns that are refused."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import jscope_tl as js
from jscope_tl.model.patterns import to_heads
from jscope_tl.results.ranks import spearman
from tests.models import TOKENS
from tests.views.results import attention_of

PROMPT = "tom grew up in the south and goes to columbia . at school he is a"
head_agreement = inspect.unwrap(js.head_agreement)


@pytest.fixture(scope="module")
def pattern(pocket: Any) -> js.InfluencePattern:
    return js.influence_pattern(pocket, PROMPT, "semantic")


def test_spearman_is_scipys_with_ties() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (3, 12)).astype(float), rng.integers(0, 5, 12).astype(float)
    np.testing.assert_allclose(spearman(a, b), [spearmanr(row, b).statistic for row in a])
    assert (spearman(np.ones((2, 4)), np.arange(4.0)) == 0).all()


def test_mean_over_destinations_without_bos(pattern: js.InfluencePattern) -> None:
    n = len(pattern.tokens)
    patterns = attention_of(n)
    found = {a.name: a for a in js.head_agreement(pattern, patterns)}
    for layer in range(2):
        for head in range(2):
            rows = [
                spearmanr(patterns[layer, head, d, 1 : d + 1], pattern.scores[d, 1 : d + 1]).statistic
                for d in range(3, n)
            ]
            assert found[f"L{layer}H{head}"].correlation == pytest.approx(np.mean(rows), abs=1e-6)
            assert found[f"L{layer}H{head}"].n_rows == n - 3
            hits = [
                patterns[layer, head, d, 1 : d + 1].argmax() == pattern.scores[d, 1 : d + 1].argmax()
                for d in range(3, n)
            ]
            assert found[f"L{layer}H{head}"].same_top == pytest.approx(np.mean(hits))


def test_a_head_that_is_the_scope_comes_first(pattern: js.InfluencePattern) -> None:
    shares = pattern.scores / pattern.scores.sum(1, keepdim=True)
    patterns = torch.cat([attention_of(len(pattern.tokens))[0], shares[None]])
    best = js.head_agreement(pattern, patterns)[0]
    assert (best.name, best.head, best.layer) == ("H2", 2, None)
    assert best.correlation == pytest.approx(1.0)
    assert best.same_top == 1.0


def test_a_cache_gives_what_its_tensors_give(pocket: Any, pattern: js.InfluencePattern) -> None:
    _, cache = pocket.run_with_cache(PROMPT)
    by_cache = js.head_agreement(pattern, cache, layers=[-1, 0], heads=1)
    stacked = torch.stack([cache[f"blocks.{i}.attn.hook_pattern"][0] for i in range(4)])
    by_tensor = js.head_agreement(pattern, stacked, layers=[3, 0], heads=[1])
    assert by_cache == by_tensor
    assert {a.name for a in by_cache} == {"L3H1", "L0H1"}
    assert len(js.head_agreement(pattern, dict(cache.items()))) == 16


def test_patterns_are_the_models_own(pocket: Any, pattern: js.InfluencePattern) -> None:
    _, cache = pocket.run_with_cache(PROMPT)
    (head,) = to_heads(cache, pattern.tokens, layers=2, heads=3)
    assert torch.equal(head.pattern, cache["blocks.2.attn.hook_pattern"][0, 3])


def test_other_prompts_are_refused(pocket: Any, pattern: js.InfluencePattern) -> None:
    _, other = pocket.run_with_cache(PROMPT.replace("south", "north"))
    with pytest.raises(js.InputError, match="another prompt.*positions"):
        js.head_agreement(pattern, other)
    _, shorter = pocket.run_with_cache("tom grew up")
    with pytest.raises(js.InputError, match="a prompt of 4 tokens"):
        js.head_agreement(pattern, shorter)
    _, two = pocket.run_with_cache(torch.stack([pattern.tokens, pattern.tokens]))
    with pytest.raises(js.InputError, match="has 2 prompts"):
        js.head_agreement(pattern, two)


def test_embeddings_that_the_model_scales_are_the_same_prompt(kind: str) -> None:
    """Gemma multiplies its embeddings by the root of d_model."""
    from tests.conftest import shared_tiny

    model = shared_tiny(kind, "gemma2").model
    _, cache = model.run_with_cache(TOKENS)
    assert len(to_heads(cache, TOKENS)) == 12


def test_padding_has_no_direction(pocket: Any) -> None:
    tokens = torch.tensor([0, *(i for i in range(1, 530) if not pocket.W_E[i].any()), 17, 18])
    assert len(tokens) > 3
    _, cache = pocket.run_with_cache(tokens)
    assert len(to_heads(cache, tokens)) == 16


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        (7, "cache of model.run_with_cache"),
        (torch.rand(3, 4), "must be \\[layer, head, dest, src\\]"),
        (torch.rand(1, 2, 17, 17), "not attention patterns"),
        (torch.full((2, 17, 17), float("nan")), "not attention patterns"),
        ({"hook_embed": torch.zeros(1, 17, 128)}, "no attention pattern in this cache"),
    ],
)
def test_what_is_no_pattern(pattern: js.InfluencePattern, given: Any, cure: str) -> None:
    with pytest.raises(js.InputError, match=cure):
        head_agreement(pattern, given)


@pytest.mark.parametrize(
    ("layers", "heads"), [([9], None), (None, [4]), ([], None), (None, "a"), (-5, None), (1.5, None)]
)
def test_layers_and_heads_that_are_not_there(pattern: js.InfluencePattern, layers: Any, heads: Any) -> None:
    with pytest.raises(js.InputError, match="must be numbers among 0 to"):
        head_agreement(pattern, attention_of(len(pattern.tokens)), layers, heads)


def test_a_tensor_of_one_layer_can_be_named(pattern: js.InfluencePattern) -> None:
    one = attention_of(len(pattern.tokens), layers=1)
    assert {a.name for a in js.head_agreement(pattern, one, layers=5)} == {"L5H0", "L5H1"}
    assert {a.name for a in js.head_agreement(pattern, one[0])} == {"H0", "H1"}
    for layers in ([1, 2], "a", 1.5, -1):
        with pytest.raises(js.InputError, match="one layer"):
            head_agreement(pattern, one, layers)


def test_too_short_to_rank(pocket: Any) -> None:
    short = js.influence_pattern(pocket, "tom grew")
    with pytest.raises(js.InputError, match="longer prompt"):
        js.head_agreement(short, attention_of(3))


def test_some_destinations_in_any_order(pocket: Any, pattern: js.InfluencePattern) -> None:
    n = len(pattern.tokens)
    some = js.influence_pattern(pocket, PROMPT, "semantic", [12, 5])
    patterns = attention_of(n)
    found = {a.name: a for a in js.head_agreement(some, patterns)}
    rows = [spearmanr(patterns[1, 0, d, 1 : d + 1], pattern.scores[d, 1 : d + 1]).statistic for d in (12, 5)]
    assert found["L1H0"].correlation == pytest.approx(np.mean(rows), abs=1e-5)


def test_what_is_no_influence_pattern(pocket: Any) -> None:
    result = js.attribute(pocket, PROMPT)
    for given in (result, [result], 7):
        with pytest.raises(js.InputError, match="one InfluencePattern"):
            head_agreement(given, attention_of(17))


def test_one_shot_choices(pattern: js.InfluencePattern) -> None:
    patterns = attention_of(len(pattern.tokens))
    found = js.head_agreement(pattern, patterns, iter([0, 1]), (h for h in [1]))
    assert {a.name for a in found} == {"L0H1", "L1H1"}
    assert {a.name for a in head_agreement(pattern, patterns, torch.tensor(1))} == {"L1H0", "L1H1"}


@pytest.mark.parametrize("shape", [(0, 17, 17), (0, 2, 17, 17)])
def test_empty_tensors(pattern: js.InfluencePattern, shape: tuple[int, ...]) -> None:
    with pytest.raises(js.InputError, match="must be \\[layer, head"):
        head_agreement(pattern, torch.zeros(shape))


def test_caches_with_other_things_in_them(pocket: Any, pattern: js.InfluencePattern) -> None:
    _, cache = pocket.run_with_cache(PROMPT)
    odd = {**dict(cache.items()), 3: 1, "blocks.x.attn.hook_pattern": None, "blocks.9.attn.hook_pattern": None}
    assert len(js.head_agreement(pattern, odd)) == 16
    gap = {name: cache[name] for name in ("blocks.0.attn.hook_pattern", "blocks.3.attn.hook_pattern")}
    with pytest.raises(js.InputError, match="among \\[0, 3\\]"):
        js.head_agreement(pattern, gap, layers=1)
