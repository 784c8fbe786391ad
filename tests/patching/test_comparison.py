"""Patching effects against a naive loop, predictions against effects in the limit, and what is refused."""

import dataclasses
import inspect
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

import jscope_tl as js
from tests import models, oracles
from tests.conftest import shared_tiny
from tests.models import TOKENS, Tiny, snapshot

CORRUPTED = TOKENS.clone()
CORRUPTED[2:4] = torch.tensor([77, 350])
NEED = {
    "alternatives": {"target": 3, "n": 2}, "contrastive": {"target": 5, "baseline": 9}, "fisher": {"method": "exact"},
    "fisher_input": {"method": "exact"}, "semantic": {"target": 3}, "log_prob": {"target": 3}
}  # fmt: skip
compare = inspect.unwrap(js.patching.compare)


def test_printed_cells_are_those_with_the_largest_effects(pocket: Any) -> None:
    clean, corrupted = "the small basket under the cups", "the small baskets under the cups"
    both = js.patching.compare(pocket, clean, corrupted, "contrastive", target=" is", baseline=" are")
    best = both.to_dataframe().sort_values("effect", key=abs, ascending=False).head(5)
    printed = repr(both).splitlines()[3:8]
    for ((hook_point, t), row), line in zip(best.iterrows(), printed, strict=True):
        assert f"{row['str_token']!r} " in line
        assert f"at {t}, {hook_point} " in line
        assert line.endswith(f"{row['effect']:.4g} ({row['predicted']:.4g})")
    assert "' basket' (' baskets') at 3" in printed[0]
    effects = torch.full_like(both.effects, torch.nan)
    effects[:, 3] = torch.tensor([2.0, 0.0, 0.0, 0.0])
    one = repr(dataclasses.replace(both, effects=effects, str_tokens=["a\n"] * 7)).splitlines()
    assert [line for line in one if " at " in line and line.startswith("  1")] == [one[3]]
    assert "'a↵' (' baskets') at 3, blocks.0.hook_resid_pre" in one[3]
    assert one[4].startswith("  cost:")
    assert "largest effects" not in repr(dataclasses.replace(both, effects=0 * both.effects))


def naive_quantity(
    scope: str, y: torch.Tensor, z: torch.Tensor, base: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """The paper's quantities, restated; ``base`` has ``y`` and logits of the base run."""
    log_p, log_q = z.double().log_softmax(-1), base[1].double().log_softmax(-1)
    v = torch.randn(1, len(y), generator=torch.Generator().manual_seed(0))[0]
    kl = (log_q.exp() * (log_q - log_p)).sum()
    others = [token for token in base[1].argsort(descending=True).tolist() if token != 3][:2]
    return {
        "semantic": lambda: z[3],
        "log_prob": lambda: log_p[3],
        "alternatives": lambda: z[3] - z[others].mean(),
        "contrastive": lambda: z[5] - z[9],
        "temperature": lambda: y.norm(),
        "logit_temperature": lambda: (z - z.mean()).norm(),
        "entropy": lambda: -(log_p.exp() * log_p).sum(),
        "fisher": lambda: kl,
        "fisher_input": lambda: kl,
        "random_direction": lambda: y @ (v / v.norm()),
        "spectral": lambda: (y - base[0]).norm(),
    }[scope]()


def naive(
    model: Any, scope: str, base: torch.Tensor, source: torch.Tensor, point: str, hooks: Any = ()
) -> torch.Tensor:
    """A loop over layers and positions, written out."""
    seen: list[torch.Tensor] = []
    handle = model.unembed.register_forward_pre_hook(lambda m, args: seen.append(args[0][0, -1]))

    def ends(tokens: torch.Tensor, extra: Any) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            logits = model.run_with_hooks(tokens[None], fwd_hooks=[*hooks, *extra], return_type="logits")[0, -1]
        return seen[-1], logits

    at_base = ends(base, [])
    before = naive_quantity(scope, *at_base, at_base)
    effects = torch.zeros(3, len(base), dtype=torch.float64)
    with model.hooks(fwd_hooks=list(hooks)), torch.no_grad():
        _, cache = model.run_with_cache(source[None])
    for layer in range(3):
        name = f"blocks.{layer}.hook_{point}"
        for t in range(len(base)):

            def patch(activation: torch.Tensor, hook: Any, t: int = t, name: str = name) -> torch.Tensor:
                activation = activation.clone()
                activation[0, t] = cache[name][0, t]
                return activation

            effects[layer, t] = naive_quantity(scope, *ends(base, [(name, patch)]), at_base) - before
    handle.remove()
    return effects


@pytest.mark.slow
@pytest.mark.parametrize("scope", oracles.SCOPES)
@pytest.mark.parametrize("point", ["resid_pre", "resid_post"])
def test_effects_are_those_of_a_naive_loop(tiny: Tiny, scope: str, point: str) -> None:
    result = js.patching.compare(tiny.model, TOKENS, CORRUPTED, scope, at=point, **NEED.get(scope, {}))
    torch.testing.assert_close(
        result.effects, naive(tiny.model, scope, TOKENS, CORRUPTED, point), rtol=1e-4, atol=1e-5, check_dtype=False
    )


def test_effects_are_those_of_transformer_lens(llama: Any) -> None:
    from transformer_lens import patching

    result = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3, direction="denoising")
    with torch.no_grad():
        _, cache = llama.run_with_cache(TOKENS[None])
        base = llama(CORRUPTED[None], return_type="logits")[0, -1, 3]
        theirs = patching.get_act_patch_resid_pre(llama, CORRUPTED[None], cache, lambda z: z[0, -1, 3] - base)
    torch.testing.assert_close(result.effects.float(), theirs.cpu(), rtol=1e-4, atol=1e-5)


