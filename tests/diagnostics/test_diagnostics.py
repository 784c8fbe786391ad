"""Sinks, linearity and cheap against dear scopes: against naive runs of the HuggingFace model and made-up numbers."""

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import jscope_tl as js
from jscope_tl.diagnostics.linear_range import Linearity
from tests import oracles
from tests.conftest import dense, shared_tiny
from tests.models import TOKENS, Tiny, hf_model, snapshot

linearity = inspect.unwrap(js.diagnostics.linearity)


def hidden_logits(hf: Any, hidden: list[int]) -> Tensor:
    """The next token's logits with some positions hidden from all later ones, by an additive mask before the softmax."""
    n = len(TOKENS)
    mask = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)
    mask[:, hidden] = torch.finfo(torch.float32).min
    mask.fill_diagonal_(0.0)
    with torch.no_grad():
        return hf(TOKENS[None], attention_mask=mask[None, None]).logits[0, -1].double()


@pytest.mark.parametrize("family", ["gpt2", "llama", "pythia"])
def test_hiding_is_a_mask_before_the_softmax(kind: str, family: str) -> None:
    model, hf = shared_tiny(kind, family).model, hf_model(family)
    result = js.attribute(model, TOKENS, "temperature")  # transformers hangs hooks of its own at the first run
    before = snapshot(model)
    row = js.diagnostics.sink(result, model, first=3).rows[0]
    log_p, log_q = (hidden_logits(hf, hidden).log_softmax(-1) for hidden in ([], [0, 1, 2]))
    assert row["first_kl"] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), rel=2e-3)
    target = result.prediction.target.token
    assert row["first_log_prob"] == pytest.approx(float(log_q[target] - log_p[target]), rel=2e-3, abs=1e-5)
    assert row["bos_share"] == pytest.approx(float(result.scores[0] / result.scores.sum()), rel=1e-5)
    assert row["first_share"] == pytest.approx(float(result.scores[:3].sum() / result.scores.sum()), rel=1e-5)
    assert row["even_share"] == 3 / 8
    assert snapshot(model) == before


def test_a_sink_of_many_prompts(pocket: Any) -> None:
    prompts = [prompt.text for prompt in js.pocket_prompts("agreement", 4)]
    results = [r for scope in ("semantic", "entropy") for r in js.attribute_batch(pocket, prompts, scope)]
    found = js.diagnostics.sink(results, pocket)
    frame = found.to_dataframe()
    assert frame.scope.tolist() == ["semantic"] * 4 + ["entropy"] * 4
    assert (frame.first_kl[:4].to_numpy() == frame.first_kl[4:].to_numpy()).all()  # hiding knows nothing of scopes
    assert found.summary().n.tolist() == [4, 4]
    assert "hiding them moves the prediction" in repr(found)
    assert "hiding" not in repr(js.diagnostics.sink(results))


@pytest.mark.parametrize("results", [[], 3, "x", [3]])
def test_a_sink_needs_results(results: Any) -> None:
    with pytest.raises(js.InputError, match="needs attributions"):
        js.diagnostics.sink(results)


def test_a_sink_of_a_layer_map_is_refused(llama: Any) -> None:
    with pytest.raises(js.InputError, match="single hook points"):
        js.diagnostics.sink(js.attribute(llama, TOKENS, "semantic", at="resid_pre"))
    with pytest.raises(js.InputError, match="first is a whole number"):
        js.diagnostics.sink(js.attribute(llama, TOKENS, "semantic"), first=0)


@pytest.mark.parametrize("scope", ["semantic", "log_prob", "temperature", "entropy"])
def test_changes_are_those_of_the_model(tiny: Tiny, scope: str) -> None:
    """The own direction is the row's, predicted changes are its norm times the step, actual ones those of the plain model."""
    o = dense(tiny.family, -1)
    options, formula = oracles.SCOPES[scope]
    found = js.diagnostics.linearity(tiny.model, TOKENS, scope, source=3, n_random=2, sizes=[0.05, 0.5], **options)
    step = found.sizes * found.norm
    assert found.norm == pytest.approx(float(o.x[3].norm()), rel=1e-5)
    assert found.predicted[0].abs().numpy() == pytest.approx((formula(o)[3] * step).expand(2, -1).numpy(), rel=1e-3)
    assert torch.equal(found.predicted[:, 0], -found.predicted[:, 1])
    hf = copy.deepcopy(tiny.hf).double()
    f, _ = oracles.trunk(hf, TOKENS, -1)
    row = {
        "semantic": lambda: o.D[44],
        "log_prob": lambda: o.D[44] - o.p @ o.D,
        "temperature": lambda: o.y / o.y.norm(),
        "entropy": lambda: -(o.p * (o.p.log() - (o.p * o.p.log()).sum())) @ o.D,
    }[scope]() @ o.J[:, 3]

    def quantity(x: Tensor) -> Tensor:
        y = f(x)
        log_p = oracles.logits_of(hf, y).log_softmax(-1)
        return {
            "semantic": oracles.logits_of(hf, y)[44], "log_prob": log_p[44], "temperature": y.norm(),
            "entropy": -(log_p.exp() * log_p).sum(),
        }[scope]  # fmt: skip

    for sign, s in ((1, 0), (-1, 1)):
        for i, size in enumerate(step):
            moved = o.x.clone()
            moved[3] += sign * size * row / row.norm() * torch.sign(found.predicted[0, 0, i])
            with torch.no_grad():
                change = quantity(moved) - quantity(o.x)
            assert float(found.actual[0, s, i]) == pytest.approx(float(change), rel=5e-3, abs=2e-5)


