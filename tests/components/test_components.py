"""`components` against Jacobians by TransformerLens hooks in float64, and against the changes themselves."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

import jscope_tl as js
from jscope_tl.components import edges as edges_module
from jscope_tl.components import refinement, runs
from jscope_tl.components.runs import ComponentRuns
from jscope_tl.scopes.effects import EffectRows
from jscope_tl.scopes.fisher import FisherScope
from tests import models
from tests.conftest import shared_tiny
from tests.models import TOKENS

EXPLAINED, TARGET = 6, 3
HOOKS = {"heads": "attn.hook_z", "attn": "hook_attn_out", "mlps": "hook_mlp_out", "neurons": "mlp.hook_post"}
CORRUPTED = torch.tensor([0, 17, 301, 90, 17, 208, 99, 431])
TIGHT = dict(rtol=1e-6, atol=1e-9)
"""Results are float32 of what was computed in float64."""
Change = Callable[[torch.Tensor, int], torch.Tensor]
"""From an activation and its layer to the changed one."""


def double(kind: str, family: str) -> Any:
    return shared_tiny(kind, family, torch.float64).model


def logits_with(model: Any, change: Change, hook_name: str) -> torch.Tensor:
    """The logits at the explained position, with the activations of every layer changed."""
    hooks = [(f"blocks.{layer}.{hook_name}", lambda x, hook, layer=layer: change(x, layer)) for layer in range(3)]
    return model.run_with_hooks(TOKENS[None], fwd_hooks=hooks, return_type="logits")[0, EXPLAINED]


def cached(model: Any, tokens: torch.Tensor = TOKENS) -> Any:
    with torch.no_grad():
        return model.run_with_cache(tokens[None])[1]


def units(activation: torch.Tensor, of: str) -> int:
    """How many components a vector ``[1, pos, ...]`` is made of."""
    return {"heads": 4, "neurons": activation.shape[-1]}.get(of, 1)


def spread(values: torch.Tensor, activation: torch.Tensor, of: str) -> torch.Tensor:
    """One number for each component ``[units]`` or ``[pos, units]``, on all of its activation."""
    if of == "heads" and activation.ndim == 3:
        values = values.repeat_interleave(activation.shape[-1] // 4, -1)
    elif of == "heads":
        values = values.unsqueeze(-1)
    return values if values.ndim == activation.ndim else values.unsqueeze(0)


def naive_jacobian(model: Any, of: str, source: dict[str, torch.Tensor], each: bool) -> torch.Tensor:
    """``∂ logits / ∂ s`` at ``s = 0`` of the model with ``a + s (source - a)`` in place of every component ``a``."""
    base, name = cached(model), HOOKS[of]
    shape = (len(TOKENS) if each else 1, units(base[f"blocks.0.{name}"], of))
    s = torch.zeros(3, *shape, dtype=torch.float64, requires_grad=True)

    def change(x: torch.Tensor, layer: int) -> torch.Tensor:
        point = f"blocks.{layer}.{name}"
        return x + spread(s[layer], x, of) * (source[point] - base[point])

    logits = logits_with(model, change, name)
    each_logit = torch.eye(len(logits), dtype=torch.float64)
    (jacobian,) = torch.autograd.grad(logits, s, each_logit, is_grads_batched=True)
    jacobian = jacobian.transpose(-1, -2) if each else jacobian[..., 0, :]
    return jacobian.squeeze(-2 if each else -1) if of in ("attn", "mlps") else jacobian


def naive_divergence(model: Any, jacobian: torch.Tensor) -> torch.Tensor:
    """``KL(p ‖ softmax(z + change))``, term by term."""
    with torch.no_grad():
        z = model(TOKENS[None], return_type="logits")[0, EXPLAINED].double()
    p, cells = z.softmax(-1), jacobian.flatten(1).T
    found = [(p * (p.log() - (z + change).log_softmax(-1))).sum() for change in cells]
    return torch.stack(found).view(jacobian.shape[1:])


def zeros(model: Any) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(x) for name, x in cached(model).items()}


def measured_ones(effects: Any, n: int) -> list[Any]:
    cells = effects.measured.flatten().isfinite().nonzero().flatten().tolist()
    assert len(cells) == n
    found = [effects.component(cell) for cell in cells]
    assert all(one.how == "measured" and one.stderr is None for one in found)
    return found


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(
        found.double(), expected.detach().double(), rtol=1e-5, atol=1e-7 * float(expected.abs().max())
    )


@pytest.mark.parametrize("positions", ["all", pytest.param("each", marks=pytest.mark.slow)])
@pytest.mark.parametrize("of", HOOKS)
def test_predictions_are_those_of_a_dense_jacobian(kind: str, family: str, of: str, positions: str) -> None:
    model, each = double(kind, family), positions == "each"
    jacobian = naive_jacobian(model, of, zeros(model), each)
    how = dict(of=of, position=EXPLAINED, positions=positions, refine=0)
    found = js.patching.components(model, TOKENS, "fisher", method="exact", **how)
    assert found.unit == "nat (KL)"
    assert found.stderr is None
    assert not found.refined.any()
    close(found.predicted, naive_divergence(model, jacobian))
    signed = js.patching.components(model, TOKENS, "semantic", target=TARGET, **how)
    close(signed.predicted, jacobian[TARGET])
    assert signed.unit == "logit"


@pytest.mark.parametrize("scope", ["log_prob", "entropy", "temperature", "contrastive"])
def test_every_scope_with_one_cotangent_is_signed(llama: Any, scope: str) -> None:
    options = {"contrastive": dict(target=3, baseline=4), "log_prob": dict(target=3)}.get(scope, {})
    effects = js.patching.components(llama, TOKENS, scope, refine=0, **options)
    assert (effects.predicted > 0).any()
    assert (effects.predicted < 0).any()


def test_a_scope_of_ones_own(llama: Any) -> None:
    def first_logits(state: Any) -> torch.Tensor:
        return torch.stack([state.gradient(lambda z, i=i: z[i]) for i in (3, 4)])

    both = js.patching.components(llama, TOKENS, first_logits, refine=0).predicted
    single = [js.patching.components(llama, TOKENS, "semantic", target=i, refine=0).predicted for i in (3, 4)]
    torch.testing.assert_close(both, 0.5 * (single[0].square() + single[1].square()), rtol=1e-4, atol=1e-9)


def test_estimates_are_near_the_exact_prediction_by_their_errors(kind: str, family: str) -> None:
    model, how = double(kind, family), dict(position=EXPLAINED, refine=0, positions="each")
    exact = js.patching.components(model, TOKENS, "fisher", method="exact", **how).predicted
    ratios = []
    for seed in range(4):
        found = js.patching.components(model, TOKENS, "fisher", rank=6, probes=8, seed=seed, **how)
        sure = found.stderr > 1e-3 * exact.max()
        ratios.append(((found.predicted - exact).abs() / found.stderr)[sure])
    ratio = torch.cat(ratios)
    assert len(ratio) > 20
    assert (ratio < 2.5).double().mean() > 0.9


@pytest.mark.parametrize("of", HOOKS)
def test_measured_effects_are_those_of_whole_runs_with_hooks(kind: str, family: str, of: str) -> None:
    model = double(kind, family)
    effects = js.patching.components(model, TOKENS, of=of, position=EXPLAINED, positions="each", refine=0).measure(7)
    with torch.no_grad():
        log_p = model(TOKENS[None], return_type="logits")[0, EXPLAINED].log_softmax(-1)
        for found in measured_ones(effects, 7):

            def change(x: torch.Tensor, layer: int, found: Any = found) -> torch.Tensor:
                if layer != found.layer:
                    return x
                unit = found.head if of == "heads" else found.unit or 0
                zero = torch.zeros(len(TOKENS), units(x, of), dtype=torch.float64)
                zero[found.pos, unit] = 1
                return x * (1 - spread(zero, x, of))

            log_q = logits_with(model, change, HOOKS[of]).log_softmax(-1)
            expected = float((log_p.exp() * (log_p - log_q)).sum())
            assert found.effect == pytest.approx(expected, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("of", ["heads", "edges", "mlps"])
def test_refined_through_all_blocks_is_exact_but_for_the_final_norm(
    kind: str, family: str, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the last block rows are those of the final norm: the change that reaches it is the true one."""
    monkeypatch.setattr(refinement, "LARGE", 1e9)
    model, asked = double(kind, family), dict(target=TARGET, position=EXPLAINED)
    cotangents: list[torch.Tensor] = []

    def logit(state: Any) -> torch.Tensor:
        cotangents.append(state.gradient(lambda z: z[TARGET]))
        return cotangents[-1]

    js.attribute(model, TOKENS, logit, position=EXPLAINED)
    rows = js.jacobian(model, TOKENS, cotangents[-1][None], at="blocks.2.hook_resid_post", position=EXPLAINED)
    row = torch.as_tensor(rows)[0, EXPLAINED]
    effects = js.patching.components(model, TOKENS, "semantic", of=of, refine=1, **asked)
    (best,) = [i for i, refined in enumerate(effects.refined.flatten()) if refined]
    found = effects.component(best)
    before, after = _streams(model, found)
    assert found.how == "refined"
    assert found.effect == pytest.approx(float(row.double() @ (after - before)), rel=1e-5)


