"""`js.explain` and the alternatives that it chooses, against what other calls say."""

from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from tests import models
from tests.models import TOKENS

PROMPT = "tom loves korean food . he grew up in the south and goes to columbia . at school he is a"


def share(model: Any, prompt: Any, target: Any, baseline: Any, gradient: Any = "attnlrp") -> torch.Tensor:
    """The map of one contrast, from four calls of `js.attribute`."""

    def twice(state: js.State) -> torch.Tensor:
        """Two cotangents, one of them nothing, are scored by half the sum of squares."""
        (row,) = js.ContrastiveScope(target, baseline).rows(state)
        return torch.stack([row, torch.zeros_like(row)])

    options = {"target": target, "baseline": baseline, "gradient": gradient}
    positive = js.attribute(model, prompt, "contrastive", at="pattern", **options).scores
    energy = (2 * js.attribute(model, prompt, twice, at="pattern", gradient=gradient).scores).sqrt()
    norm = js.attribute(model, prompt, "contrastive", **options)
    found = (positive**2 * energy * norm.scores) ** 0.25
    return found / (found.sum() - found[list(norm.bos_positions)].sum())


def test_one_alternative_is_one_map(llama: Any) -> None:
    result = js.explain(llama, TOKENS, 5, 7)
    torch.testing.assert_close(result.scores, share(llama, TOKENS, 5, 7), rtol=2e-5, atol=1e-7)
    assert result.options["resolved"]["alternatives"] == [result.options["resolved"]["strongest_against"]]
    assert (result.provenance.n_forward, result.provenance.n_backward) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["plain", "relp", js.Rules(mlp="secant")])
def test_several_give_the_largest_share(llama: Any, gradient: Any) -> None:
    result = js.explain(llama, TOKENS, 5, [7, 8, 9], gradient=gradient)
    maps = torch.stack([share(llama, TOKENS, 5, other, gradient) for other in (7, 8, 9)])
    torch.testing.assert_close(result.scores, maps.amax(0), rtol=2e-5, atol=1e-7)
    assert result.provenance.n_backward == 3


def test_alternatives_are_chosen_and_named(pocket: Any) -> None:
    result = js.explain(pocket, PROMPT, " liberal")
    chosen = result.options["resolved"]["alternatives"]
    assert 5 <= len(chosen) <= 10
    both = js.attribute(pocket, PROMPT, "alternatives", target=" liberal", choice="both").options["resolved"]
    assert chosen == both["alternatives"]
    assert len(chosen) > 5  # those that are like the target are no probable ones
    assert " conservative" in chosen
    assert result.options["resolved"]["strongest_against"] in chosen
    assert result.top(1)[0].str_token == " columbia"


def test_similar_and_probable_alternatives_by_hand(llama: Any) -> None:
    logits = js.attribute(llama, TOKENS, lambda state: state.gradient(lambda z: z[0])).prediction
    probable = js.attribute(llama, TOKENS, "alternatives", target=5, n=4).options["resolved"]["alternatives"]
    assert probable == [token.str_token for token in logits.top if token.token != 5][:4]

    W = llama.W_U.detach().double()
    W = W - W.mean(1, keepdim=True)
    cosines = (W[:, 5] @ W) / W.norm(dim=0)
    cosines[5] = -2
    view_ids: list[int] = []
    js.attribute(
        llama, TOKENS, lambda state: view_ids.extend(state.logits.topk(101).indices.tolist()) or state.y * 0 + 1
    )
    among = [token for token in view_ids if token != 5][:100]
    expected = sorted(among, key=lambda token: -float(cosines[token]))[:3]
    scope = js.AlternativesScope(5, n=3, choice="similar")
    chosen: list[int] = []
    js.attribute(llama, TOKENS, lambda state: chosen.extend(scope.alternatives(state)) or state.y * 0 + 1)
    assert chosen == expected
    both = js.AlternativesScope(5, n=3, choice="both")
    chosen.clear()
    js.attribute(llama, TOKENS, lambda state: chosen.extend(both.alternatives(state)) or state.y * 0 + 1)
    assert chosen == list(dict.fromkeys([*among[:3], *expected]))


