"""Passes that results state are prompts that really went through the model, and are the same wherever they are stated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.faithfulness.methods import Explainer
from jscope_tl.model.view import ModelView
from tests.models import D_MODEL, TOKENS

N = len(TOKENS)
OTHER = TOKENS.clone()
OTHER[2:4] = torch.tensor([77, 350])
LINE = {"path": js.Line(steps=7)}
DOT_FROM_MEAN = {"path": js.Line(steps=7, origin="mean"), "reduction": "dot"}
DOT_FROM_BOS = {"path": js.Line(steps=7, origin="bos"), "reduction": "dot"}


@pytest.fixture
def prompts(llama: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each forward pass had. Hooks would see them too, but one at a time: where they are, nothing is batched."""
    seen, plain = [], type(llama).forward

    def counted(self: Any, tokens: torch.Tensor, *args: Any, **how: Any) -> Any:
        seen.append(len(tokens))
        return plain(self, tokens, *args, **how)

    monkeypatch.setattr(type(llama), "forward", counted)
    return seen


RESULTS: dict[str, tuple[Callable[..., Any], dict[str, Any], int, int]] = {
    "attribute": (js.attribute, {"target": 3}, 1, 1),
    "Fisher": (js.attribute, {"scope": "fisher", "method": "low_rank", "rank": 5}, 1, 5),
    "a line": (js.attribute, {"target": 3, **LINE}, 1 + 7, 7),
    # The mean is read off an embedded prompt, and what the contributions add up to is a run from the origin.
    "a line from the mean": (js.attribute, {"target": 3, **DOT_FROM_MEAN}, 1 + 1 + 7 + 1, 7),
    "a line from BOS": (js.attribute, {"target": 3, **DOT_FROM_BOS}, 1 + 1 + 7 + 1, 7),
    "gradient x input from the mean": (js.attribute, {"path": js.Point(origin="mean"), "reduction": "dot"}, 1 + 1, 1),
    "noise": (js.attribute, {"scope": "entropy", "path": js.Noise(samples=5)}, 1 + 5, 5),
    "pattern": (js.influence_pattern, {"target": 3}, 1, N),
    "pattern along lines": (js.influence_pattern, {"target": 3, **DOT_FROM_MEAN}, 1 + 1 + N * (7 + 1), N * 7),
    "spectrum": (js.spectrum, {}, 1, D_MODEL),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_passes_are_prompts_that_went_through_the_model(llama: Any, prompts: list[int], name: str) -> None:
    function, how, n_forward, n_backward = RESULTS[name]
    provenance = function(llama, TOKENS, **how).provenance
    assert (provenance.n_forward, provenance.n_backward) == (n_forward, n_backward)
    assert sum(prompts) == n_forward
    assert max(prompts) == (how["path"].n_points() or 1 if "path" in how else 1)  # side by side, where there are many


@pytest.mark.parametrize("at", ["resid_pre", ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"]])
@pytest.mark.parametrize("only_top", [None, 2])
def test_costs_of_a_comparison(llama: Any, prompts: list[int], at: Any, only_top: int | None) -> None:
    """The scope needs the base run and the source run; patching the base run, the whole source, and a run for each cell that can
    have an effect, with two unpatched ones beside them; from the first patched block on."""
    result = js.patching.compare(llama, TOKENS, OTHER, target=3, at=at, only_top=only_top)
    costs, asked = result.costs, result.effects.isfinite()
    moved = asked & (result.effects != 0)
    rows = int(moved.sum()) + (int(moved.any(1).sum()) if only_top else 0) + 2
    first_block = 0 if isinstance(at, str) and moved[0].any() else 1
    assert (costs["scope"].n_forward, costs["scope"].n_backward) == (2, 1)
    assert costs["patching"].n_forward == pytest.approx(2 + rows * (1 - first_block / 3))
    assert costs["patching"].n_skipped == int((asked & ~moved).sum())
    assert only_top or costs["patching"].n_skipped > 0
    assert sum(prompts) == costs["scope"].n_forward + 2 + rows


def test_a_cache_saves_the_source_run(llama: Any, prompts: list[int]) -> None:
    with torch.no_grad():
        _, cache = llama.run_with_cache(OTHER[None])
    prompts.clear()
    costs = js.patching.compare(llama, TOKENS, OTHER, target=3, cache=cache).costs
    assert costs["scope"].n_forward == 1
    assert sum(prompts) == costs["scope"].n_forward + costs["patching"].n_forward


@pytest.mark.parametrize("how", [{}, LINE, DOT_FROM_MEAN])
@pytest.mark.parametrize("position", [-1, 4])
def test_costs_of_an_ablation(llama: Any, prompts: list[int], how: dict[str, Any], position: int) -> None:
    """A run of the prompt as it is, and one for every token up to the explained position."""
    js.attribute(llama, TOKENS, target=3, position=position, **how)
    alone = sum(prompts)
    prompts.clear()
    costs = js.patching.ablate(llama, TOKENS, target=3, position=position, **how).costs
    assert costs["scope"].n_forward == alone
    assert (costs["ablation"].n_forward, costs["ablation"].n_backward) == (1 + (N + position) % N + 1, 0)
    assert sum(prompts) == costs["scope"].n_forward + costs["ablation"].n_forward


def test_costs_of_an_ablation_by_the_mean_embedding(llama: Any, prompts: list[int]) -> None:
    costs = js.patching.ablate(llama, TOKENS, target=3, replacement="mean").costs
    assert sum(prompts) == costs["scope"].n_forward + costs["ablation"].n_forward


@pytest.mark.parametrize("how", [LINE, DOT_FROM_MEAN, DOT_FROM_BOS])
def test_costs_agree_wherever_they_are_stated(llama: Any, how: dict[str, Any]) -> None:
    keywords = {"scope": "log_prob", **how}
    (row,) = js.faithfulness.evaluate(llama, [TOKENS], {"mine": keywords}, "aopc")["aopc"].rows
    provenance = js.attribute(llama, TOKENS[:-1], **keywords).provenance
    cost = js.patching.ablate(llama, TOKENS[:-1], **keywords).costs["scope"]
    assert row["passes"] == cost.forward_equivalents == provenance.n_forward + provenance.n_backward > 14


@pytest.mark.parametrize(
    ("name", "n_backward"), [("attention", 0), ("attention_rollout", 0), ("random", 0), ("contrastive", 1)]
)
def test_methods_that_are_no_scopes_say_what_they_run(
    llama: Any, prompts: list[int], name: str, n_backward: int
) -> None:
    explainer = Explainer(ModelView(llama), {name: js.faithfulness.METHODS[name]})
    assert explainer.all(TOKENS, 3)[name].passes == sum(prompts) + n_backward


def test_a_method_of_ones_own_says_what_it_runs_besides_an_attribution(llama: Any, prompts: list[int]) -> None:
    def twice_first(model: Any, tokens: torch.Tensor, target: int) -> Any:
        model(tokens.expand(2, -1))
        return js.attribute(model, tokens, target=target, **LINE)

    def plain(model: Any, tokens: torch.Tensor, target: int) -> torch.Tensor:
        return model(tokens[None], return_type="logits")[0, :, target]

    methods = {"both": js.faithfulness.Method(twice_first, n_forward=2), "plain": js.faithfulness.Method(plain)}
    for name, method in methods.items():
        prompts.clear()
        explained = Explainer(ModelView(llama), {name: method}).all(TOKENS, 3)[name]
        assert explained.passes == sum(prompts) + (7 if name == "both" else 0)