def _streams(model: Any, found: Any) -> list[torch.Tensor]:
    """The last residual stream at the explained position, without and with the component."""
    kept: list[torch.Tensor] = []
    last = ("blocks.2.hook_resid_post", lambda x, hook: kept.append(x[0, EXPLAINED].clone()))

    def change(x: torch.Tensor, hook: Any) -> torch.Tensor:
        x = x.clone()
        if found.dest is not None:
            x[0, found.head, found.dest, found.src] = 0
        elif found.head is not None:
            shown = x.view(*x.shape[:2], 4, -1)
            shown[:, :, found.head] = 0
        else:
            x[:] = 0
        return x

    with torch.no_grad():
        for hooks in ([last], [(found.hook_point, change), last]):
            model.run_with_hooks(TOKENS[None], fwd_hooks=hooks)
    return kept


def test_edges_are_the_pattern_times_its_gradient(kind: str, family: str) -> None:
    """The score at ``at="pattern"`` is the sum of what looking at a token gives."""
    model = double(kind, family)
    for gradient in ("plain", "attnlrp"):
        how = dict(target=TARGET, position=EXPLAINED, gradient=gradient)
        edges = js.patching.components(model, TOKENS, "log_prob", of="edges", refine=0, **how)
        assert edges.axes == ("layer", "head", "dest", "src")
        whole = js.attribute(model, TOKENS, "log_prob", at="pattern", **how)
        close((-edges.predicted).relu().sum((0, 1, 2)), whole.scores)
    assert not edges.predicted[:, :, EXPLAINED + 1 :].any()
    assert not edges.predicted.triu(1).any()


