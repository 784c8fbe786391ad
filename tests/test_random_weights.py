"""Scores under shuffled weights: what does not look at the model stays, and the model is as it was."""

from typing import Any

import numpy as np
import pytest
import torch

import jscope_tl as js
from jscope_tl.faithfulness.random_weights import _shuffled
from jscope_tl.model.view import ModelView

PROMPTS = js.pocket_prompts("assistant", 4)


def bits(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_what_looks_at_the_model_changes_and_what_does_not_stays(pocket: Any) -> None:
    before = bits(pocket)
    found = js.faithfulness.weight_dependence(pocket, PROMPTS, ["log_prob", "attention", "random"], progress=False)

    assert found.spearman.shape == (3, 4)
    assert found.mean("random").mean == pytest.approx(1)
    assert np.abs(found.spearman[:2]).max() < 0.95
    assert "log_prob" in repr(found)
    assert all(torch.equal(a, b) for a, b in zip(bits(pocket), before, strict=True))


def test_every_matrix_keeps_its_numbers_in_another_order(pocket: Any) -> None:
    before = bits(pocket)
    with _shuffled(ModelView(pocket), seed=3):
        within = bits(pocket)
    with _shuffled(ModelView(pocket), seed=4):
        other = bits(pocket)
    for old, new, another in zip(before, within, other, strict=True):
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)
        stays = old.ndim < 2 or bool((old == old.flatten()[0]).all())  # a bias by head of zeros
        assert torch.equal(old, new) == stays
        assert torch.equal(new, another) == stays


def test_a_failure_puts_the_weights_back(pocket: Any) -> None:
    before, calls = bits(pocket), []

    def fails_later(model: Any, tokens: torch.Tensor, target: int) -> torch.Tensor:
        calls.append(1)
        if len(calls) > len(PROMPTS):
            raise RuntimeError("stopped")
        return torch.ones(len(tokens))

    with pytest.raises(RuntimeError, match="stopped"):
        js.faithfulness.weight_dependence(
            pocket, PROMPTS, {"mine": js.faithfulness.Method(fails_later)}, progress=False
        )
    assert all(torch.equal(a, b) for a, b in zip(bits(pocket), before, strict=True))


def test_methods_that_need_an_alternative_get_it_or_are_refused(pocket: Any) -> None:
    seen = []

    def contrast(model: Any, tokens: torch.Tensor, target: int, alternative: int) -> torch.Tensor:
        seen.append(alternative)
        return torch.arange(float(len(tokens)))

    methods = {"mine": js.faithfulness.Method(contrast, needs_alternative=True), "random": "random_direction"}
    with pytest.raises(js.InputError, match="'mine' contrasts the target with a known alternative"):
        js.faithfulness.weight_dependence(pocket, ["the keys to the cabinet"], methods, progress=False)
    truth = js.ground_truth(pocket, "pocket assistant", n=1, progress=False)
    js.faithfulness.weight_dependence(pocket, truth, methods, progress=False)
    assert len(seen) == 2
    assert None not in seen