def test_the_mean_of_alternatives_is_the_scopes_quantity(llama: Any) -> None:
    """With one it is the contrast; the effect of a change is that of the logits."""
    one = js.attribute(llama, TOKENS, "alternatives", target=5, baseline=7)
    torch.testing.assert_close(one.scores, js.attribute(llama, TOKENS, "contrastive", target=5, baseline=7).scores)

    def mean(state: js.State) -> torch.Tensor:
        return state.gradient(lambda z: z[5] - (z[7] + z[8]) / 2)

    two = js.attribute(llama, TOKENS, "alternatives", target=5, baseline=[7, 8])
    torch.testing.assert_close(two.scores, js.attribute(llama, TOKENS, mean).scores)


def test_only_what_lies_before_counts(llama: Any) -> None:
    result = js.explain(llama, TOKENS, 5, position=3)
    assert result.position == 3
    assert not result.scores[4:].any()
    torch.testing.assert_close(result.scores[:4], js.explain(llama, TOKENS[:4], 5).scores)


def test_it_explains_a_patched_model(llama: Any) -> None:
    hooks = [("blocks.0.hook_resid_post", lambda x, hook: 2 * x)]
    assert not torch.allclose(
        js.explain(llama, TOKENS, 5, 7, fwd_hooks=hooks).scores, js.explain(llama, TOKENS, 5, 7).scores
    )


def test_a_result_says_what_it_is_and_is_kept(llama: Any, tmp_path: Path) -> None:
    result = js.explain(llama, TOKENS, 5)
    assert "attnlrp" in repr(result)
    assert "not additive" in result.unit
    assert result.provenance.hook_point == "hook_embed, pattern"
    again = js.Attribution.load(result.save(tmp_path / "map.safetensors"))
    torch.testing.assert_close(again.scores, result.scores)
    assert again.options == result.options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": 5, "baseline": 5}, "same token"),
        ({"target": 5, "baseline": []}, "empty list"),
        ({"target": 5, "baseline": [7, 10**6]}, "1000000"),
        ({"target": 5, "n": 0}, "n is"),
        ({"target": 5, "gradient": "lrp"}, "There are no gradient rules 'lrp'"),
    ],
)
def test_what_cannot_be_explained_changes_nothing(llama: Any, given: dict[str, Any], message: str) -> None:
    js.attribute(llama, TOKENS)
    before = models.snapshot(llama)
    with pytest.raises(js.InputError, match=message):
        js.explain(llama, TOKENS, **given)
    assert models.snapshot(llama) == before


def test_choices_have_names(llama: Any) -> None:
    with pytest.raises(js.InputError, match="choice must be one of probable, similar, both"):
        js.attribute(llama, TOKENS, "alternatives", choice="similiar")


def test_targets_of_several_tokens_are_refused(pocket: Any) -> None:
    with pytest.raises(js.InputError, match=r"is 2 tokens \(.*liberal', .*conservative'\), it must be exactly one"):
        js.explain(pocket, PROMPT, " liberal conservative")


def test_a_share_needs_more_than_bos(llama: Any, pocket: Any) -> None:
    with pytest.raises(js.InputError, match="needs a token other than BOS; up to position 0"):
        js.explain(pocket, PROMPT, position=0)
    assert js.explain(pocket, PROMPT, position=1).scores[1] == pytest.approx(1)


