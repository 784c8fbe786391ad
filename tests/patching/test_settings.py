"""Patching under the user's hooks, modes and threads, at other positions, and with caches that do not fit."""

import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import jscope_tl as js
from tests import models
from tests.conftest import shared_tiny
from tests.models import TOKENS, Tiny
from tests.patching.test_comparison import CORRUPTED, NEED, naive

pytestmark = pytest.mark.slow

compare, ablate = inspect.unwrap(js.patching.compare), inspect.unwrap(js.patching.ablate)
side_by_side = inspect.unwrap(js.patching.side_by_side)
CLOSE = {"rtol": 1e-4, "atol": 1e-5, "check_dtype": False}
POINT = "blocks.1.hook_resid_pre"


def halve(resid: torch.Tensor, hook: Any) -> torch.Tensor:
    return 0.5 * resid


@pytest.mark.parametrize("scope", ["semantic", "temperature", "fisher"])
def test_other_positions(tiny: Tiny, scope: str) -> None:
    """Explaining position 4 is explaining the last position of the prompt that ends there."""
    whole = js.patching.compare(tiny.model, TOKENS, CORRUPTED, scope, position=4, **NEED.get(scope, {}))
    short = naive(tiny.model, scope, TOKENS[:5], CORRUPTED[:5], "resid_pre")
    torch.testing.assert_close(whole.effects[:, :5], short, **CLOSE)
    assert not whole.effects[:, 5:].any()
    assert whole.agreement()[-1].n == 3 * (5 - 1)  # without BOS
    assert not whole.predicted[:, 5:].any()
    assert not whole.scope.scores[:, 5:].any()


def test_cells_patched_together(llama: Any) -> None:
    result = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3, only_top=3)
    with torch.no_grad():
        _, cache = llama.run_with_cache(CORRUPTED[None])
        before = llama(TOKENS[None], return_type="logits")[0, -1, 3]
        for layer, name in enumerate(result.scope.hook_points):
            chosen = result.effects[layer].isfinite().nonzero().flatten()

            def patch(resid: torch.Tensor, hook: Any, at: torch.Tensor = chosen, name: str = name) -> torch.Tensor:
                resid = resid.clone()
                resid[0, at] = cache[name][0, at]
                return resid

            after = llama.run_with_hooks(TOKENS[None], fwd_hooks=[(name, patch)], return_type="logits")[0, -1, 3]
            assert float(result.joint[layer]) == pytest.approx(float(after - before), abs=1e-5)


def test_bos_is_never_chosen(pocket: Any) -> None:
    clean, corrupted = "the keys near the door", "the key near the door"
    for rank_by in ("score", "predicted"):
        result = js.patching.compare(pocket, clean, corrupted, "log_prob", only_top=99, rank_by=rank_by)
        assert result.scope.bos_positions == (0,)
        assert result.effects[:, 0].isnan().all()
        assert result.effects[:, 1:].isfinite().all()


@pytest.mark.newest_line
@pytest.mark.parametrize("method", [{"method": "sampled", "rank": 4, "probes": 6}, {"method": "auto", "rtol": 0.3}])
def test_estimated_fisher(llama: Any, method: dict[str, Any]) -> None:
    """Scores are those of `attribute`; predictions come near those of the exact rows."""
    result = js.patching.compare(llama, TOKENS, CORRUPTED, "fisher", **method)
    alone = js.attribute(llama, TOKENS, "fisher", at="resid_pre", **method)
    torch.testing.assert_close(result.scope.scores, alone.scores)
    exact = js.patching.compare(llama, TOKENS, CORRUPTED, "fisher", method="exact")
    runs = [
        js.patching.compare(llama, TOKENS, CORRUPTED, "fisher", seed=seed, **method).predicted for seed in range(24)
    ]
    spread = torch.stack(runs).std(0) / 24**0.5
    assert ((torch.stack(runs).mean(0) - exact.predicted).abs() <= 4 * spread + 0.02 * exact.predicted).all()


def test_provenance_says_where(llama: Any) -> None:
    result = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3)
    assert result.scope.provenance == js.attribute(llama, TOKENS, "semantic", target=3, at="resid_pre").provenance


class Doubled(js.Scope):
    """A scope with a score of its own."""

    @property
    def unit(self) -> str:
        return "nat per unit of x"

    def cotangents(self, state: js.State) -> torch.Tensor:
        return state.y.detach().unsqueeze(0)

    def score(self, state: js.State, squares: Any) -> Any:
        inner = super().score(state, squares)
        return type(inner)(2 * inner.values)