@pytest.mark.parametrize("source", ["zero", "prompt"])
def test_measured_edges_are_those_of_patched_patterns(kind: str, family: str, source: str) -> None:
    model = double(kind, family)
    put = "zero" if source == "zero" else CORRUPTED
    effects = js.patching.components(model, TOKENS, of="edges", source=put, position=EXPLAINED, refine=0).measure(6)
    theirs = zeros(model) if source == "zero" else cached(model, CORRUPTED)
    with torch.no_grad():
        log_p = model(TOKENS[None], return_type="logits")[0, EXPLAINED].log_softmax(-1)
        for found in measured_ones(effects, 6):

            def change(x: torch.Tensor, hook: Any, found: Any = found) -> torch.Tensor:
                x = x.clone()
                place = (0, found.head, found.dest, found.src)
                x[place] = theirs[f"blocks.{found.layer}.attn.hook_pattern"][place]
                return x

            logits = model.run_with_hooks(TOKENS[None], fwd_hooks=[(found.hook_point, change)], return_type="logits")
            log_q = logits[0, EXPLAINED].log_softmax(-1)
            expected = float((log_p.exp() * (log_p - log_q)).sum())
            assert found.effect == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_edges_of_long_prompts_are_the_strongest_of_each_head(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = js.patching.components(llama, TOKENS, of="edges", refine=0)
    monkeypatch.setattr(edges_module, "MOST_BYTES", 4 * 20 * 3 * 4 * 5)
    kept = js.patching.components(llama, TOKENS, of="edges", refine=3)
    assert kept.axes == ("layer", "head", "entry")
    assert kept.predicted.shape == (3, 4, 5)
    assert kept.refined.sum() == 3
    plain = js.patching.components(llama, TOKENS, of="edges", refine=0)
    torch.testing.assert_close(plain.predicted, dense.predicted.flatten(2).gather(2, plain.index), rtol=1e-4, atol=1e-9)
    strongest = dense.predicted.flatten(2).topk(5).values
    torch.testing.assert_close(plain.predicted.sort(descending=True).values, strongest, rtol=1e-4, atol=1e-9)
    best = plain.top(1)[0]
    assert best.effect == pytest.approx(float(dense.predicted[best.layer, best.head, best.dest, best.src]), rel=1e-4)
    assert plain.measure(2).top(1)[0].how == "measured"


def test_effects_go_with_the_heads_when_these_change_places() -> None:
    hf = models.hf_model("gpt2", torch.float64)
    order = [2, 0, 3, 1]
    import copy

    other = copy.deepcopy(hf)
    columns = torch.cat([torch.arange(8) + 8 * head for head in order])
    with torch.no_grad():
        for block in other.transformer.h:
            for part in range(3):
                where = columns + 32 * part
                block.attn.c_attn.weight[:, 32 * part : 32 * part + 32] = block.attn.c_attn.weight[:, where].clone()
                block.attn.c_attn.bias[32 * part : 32 * part + 32] = block.attn.c_attn.bias[where].clone()
            block.attn.c_proj.weight[:] = block.attn.c_proj.weight[columns].clone()
    make = (
        (lambda hf: models.bridge_of(hf, "tiny"))
        if models.ANY_KIND == "bridge"
        else (lambda hf: models.hooked_of(hf, "gpt2"))
    )
    first, second = (js.patching.components(make(model), TOKENS, positions="each").predicted for model in (hf, other))
    torch.testing.assert_close(second, first[:, order], rtol=1e-4, atol=1e-9)


def test_all_positions_together_are_the_sum_of_each_to_first_order(llama: Any) -> None:
    each, together = (
        js.patching.components(llama, TOKENS, "log_prob", target=TARGET, positions=positions, refine=0).predicted
        for positions in ("each", "all")
    )
    torch.testing.assert_close(each.sum(-1), together, rtol=1e-3, atol=1e-6)


def test_hooks_of_the_user_are_in_every_run(llama: Any) -> None:
    """And with them whole prompts run one by one, nothing is refined unless it is asked for."""
    calls = []

    def double_it(x: torch.Tensor, hook: Any) -> torch.Tensor:
        calls.append(len(x))
        return 2 * x

    hooks = [("blocks.0.hook_mlp_out", double_it)]
    effects = js.patching.components(llama, TOKENS, fwd_hooks=hooks)
    assert not effects.refined.any()
    measured = effects.measure(12).measured
    assert set(calls) == {1}
    with torch.no_grad():
        log_p = (
            llama.run_with_hooks(TOKENS[None], fwd_hooks=hooks, return_type="logits")[0, -1].double().log_softmax(-1)
        )

        def blank(x: torch.Tensor, hook: Any) -> torch.Tensor:
            x = x.clone()
            x.view(*x.shape[:2], 4, -1)[:, :, 1] = 0
            return x

        own = [*hooks, ("blocks.1.attn.hook_z", blank)]
        log_q = llama.run_with_hooks(TOKENS[None], fwd_hooks=own, return_type="logits")[0, -1].double().log_softmax(-1)
    assert float(measured[1, 1]) == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), rel=1e-3)
    again = js.patching.components(llama, TOKENS, fwd_hooks=hooks, refine=2)
    assert again.refined.sum() + again.options["resolved"]["measured"] == 2