class Scaled(torch.autograd.Function):
    """The same value; gradients times a factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient * ctx.factor, None


def test_shares_of_small_rows_are_the_same(llama: Any) -> None:
    """The forward pass keeps its logits; gradients, and with them all entries, are 1e-9 of what they were."""
    last, factor = f"blocks.{llama.cfg.n_layers - 1}.hook_resid_post", torch.tensor(1e-9)
    small = js.explain(llama, TOKENS, 5, 7, fwd_hooks=[(last, lambda x, hook: Scaled.apply(x, factor))])
    torch.testing.assert_close(small.scores, js.explain(llama, TOKENS, 5, 7).scores, rtol=1e-4, atol=0)


@pytest.mark.slow
def test_the_strongest_alternative_is_not_that_of_bos(pocket: Any) -> None:
    """Whatever the gradient at BOS is, which no share of another token depends on."""
    plain = js.explain(pocket, PROMPT, " liberal")
    place, others = plain.top(1)[0].position, plain.options["resolved"]["alternatives"]
    alone = {other: js.explain(pocket, PROMPT, " liberal", other).scores for other in others}
    assert plain.options["resolved"]["strongest_against"] == max(others, key=lambda one: float(alone[one][place]))
    of_bos = max(others, key=lambda one: float(alone[one][0]))
    factor = torch.ones(len(plain.tokens), 1)
    factor[0] = 1e8
    hooks = [("blocks.0.hook_resid_pre", lambda x, hook: Scaled.apply(x, factor))]
    given = [of_bos, *[other for other in others if other != of_bos]]
    large = js.explain(pocket, PROMPT, " liberal", given, fwd_hooks=hooks)
    assert large.scores.argmax() == 0
    assert of_bos != plain.options["resolved"]["strongest_against"]
    assert large.options["resolved"]["strongest_against"] == plain.options["resolved"]["strongest_against"]


def test_nothing_after_the_explained_position_has_a_score(llama: Any) -> None:
    """Also where a hook of the user's lets later tokens act on earlier ones."""
    hooks = [("blocks.0.hook_resid_post", lambda x, hook: x + x.mean(1, keepdim=True))]
    assert not js.explain(llama, TOKENS, 5, 7, position=3, fwd_hooks=hooks).scores[4:].any()


def test_a_token_that_is_given_twice_counts_once(llama: Any) -> None:
    assert js.explain(llama, TOKENS, 5, [7, 7]).provenance.n_backward == 1


def test_likeness_is_that_of_centred_columns(pocket: Any) -> None:
    seen: list[js.State] = []
    js.attribute(pocket, PROMPT, lambda state: seen.append(state) or state.y * 0 + 1)
    W, logits = seen[0].W_U.detach().double(), seen[0].logits.detach()
    differing = 0
    for target in logits.topk(20).indices.tolist():
        among = [token for token in logits.topk(101).indices.tolist() if token != target][:100]
        orders = [
            sorted(among, key=lambda token, M=M, t=target: -float(torch.cosine_similarity(M[:, token], M[:, t], 0)))[:5]
            for M in (W - W.mean(1, keepdim=True), W)
        ]
        assert js.AlternativesScope(target, choice="similar").alternatives(seen[0]) == orders[0]
        differing += orders[0] != orders[1]
    assert differing


def test_one_baseline_is_in_the_headline_and_lists_survive_a_file(llama: Any, tmp_path: Path) -> None:
    one, several = js.explain(llama, TOKENS, 5, [7]), js.explain(llama, TOKENS, 5, (7, 8))
    assert one.baseline == one.options["resolved"]["alternatives"][0]
    assert f"against {one.baseline!r}" in one.headline()
    assert several.baseline is None
    again = js.Attribution.load(several.save(tmp_path / "map.safetensors"))
    assert again.options == several.options


def test_what_happened_to_rows_is_in_the_warnings(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    grad = torch.autograd.grad

    def no_batches(*args: Any, **how: Any) -> Any:
        if how.get("is_grads_batched"):
            raise RuntimeError("no rule for batches")
        return grad(*args, **how)

    monkeypatch.setattr(torch.autograd, "grad", no_batches)
    warnings = js.explain(llama, TOKENS, 5, [7, 8, 9]).warnings
    assert any("no rule for batches" in warning for warning in warnings)