@pytest.mark.parametrize("scope", ["log_prob", "fisher"])
def test_errors_fall_with_the_step(kind: str, scope: str) -> None:
    """To leading order: half the step, half the relative error."""
    model = shared_tiny(kind, "gpt2", torch.float64).model
    found = js.diagnostics.linearity(model, TOKENS, scope, sizes=[0.002, 0.004, 0.008])
    for error in (found.own_error, found.random_error):
        # Steps both ways cancel the odd terms of Fisher's error only in the mean, not in its root mean square.
        assert (error[1:] / error[:-1]).tolist() == pytest.approx([2.0, 2.0], rel=0.15)


def made(own: list[float], sizes: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)) -> Linearity:
    predicted = torch.tensor(sizes, dtype=torch.float64).expand(2, 2, -1)
    return Linearity(
        torch.tensor(sizes, dtype=torch.float64), predicted, predicted * (1 + torch.tensor(own, dtype=torch.float64)),
        "logit", "made", "x", 0, 1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "radius"),
    [
        ([0.01, 0.05, 0.2, 0.5], 0.2 * 2**0.5),
        ([0.5, 0.6, 0.7, 0.8], 0.0),
        ([0.01, 0.01, 0.02, 0.03], float("inf")),
        ([0.3, 0.05, 0.2, 0.5], 0.2 * 2**0.5),  # the first is rounding
    ],
)
def test_radius(errors: list[float], radius: float) -> None:
    assert made(errors).own_radius == pytest.approx(radius)


def test_one_at_a_time_where_hooks_are_active(llama: Any) -> None:
    seen: list[int] = []
    watch = [("hook_embed", lambda activation, hook: seen.append(len(activation)))]
    alone = js.diagnostics.linearity(llama, TOKENS, "semantic", sizes=[0.1, 0.2], n_random=1, fwd_hooks=watch)
    together = js.diagnostics.linearity(llama, TOKENS, "semantic", sizes=[0.1, 0.2], n_random=1)
    assert set(seen) == {1}
    torch.testing.assert_close(alone.actual, together.actual, rtol=1e-4, atol=1e-5)


def test_what_was_moved(llama: Any) -> None:
    before = snapshot(llama)
    found = js.diagnostics.linearity(llama, TOKENS, "semantic", target=44)
    scores = oracles.semantic(dense("llama", -1), 44)
    assert found.source == 1 + int(scores[1:].argmax())  # BOS is left out
    assert "of the vector's norm" in repr(found)
    assert len(js.views.linearity(found).axes) == 2
    assert snapshot(llama) == before


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"sizes": [0.2, 0.1]}, "increasing numbers"),
        ({"sizes": [0.0, 0.1]}, "increasing numbers"),
        ({"sizes": None}, "increasing numbers"),
        ({"sizes": ["a"]}, "increasing numbers"),
        ({"seed": 2**80}, "seed is a whole number"),
        ({"n_random": 0}, "n_random is a whole number"),
        ({"source": 7, "position": 4}, "source 7 is after"),
        ({"source": 99}, "outside the prompt"),
        ({"at": "resid_pre"}, "One hook point"),
    ],
)
def test_wrong_input(llama: Any, how: dict[str, Any], says: str) -> None:
    with pytest.raises(js.InputError, match=says):
        linearity(llama, TOKENS, "semantic", **how)


def test_scopes_side_by_side(llama: Any) -> None:
    found = js.diagnostics.compare_scopes(llama, [TOKENS, TOKENS[:5]], "semantic", "semantic", target=44, repeats=2)
    assert [row["n_tokens"] for row in found.rows] == [8, 5]
    assert [row["spearman"] for row in found.rows] == pytest.approx([1.0, 1.0])
    assert all(row["top_10"] == 1 and row["time_ratio"] > 0 for row in found.to_dataframe().to_dict("records"))
    assert "8 tokens" in repr(found)
    with pytest.raises(js.InputError, match="one or more prompts"):
        js.diagnostics.compare_scopes(llama, "one")
    with pytest.raises(js.InputError, match="this prompt has 2"):
        js.diagnostics.compare_scopes(llama, [TOKENS[:3]])