def test_denoising_is_noising_with_the_prompts_exchanged(llama: Any) -> None:
    one = js.patching.compare(llama, TOKENS, CORRUPTED, "entropy", direction="denoising")
    other = js.patching.compare(llama, CORRUPTED, TOKENS, "entropy", direction="noising")
    torch.testing.assert_close(one.effects, other.effects)
    torch.testing.assert_close(one.predicted, other.predicted)


def test_own_hook_points(llama: Any) -> None:
    both = js.patching.compare(
        llama, TOKENS, CORRUPTED, "semantic", target=3, at=["hook_embed", "blocks.1.hook_resid_pre"]
    )
    layers = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3)
    torch.testing.assert_close(
        both.effects, layers.effects[:2], rtol=1e-4, atol=1e-5
    )  # nothing between embedding and block 0
    torch.testing.assert_close(both.predicted, layers.predicted[:2], rtol=1e-4, atol=1e-5)


def test_positions_where_the_runs_agree_have_no_effect(llama: Any) -> None:
    result = js.patching.compare(llama, TOKENS, CORRUPTED, "log_prob", target=3)
    same = [0, 1, 4, 5, 6, 7]
    assert result.effects[0, same].abs().max() < 1e-6
    assert result.predicted[0, same].abs().max() < 1e-6
    assert (result.effects[0, 2:4].abs() > 1e-6).all()


def test_scores_are_those_of_a_layer_map(llama: Any) -> None:
    for scope, options in (("semantic", {"target": 3}), ("fisher", {"method": "sampled", "rank": 2, "probes": 4})):
        result = js.patching.compare(llama, TOKENS, CORRUPTED, scope, **options)
        alone = js.attribute(llama, TOKENS, scope, at="resid_pre", **options)
        torch.testing.assert_close(result.scope.scores, alone.scores)
        assert result.scope.provenance.n_backward == alone.provenance.n_backward


def test_predictions_are_the_naive_products(llama: Any) -> None:
    """``v^T J (x_source - x_base)`` and ``½ δ^T J^T F J δ`` with Jacobians of `js.jacobian`."""
    with torch.no_grad():
        _, own = llama.run_with_cache(TOKENS[None])
        _, theirs = llama.run_with_cache(CORRUPTED[None])
    semantic = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3)
    fisher = js.patching.compare(llama, TOKENS, CORRUPTED, "fisher", method="exact")
    W_U, p = llama.W_U.detach(), own_probabilities(llama)
    for layer in range(3):
        name = f"blocks.{layer}.hook_resid_pre"
        moved = torch.einsum("dpi,pi->dp", js.jacobian(llama, TOKENS, at=name), (theirs[name] - own[name])[0])
        torch.testing.assert_close(semantic.predicted[layer].float(), W_U[:, 3] @ moved, rtol=1e-3, atol=1e-4)
        logits = W_U.T @ moved
        kl = 0.5 * ((p @ logits.square()) - (p @ logits).square())
        torch.testing.assert_close(fisher.predicted[layer].float(), kl, rtol=1e-3, atol=1e-4)