def test_a_score_of_ones_own(llama: Any) -> None:
    mine = js.patching.compare(llama, TOKENS, CORRUPTED, Doubled())
    torch.testing.assert_close(mine.scope.scores, js.attribute(llama, TOKENS, Doubled(), at="resid_pre").scores)
    assert mine.effect_unit == "nat"


@pytest.mark.parametrize("k", [1, 2])
def test_functions_that_differentiate(llama: Any, k: int) -> None:
    def own(state: js.State) -> torch.Tensor:
        return torch.stack([state.gradient(lambda logits, i=i: logits[i]) for i in range(k)])

    result = js.patching.compare(llama, TOKENS, CORRUPTED, own)
    moved = [js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=i) for i in range(k)]
    total = moved[0].total if k == 1 else 0.5 * sum(m.total**2 for m in moved)
    assert result.total == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("given", [None, "generator"])
def test_fwd_hooks_of_any_kind(llama: Any, given: Any) -> None:
    """None is no hook; a generator serves every run."""

    def hooks() -> Any:
        return None if given is None else (pair for pair in [(POINT, halve)])

    kept = [] if given is None else [(POINT, halve)]
    for call in (
        lambda h: js.patching.compare(llama, TOKENS, CORRUPTED, "entropy", fwd_hooks=h).effects,
        lambda h: js.patching.ablate(llama, TOKENS, "entropy", fwd_hooks=h).kl,
        lambda h: js.patching.side_by_side(llama, TOKENS, CORRUPTED, POINT, [2], "entropy", fwd_hooks=h).patched.scores,
    ):
        assert torch.equal(call(hooks()), call(kept))


def test_hook_names_that_do_not_exist(llama: Any) -> None:
    hooks = [("blocks.9.hook_nothing", halve)]
    for call in (
        lambda: compare(llama, TOKENS, CORRUPTED, fwd_hooks=hooks),
        lambda: ablate(llama, TOKENS, fwd_hooks=hooks),
        lambda: side_by_side(llama, TOKENS, CORRUPTED, POINT, [2], fwd_hooks=hooks),
    ):
        with pytest.raises(js.InputError, match="blocks.9.hook_nothing"):
            call()


def test_hooks_are_in_every_run_of_an_ablation(llama: Any) -> None:
    """A hook that counts on a batch of one prompt, and one at the embedding itself."""

    def first_row(resid: torch.Tensor, hook: Any) -> torch.Tensor:
        resid = resid.clone()
        resid[0, -1] = 0.3 * resid[0, -1]
        return resid

    for name, user_hook in ((POINT, first_row), ("hook_embed", halve)):
        result = js.patching.ablate(llama, TOKENS, "semantic", target=3, fwd_hooks=[(name, user_hook)])
        for t in range(8):

            def blank(embedded: torch.Tensor, hook: Any, t: int = t) -> torch.Tensor:
                embedded = embedded.clone()
                embedded[0, t] = 0
                return embedded

            with torch.no_grad():
                before, after = (
                    llama.run_with_hooks(TOKENS[None], fwd_hooks=hooks, return_type="logits")[0, -1, 3]
                    for hooks in ([(name, user_hook)], [(name, user_hook), ("hook_embed", blank)])
                )
            assert float(result.logit[t]) == pytest.approx(float(after - before), abs=1e-4)


def test_the_mean_embedding_is_not_scaled_by_the_users_hooks(llama: Any) -> None:
    zeroed = [("hook_embed", lambda embedded, hook: 0 * embedded)]
    result = js.patching.ablate(llama, TOKENS, "semantic", target=3, replacement="mean", fwd_hooks=zeroed)
    assert result.logit.isfinite().all()
    assert result.logit.abs().max() > 1e-4


def test_side_by_side_with_hooks_in_both_directions(llama: Any) -> None:
    hooks = [("blocks.2.hook_resid_pre", halve)]
    for direction, base in (("noising", TOKENS), ("denoising", CORRUPTED)):
        runs = js.patching.side_by_side(
            llama, TOKENS, CORRUPTED, POINT, [2], "semantic", target=3, direction=direction, fwd_hooks=hooks
        )
        assert torch.equal(runs.patched.tokens, base)
        assert torch.equal(runs.clean.tokens, TOKENS)
        assert torch.equal(runs.corrupted.tokens, CORRUPTED)
        alone = js.attribute(llama, CORRUPTED, "semantic", target=3, fwd_hooks=hooks)
        assert torch.equal(runs.corrupted.scores, alone.scores)