def test_nothing_of_the_users_is_changed(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    model.run_with_cache(TOKENS[None])
    before = models.snapshot(model)
    with torch.no_grad():
        for of in ("heads", "edges"):
            js.patching.components(model, TOKENS, of=of).measure(3)
    assert models.snapshot(model) == before

    def fails(x: torch.Tensor, hook: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        js.patching.components(model, TOKENS, fwd_hooks=[("blocks.1.hook_mlp_out", fails)])
    assert models.snapshot(model) == before


def test_inference_mode_and_half_precision(kind: str) -> None:
    full = js.patching.components(shared_tiny(kind, "llama").model, TOKENS)
    with torch.inference_mode():
        again = js.patching.components(shared_tiny(kind, "llama").model, TOKENS).measure(2)
    torch.testing.assert_close(again.predicted, full.predicted)
    half = js.patching.components(shared_tiny(kind, "llama", torch.bfloat16).model, TOKENS)
    assert torch.corrcoef(torch.stack([half.predicted.flatten(), full.predicted.flatten()]))[0, 1] > 0.98


def test_measuring_goes_on_where_it_ended(pocket: Any) -> None:
    effects = js.patching.components(pocket, "the keys to the cabinet near the doors", refine=2)
    once = effects.measure(3)
    twice = once.measure(6)
    assert once.measured.isfinite().sum() == 3 <= twice.measured.isfinite().sum() <= 6
    kept = once.measured.isfinite()
    assert torch.equal(twice.measured[kept], once.measured[kept])
    assert twice.costs["measuring"].n_forward > once.costs["measuring"].n_forward
    assert {found.how for found in twice.top(3)} == {"measured"}
    assert effects.measured is None
    unmeasured = twice.measured.isnan()
    assert torch.equal(twice.values[unmeasured], effects.predicted[unmeasured])


def test_round_trip(pocket: Any, tmp_path: Path) -> None:
    for of in ("heads", "edges"):
        effects = js.patching.components(pocket, "the keys to the cabinet", "log_prob", of=of, target=" are")
        effects = effects.measure(2) if of == "heads" else effects
        loaded = js.patching.ComponentEffects.load(effects.save(tmp_path / "effects.safetensors"))
        assert repr(loaded) == repr(effects)
        torch.testing.assert_close(loaded.values, effects.values)
        for field in dataclasses.fields(effects):
            if not isinstance(getattr(effects, field.name), torch.Tensor):
                assert repr(getattr(loaded, field.name)) == repr(getattr(effects, field.name)), field.name
        with pytest.raises(js.InputError, match="come from a file"):
            loaded.measure(1)


def test_the_result_says_what_it_is(pocket: Any) -> None:
    effects = js.patching.components(
        pocket, "the keys to the cabinet near the doors", "log_prob", target=" are", refine=3
    )
    frame = effects.to_dataframe()
    assert len(frame) == 16
    assert {"name", "effect", "how", "layer", "head"} <= {*frame.columns}
    assert frame.how.value_counts().to_dict() == {"predicted": 13, "refined": 3}
    text = repr(effects)
    assert "target ' are'" in text
    assert "source zero" in text
    assert "effects in nat" in text
    assert "passes" in text
    best = effects.top(1)[0]
    assert best.name == f"blocks.{best.layer}.attn.hook_z head {best.head}"
    assert effects.options["resolved"]["refined"] == 3
    assert effects.costs["prediction"].n_backward == 1


def test_the_model_is_not_kept_alive(kind: str) -> None:
    import gc

    effects = js.patching.components(models.tiny(kind, "llama").model, TOKENS)
    gc.collect()
    with pytest.raises(js.InputError, match="model of these effects was deleted"):
        effects.measure(1)


def test_refining_takes_ten_forward_passes_at_most(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "PASSES", 2)
    monkeypatch.setattr(refinement, "WHOLE", 0)
    plain, refined = (js.patching.components(llama, TOKENS, refine=refine) for refine in (0, 6))
    more = refined.costs["prediction"].n_forward - plain.costs["prediction"].n_forward
    assert (
        1 < more <= 1 + 2 + 2 / 3 + 1e-9
    )  # the prompt once more, six components through a third of the blocks, and an unchanged one twice


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(of="head"), "no components 'head'.*Did you mean 'heads'"),
        (dict(positions="some"), "positions is 'all' or 'each'"),
        (dict(of="edges", positions="each"), "dest and src"),
        (dict(sae=object()), "need of='features'"),
        (dict(of="features", sae=object()), "encode and decode"),
        (dict(source="zeros"), "no source 'zeros'.*Did you mean 'zero'"),
        (dict(source=[0, 1, 2]), "same number"),
        (dict(source=TOKENS), "are the same up to"),
        (dict(source="resample"), "one of prompts"),
        (dict(source="resample", prompts=[[0, 1, 2]]), "prompts need 8 tokens"),
        (dict(source="resample", prompts=[CORRUPTED], resample_seed=-1), "resample_seed is a whole number"),
        (dict(source="zero", prompts=[[0, 1, 2]]), "prompts are used by"),
        (dict(source="mean", prompts="a text"), "prompts is a list"),
        (dict(source="mean", of="edges"), "no mean over positions"),
        (dict(source="mean", of="edges", prompts=[[0, 1, 2]]), "needs prompts of 8 tokens"),
        (dict(direction="denoising"), "give the corrupted prompt as source"),
        (dict(direction="both"), "'noising' or 'denoising'"),
        (dict(refine=-1), "refine is a whole number"),
        (dict(position=99), "outside the prompt"),
        (dict(scope="fischer"), "Did you mean 'fisher'"),
        (dict(reduction="dot"), "takes no 'reduction'"),
        (dict(path="line"), "takes no 'path'"),
    ],
)
def test_what_cannot_be_done_is_said(llama: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(js.InputError, match=message):
        js.patching.components(llama, TOKENS, **{"scope": "fisher", **given})


@pytest.mark.parametrize("k", [0, -1])
def test_numbers_of_components(llama: Any, k: Any) -> None:
    effects = js.patching.components(llama, TOKENS, refine=0)
    for ask in (effects.top, effects.measure):
        with pytest.raises(js.InputError, match="1 or more"):
            ask(k)
    assert not effects.measure(cells=[]).measured.isfinite().any()


@pytest.mark.parametrize("scope", js.available_scopes())
def test_every_registered_scope_tells_effects(llama: Any, scope: str) -> None:
    options = {"contrastive": dict(target=3, baseline=4)}.get(scope, {})
    effects = js.patching.components(llama, TOKENS, scope, refine=2, **options).measure(2)
    assert effects.predicted.abs().sum() > 0
    assert effects.unit
    assert effects.measured.isfinite().sum() == 2


def test_changes_larger_than_the_stream_are_measured(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or predicted as without refinement, which the result says."""
    monkeypatch.setattr(refinement, "LARGE", 0.0)
    monkeypatch.setattr(refinement, "WHOLE", 2)
    plain, effects = (js.patching.components(llama, TOKENS, refine=refine) for refine in (0, 5))
    assert effects.measured.isfinite().sum() == 2
    assert not effects.refined.any()
    torch.testing.assert_close(effects.predicted, plain.predicted)
    torch.testing.assert_close(
        effects.measured[effects.measured.isfinite()], plain.measure(12).measured[effects.measured.isfinite()]
    )
    assert any("The changes of 3 components are larger" in warning for warning in effects.warnings)
    assert effects.options["resolved"] == {"refined": 0, "blocks": 3, "measured": 2, "rows": 20, "probes": 8}


def test_large_changes_are_those_that_the_prediction_sees(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the explained position streams may change as they like; and of several the one of the largest effect is measured."""
    later = TOKENS.clone()
    later[3] = 90
    runs: list[Any] = []
    streams = ComponentRuns.streams
    monkeypatch.setattr(ComponentRuns, "streams", lambda *given: runs.append(streams(*given)) or runs[-1])
    js.patching.components(llama, TOKENS, source=later, position=4, refine=12)
    ((changes, sizes),) = runs
    with torch.no_grad():
        cache = llama.run_with_cache(TOKENS[None])[1]
    blocks = [min(cell // 4 + 2, 3) - 1 for cell in _order(llama, later)]
    there = torch.stack([cache[f"blocks.{block}.hook_resid_post"][0] for block in blocks])
    share = changes.norm(dim=-1) / there.norm(dim=-1)
    assert (share.amax(1) > share[:, :5].amax(1)).any(), "else this test says nothing"
    torch.testing.assert_close(sizes, share[:, :5].amax(1), rtol=1e-4, atol=1e-7)


def _order(model: Any, source: torch.Tensor) -> list[int]:
    plain = js.patching.components(model, TOKENS, source=source, position=4, refine=0)
    return plain.predicted.flatten().topk(12).indices.tolist()


def test_of_large_changes_those_with_the_largest_effects_are_measured(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as their change through a few blocks tells."""
    monkeypatch.setattr(refinement, "LARGE", 1e9)
    rough = js.patching.components(llama, TOKENS, refine=12)
    strongest = rough.predicted.flatten().topk(3).indices.tolist()
    assert sorted(strongest) != [0, 1, 2], "else this test says nothing"
    monkeypatch.setattr(refinement, "LARGE", 0.0)
    monkeypatch.setattr(refinement, "WHOLE", 3)
    effects = js.patching.components(llama, TOKENS, refine=12)
    assert effects.measured.flatten().isfinite().nonzero().flatten().tolist() == sorted(strongest)


@pytest.mark.parametrize("n", [2, 8, 30])
def test_two_standard_errors_reach_the_upper_end_of_the_interval(n: int) -> None:
    """Of a mean of squares of normal numbers: by the chi-squared distribution, and in 97.5 of 100 draws."""
    made = torch.Generator().manual_seed(0)
    moved = torch.randn(n, 20_000, generator=made, dtype=torch.float64)
    rows = EffectRows(torch.zeros(n, 1, dtype=torch.float64), n_probes=n)
    values, stderr = rows.effects(moved)
    torch.testing.assert_close(values + 2 * stderr, values * n / float(stats.chi2.ppf(0.025, n)))
    assert float((values + 2 * stderr > 0.5).double().mean()) == pytest.approx(0.975, abs=0.005)


def test_probes_stand_for_what_the_leading_directions_leave(kind: str) -> None:
    found: list[Any] = []

    def look(state: Any) -> torch.Tensor:
        found.append(FisherScope(method="exact").effect_rows(state).rows)
        found.extend(FisherScope(rank=6, probes=8, seed=seed).effect_rows(state) for seed in range(200))
        return state.gradient(lambda z: z[TARGET])

    js.attribute(double(kind, "llama"), TOKENS, look)
    every, *estimates = found
    known, probes = estimates[0].rows[:6], torch.cat([one.rows[6:] for one in estimates])
    sizes = known.norm(dim=1, keepdim=True) * probes.norm(dim=1)
    assert ((known @ probes.T).abs() < 1e-4 * sizes).all(), "orthogonal to each other"
    rest = every.T @ every - known.T @ known
    assert (probes.T @ probes / len(probes) - rest).norm() < 0.2 * rest.norm()


def test_blocks_that_cannot_be_replayed_run_again(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unchanged prompt among the others tells."""
    expected = js.patching.components(llama, TOKENS, refine=4).measure(6)
    recorded = runs.recorded_blocks

    @contextlib.contextmanager
    def wrong(view: Any) -> Iterator[list[Any]]:
        with recorded(view) as outputs:
            yield outputs
        outputs[:] = [tuple(1.1 * x for x in out) if isinstance(out, tuple) else 1.1 * out for out in outputs]

    monkeypatch.setattr(runs, "recorded_blocks", wrong)
    found = js.patching.components(llama, TOKENS, refine=4).measure(6)
    torch.testing.assert_close(found.predicted, expected.predicted, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found.measured, expected.measured, rtol=1e-3, atol=1e-9, equal_nan=True)


def test_a_model_that_has_changed_is_not_measured(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    effects = js.patching.components(model, TOKENS)
    model.add_hook("blocks.1.hook_mlp_out", lambda x, hook: 2 * x)
    with pytest.raises(js.InputError, match="because of other hooks or weights"):
        effects.measure(2)


def test_places_of_components(llama: Any) -> None:
    effects = js.patching.components(llama, TOKENS, refine=0)
    with pytest.raises(js.InputError, match="0 to 11; got 99"):
        effects.component(99)