def own_probabilities(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS[None], return_type="logits")[0, -1].softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("scope", oracles.SCOPES)
def test_predictions_converge(kind: str, scope: str) -> None:
    """Halving the difference quarters the error of a first-order prediction; of Fisher's, whose effect is quadratic, it
    falls eightfold."""
    model = shared_tiny(kind, "gpt2", torch.float64).model
    with torch.no_grad():
        _, own = model.run_with_cache(TOKENS[None])
        _, theirs = model.run_with_cache(CORRUPTED[None])
    errors = []
    for size in (0.02, 0.01):
        name = "blocks.1.hook_resid_pre"
        cache = {name: own[name] + size * (theirs[name] - own[name])}
        result = js.patching.compare(model, TOKENS, CORRUPTED, scope, at=[name], cache=cache, **NEED.get(scope, {}))
        errors.append((result.effects - result.predicted).abs().max())
        assert errors[-1] < 0.1 * result.effects.abs().max()
    assert float(errors[0] / errors[1]) == pytest.approx(8 if "fisher" in scope else 4, rel=0.15)


def test_one_row_of_a_scope_of_ones_own(llama: Any) -> None:
    def first_directions(state: js.State) -> torch.Tensor:
        return torch.eye(len(state.y))[:2]

    result = js.patching.compare(llama, TOKENS, CORRUPTED, first_directions)
    with torch.no_grad():
        seen: list[torch.Tensor] = []
        handle = llama.unembed.register_forward_pre_hook(lambda m, args: seen.append(args[0][0, -1, :2]))
        llama(TOKENS[None]), llama(CORRUPTED[None])
        handle.remove()
    assert result.total == pytest.approx(float(0.5 * (seen[1] - seen[0]).square().sum()), rel=1e-4)


def test_a_gradient_of_ones_own(llama: Any) -> None:
    """A function that differentiates, as the log-probability does: to first order in y the same effect."""

    def own(state: js.State) -> torch.Tensor:
        return state.gradient(lambda logits: logits.log_softmax(-1)[3])

    mine = js.patching.compare(llama, TOKENS, CORRUPTED, own)
    known = js.patching.compare(llama, TOKENS, CORRUPTED, "log_prob", target=3)
    torch.testing.assert_close(mine.predicted, known.predicted, rtol=1e-4, atol=1e-6)
    assert mine.effect_unit == "unit of the cotangents"


def test_only_the_first_cells(llama: Any) -> None:
    whole = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3)
    for rank_by in ("score", "predicted"):
        some = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3, only_top=2, rank_by=rank_by)
        ranking = (some.scope.scores.double() if rank_by == "score" else some.predicted.abs())[:, 1:]
        for layer in range(3):
            chosen = (ranking[layer].topk(2).indices + 1).sort().values
            assert some.effects[layer].isfinite().nonzero().flatten().tolist() == chosen.tolist()
            torch.testing.assert_close(some.effects[layer, chosen], whole.effects[layer, chosen], rtol=1e-4, atol=1e-5)
        assert some.costs["patching"].forward_equivalents < whole.costs["patching"].forward_equivalents
        assert some.joint is not None
        assert some.held is not None
        torch.testing.assert_close(some.held, some.joint / some.total)
    assert some.held[0] == pytest.approx(
        1.0, abs=1e-4
    )  # the two positions where the prompts differ are the whole effect
    assert whole.held is None
    assert "as a share of the whole effect: 100%" in repr(some)


def test_agreement_is_scipys(llama: Any) -> None:
    result = js.patching.compare(llama, TOKENS, CORRUPTED, "fisher", method="exact")
    rows = result.agreement(k=3)
    assert [row.hook_point for row in rows] == [*result.scope.hook_points, "all"]
    for i, row in enumerate(rows[:-1]):
        effects = result.effects[i, 1:].abs()
        assert row.predicted == pytest.approx(spearmanr(result.predicted[i, 1:].abs(), effects).statistic)
        assert row.score == pytest.approx(spearmanr(result.scope.scores[i, 1:], effects).statistic)
    both = result.predicted[:, 1:].abs().flatten(), result.effects[:, 1:].abs().flatten()
    assert rows[-1].predicted == pytest.approx(spearmanr(*both).statistic)
    shared = set(both[0].topk(3).indices.tolist()) & set(both[1].topk(3).indices.tolist())
    assert rows[-1].top_predicted == pytest.approx(len(shared) / 3)


def test_the_users_hooks_are_active_in_every_run(llama: Any) -> None:
    def halve(resid: torch.Tensor, hook: Any) -> torch.Tensor:
        return 0.5 * resid

    hooks = [("blocks.1.hook_resid_pre", halve)]
    result = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3, fwd_hooks=hooks, at="resid_post")
    wanted = naive(llama, "semantic", TOKENS, CORRUPTED, "resid_post", hooks)
    torch.testing.assert_close(result.effects, wanted, rtol=1e-4, atol=1e-5)