def test_positions_to_patch(llama: Any) -> None:
    one, same, twice = (
        js.patching.side_by_side(llama, TOKENS, CORRUPTED, POINT, positions, "semantic", target=3)
        for positions in (2, [2], [2, 2, -6])
    )
    for runs in (same, twice):
        assert torch.equal(one.patched.scores, runs.patched.scores)
        assert runs.patched_at == one.patched_at == (POINT, (2,))
    with pytest.raises(js.InputError, match="one or more"):
        side_by_side(llama, TOKENS, CORRUPTED, POINT, [])


def test_caches_that_do_not_fit(llama: Any) -> None:
    with torch.no_grad():
        logits, source = llama.run_with_cache(CORRUPTED[None])
        _, own = llama.run_with_cache(TOKENS[None])
    points = [f"blocks.{layer}.hook_resid_pre" for layer in range(3)]
    kept = {name: source[name].clone() for name in points}
    undefined = kept | {points[1]: torch.full_like(kept[points[1]], torch.nan)}
    for cache, cure in (
        ((logits, source), "second return value"),
        ({name: value[..., :-1] for name, value in kept.items()}, "is needed"),
        (undefined, "undefined"),
        ({name: own[name] for name in points}, "changes nothing|another prompt"),
    ):
        with pytest.raises(js.InputError, match=cure):
            compare(llama, TOKENS, CORRUPTED, "semantic", target=3, cache=cache)
    before = {name: value.clone() for name, value in kept.items()}
    js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3, cache=kept)
    assert all(torch.equal(kept[name], before[name]) for name in points)


def test_prompts_that_differ_too_late(llama: Any) -> None:
    with pytest.raises(js.InputError, match="the same up to the explained position 1"):
        compare(llama, TOKENS, CORRUPTED, position=1)


def test_no_inference_tensors(llama: Any) -> None:
    with torch.inference_mode():
        result = js.patching.compare(llama, TOKENS, CORRUPTED, "fisher")
        lost = js.patching.ablate(llama, TOKENS, "semantic", target=3)
    for values in (result.effects, result.predicted, result.scope.scores, lost.kl, lost.logit):
        assert not values.is_inference()
        assert not values.requires_grad
    torch.testing.assert_close(result.effects, js.patching.compare(llama, TOKENS, CORRUPTED, "fisher").effects)


def test_autocast_changes_nothing(llama: Any) -> None:
    plain = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=3)
    assert torch.equal(result.effects, plain.effects)
    assert torch.equal(result.predicted, plain.predicted)


def test_hooks_of_an_outer_level_survive(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    with model.hooks(fwd_hooks=[(POINT, halve)]):
        inside = js.patching.compare(model, TOKENS, CORRUPTED, "semantic", target=3)
        assert len(model.hook_dict[POINT].fwd_hooks) == 1
    given = js.patching.compare(model, TOKENS, CORRUPTED, "semantic", target=3, fwd_hooks=[(POINT, halve)])
    torch.testing.assert_close(inside.effects, given.effects)


def test_threads(llama: Any) -> None:
    alone = [js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=t).effects for t in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(
                lambda t: js.patching.compare(llama, TOKENS, CORRUPTED, "semantic", target=t, progress=False).effects,
                range(4),
            )
        )
    for own, other in zip(alone, found, strict=True):
        torch.testing.assert_close(own, other)


def test_a_hook_that_fails_in_the_middle_leaves_nothing_behind(llama: Any) -> None:
    before = models.snapshot(llama)
    calls = 0

    def fails(resid: torch.Tensor, hook: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise RuntimeError("a hook of the user's fails in the middle of the sweep")
        return resid

    with pytest.raises(RuntimeError, match="middle of the sweep"):
        js.patching.compare(llama, TOKENS, CORRUPTED, "entropy", fwd_hooks=[(POINT, fails)])
    assert models.snapshot(llama) == before


def test_shares_of_an_effect_that_is_not_there(kind: str) -> None:
    """A hook writes the same embeddings in every run: there is no effect to share."""
    model = shared_tiny(kind, "llama").model

    def fixed(embedded: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.linspace(-1, 1, embedded.numel()).view_as(embedded)

    result = js.patching.compare(
        model, TOKENS, CORRUPTED, "semantic", target=3, only_top=1, fwd_hooks=[("hook_embed", fixed)]
    )
    assert result.total == 0
    assert not result.effects[result.effects.isfinite()].any()
    assert result.agreement()[-1].k == 0
    repr(result)
