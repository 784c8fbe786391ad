"""What takes the place of components: means, other prompts, and which of two runs is changed."""

from typing import Any

import pytest
import torch

import jscope_tl as js
from tests import models
from tests.components.test_components import CORRUPTED, EXPLAINED, TARGET, cached, close, double, naive_jacobian
from tests.models import TOKENS

THIRD = torch.tensor([0, 9, 301, 44, 18, 208, 7, 431])
SHORTER = torch.tensor([0, 9, 301, 44, 18])
HOW: dict[str, Any] = dict(target=TARGET, position=EXPLAINED, refine=0)


def signed(model: Any, source: Any, of: str = "heads", **how: Any) -> js.patching.ComponentEffects:
    return js.patching.components(model, TOKENS, "semantic", source=source, of=of, **{**HOW, **how})


def taken(model: Any, means: Any, of: str = "heads", each: bool = False) -> torch.Tensor:
    """The change of the target's logit to first order, with these activations in place of the heads' own."""
    return naive_jacobian(model, of, means, each)[TARGET]


def test_another_prompts_activations(kind: str, family: str) -> None:
    model = double(kind, family)
    found = signed(model, CORRUPTED, positions="each")
    close(found.predicted, taken(model, cached(model, CORRUPTED), each=True))
    assert not found.predicted[..., :3].any(), "before the first difference there is nothing to change"
    assert found.source == "another prompt"
    assert len(found.source_str_tokens) == len(TOKENS)


def test_the_mean_over_positions_up_to_the_explained_one(kind: str, family: str) -> None:
    model = double(kind, family)
    means = {
        name: x[:, : EXPLAINED + 1].mean(1, keepdim=True).expand_as(x) if "hook_z" in name else x
        for name, x in cached(model).items()
    }
    found = signed(model, "mean")
    close(found.predicted, taken(model, means))
    assert "positions" in found.source


def test_the_mean_over_prompts_of_one_length_is_one_for_each_position(kind: str, family: str) -> None:
    model = double(kind, family)
    first, second = cached(model, CORRUPTED), cached(model, THIRD)
    means = {name: (x + second[name]) / 2 for name, x in first.items()}
    close(signed(model, "mean", prompts=[CORRUPTED, THIRD]).predicted, taken(model, means))


def test_the_mean_over_prompts_of_any_length_is_one_for_all_positions(llama: Any, kind: str) -> None:
    model = double(kind, "llama")
    first, second = cached(model, SHORTER), cached(model, THIRD)
    means = {}
    for name, x in cached(model).items():
        if "hook_z" in name:
            both = torch.cat([first[name][0], second[name][0]])
            means[name] = both.mean(0, keepdim=True).expand_as(x[0])[None]
        else:
            means[name] = x
    found = signed(model, "mean", prompts=[SHORTER, THIRD])
    close(found.predicted, taken(model, means))
    assert "2 prompts" in found.source


def test_resampling_draws_one_of_the_prompts(llama: Any) -> None:
    drawn = {seed: signed(llama, "resample", prompts=[CORRUPTED, THIRD], resample_seed=seed) for seed in range(8)}
    known = [signed(llama, other).predicted for other in (CORRUPTED, THIRD)]
    which = {seed: [torch.equal(found.predicted, other) for other in known] for seed, found in drawn.items()}
    assert {tuple(one) for one in which.values()} == {(True, False), (False, True)}
    again = signed(llama, "resample", prompts=[CORRUPTED, THIRD], resample_seed=3)
    assert torch.equal(again.predicted, drawn[3].predicted)
    assert "seed 3" in again.source


def test_denoising_runs_the_corrupted_prompt(llama: Any) -> None:
    denoised = signed(llama, CORRUPTED, direction="denoising")
    reversed_roles = js.patching.components(llama, CORRUPTED, "semantic", source=TOKENS, **HOW)
    assert torch.equal(denoised.predicted, reversed_roles.predicted)
    assert torch.equal(denoised.tokens, CORRUPTED)
    assert denoised.direction == "denoising"
    torch.testing.assert_close(denoised.measure(3).measured, reversed_roles.measure(3).measured, equal_nan=True)


@pytest.mark.parametrize("source", ["mean", "prompt"])
def test_measured_with_a_source(kind: str, family: str, source: str) -> None:
    model, name = double(kind, family), "blocks.1.attn.hook_z"
    own, theirs = cached(model)[name], cached(model, CORRUPTED)[name]
    put = theirs if source == "prompt" else own[:, : EXPLAINED + 1].mean(1, keepdim=True).expand_as(own)
    effects = signed(model, CORRUPTED if source == "prompt" else "mean").measure(12)

    def change(x: torch.Tensor, hook: Any) -> torch.Tensor:
        x = x.clone()
        x.view(*x.shape[:2], 4, -1)[:, :, 2] = put.reshape(*x.shape[:2], 4, -1)[:, :, 2]
        return x

    def logit(hooks: Any) -> float:
        with torch.no_grad():
            logits = model.run_with_hooks(TOKENS[None], fwd_hooks=hooks, return_type="logits")
        return float(logits[0, EXPLAINED, TARGET])

    assert float(effects.measured[1, 2]) == pytest.approx(logit([(name, change)]) - logit([]), rel=1e-5)


def test_edges_take_the_mean_over_prompts_of_one_length(kind: str) -> None:
    model, name = double(kind, "llama"), "blocks.1.attn.hook_pattern"
    found = signed(model, "mean", of="edges", prompts=[CORRUPTED, THIRD]).predicted[1]
    means = (cached(model, CORRUPTED)[name][0] + cached(model, THIRD)[name][0]) / 2
    s = torch.zeros(4, 8, 8, dtype=torch.float64, requires_grad=True)
    hooks = [(name, lambda x, hook: x + s * (means - x.detach()))]
    logits = model.run_with_hooks(TOKENS[None], fwd_hooks=hooks, return_type="logits")
    (expected,) = torch.autograd.grad(logits[0, EXPLAINED, TARGET], s)
    close(found, expected)


@pytest.mark.skipif(models.ANY_KIND != "bridge", reason="TransformerLens has no attribution patching before 3.0")
@pytest.mark.parametrize("of", ["heads", "mlps"])
def test_transformer_lens_attribution_patching_gives_the_same(family: str, of: str) -> None:
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    model = double("bridge", family)
    theirs = attribution_patch(
        model, TOKENS[None], CORRUPTED[None], lambda logits: logits[0, EXPLAINED].log_softmax(-1)[TARGET]
    ).node_scores
    how: dict[str, Any] = dict(of=of, source=CORRUPTED, direction="denoising", positions="each")
    ours = js.patching.components(model, TOKENS, "log_prob", **how, **HOW)
    found = [ours.component(cell) for cell in range(ours.predicted.numel())]
    assert len({one.node() for one in found}) == len(found)
    expected = torch.tensor([theirs[one.node()] for one in found])
    close(torch.tensor([one.effect for one in found]), expected)
    assert js.patching.components(model, TOKENS, refine=0).component(0).node() is None


def test_the_prompt_itself_is_not_resampled(llama: Any) -> None:
    with pytest.raises(js.InputError, match="one of prompts is the explained prompt"):
        signed(llama, "resample", prompts=[CORRUPTED, TOKENS])