def test_everything_is_left_as_it_was(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    model.add_hook("blocks.0.hook_resid_pre", lambda resid, hook: resid)
    model.run_with_cache(TOKENS[None])  # a bridge puts hooks of its own in at its first cached run
    before, tokens = snapshot(model), TOKENS.clone()
    js.patching.compare(model, TOKENS, CORRUPTED, "fisher", only_top=1)
    js.patching.ablate(model, TOKENS, "semantic")
    js.patching.side_by_side(model, TOKENS, CORRUPTED, "blocks.1.hook_resid_pre", [2], target=3)
    with pytest.raises(js.InputError):
        js.patching.compare(model, TOKENS, CORRUPTED, "semantic", target=10**6)
    assert snapshot(model) == before
    assert torch.equal(tokens, TOKENS)


def test_progress_can_be_switched_off(llama: Any, capsys: pytest.CaptureFixture[str]) -> None:
    js.patching.compare(llama, TOKENS, CORRUPTED, progress=False)
    assert not capsys.readouterr().err
    js.patching.compare(llama, TOKENS, CORRUPTED, progress=True)
    assert "patched runs" in capsys.readouterr().err


def test_data_frame_and_text(llama: Any) -> None:
    result = js.patching.compare(llama, TOKENS, CORRUPTED, "entropy")
    frame = result.to_dataframe()
    assert frame.loc[("blocks.1.hook_resid_pre", 2), "effect"] == float(result.effects[1, 2])
    assert frame.loc[("blocks.1.hook_resid_pre", 2), "predicted"] == float(result.predicted[1, 2])
    for part in ("entropy scope", "noising", "nat", "forward passes"):
        assert part in repr(result)


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ({"corrupted": TOKENS[:-1]}, "8 tokens, the corrupted one 7"),
        ({"corrupted": TOKENS}, "are the same"),
        ({"direction": "both"}, "'noising' or 'denoising'"),
        ({"at": "blocks.0.attn.hook_q"}, "not in the residual stream|no hook point"),
        ({"at": []}, "no hook point"),
        ({"only_top": 0}, "1 or more"),
        ({"only_top": True}, "1 or more"),
        ({"rank_by": "luck"}, "'score' or 'predicted'"),
        ({"position": 8}, "outside the prompt"),
        ({"cache": {}}, "has no 'blocks.0"),
        (
            {"cache": {f"blocks.{i}.hook_resid_pre": torch.zeros(1, 5, 32) for i in range(3)}},
            r"has \[1, 5, 32\] at .* but \[1, 8, 32\] is needed",
        ),
    ],
)
def test_bad_input(llama: Any, change: dict[str, Any], cure: str) -> None:
    given = {"clean": TOKENS, "corrupted": CORRUPTED} | change
    with pytest.raises(js.InputError, match=cure):
        compare(llama, **given)


def test_caches_of_others(kind: str, llama: Any) -> None:
    with torch.no_grad():
        _, other_prompt = llama.run_with_cache(TOKENS[None])
        _, other_model = shared_tiny(kind, "gpt2").model.run_with_cache(CORRUPTED[None])
        _, right = llama.run_with_cache(CORRUPTED[None])
    with pytest.raises(js.InputError, match="another prompt"):
        compare(llama, TOKENS, CORRUPTED, cache=other_prompt)
    with pytest.raises(js.InputError, match="another model"):
        compare(llama, TOKENS, CORRUPTED, cache=other_model)
    given, made = compare(llama, TOKENS, CORRUPTED, cache=right), compare(llama, TOKENS, CORRUPTED)
    torch.testing.assert_close(given.effects, made.effects)


def test_resid_mid(kind: str, llama: Any) -> None:
    if kind == "bridge":
        with pytest.raises(js.InputError, match="would not change the stream"):
            compare(llama, TOKENS, CORRUPTED, at="resid_mid")
        return
    result = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3, at="resid_mid")
    wanted = naive(llama, "semantic", TOKENS, CORRUPTED, "resid_mid")
    torch.testing.assert_close(result.effects, wanted, rtol=1e-4, atol=1e-5)


def test_one_hook_point_is_a_map_of_one_layer(llama: Any) -> None:
    found = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3, at="blocks.1.hook_resid_pre")
    several = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3)
    torch.testing.assert_close(found.effects[0], several.effects[1], rtol=1e-4, atol=1e-5)
    assert len(found.to_dataframe()) == len(TOKENS)
    assert "blocks.1.hook_resid_pre" in [agreement.hook_point for agreement in found.agreement()]
