"""The matrix of all predictions: row by row what attribute gives, from one forward pass."""

import dataclasses
import inspect
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.engine.forward import run
from jscope_tl.engine.one_position import VJP
from jscope_tl.engine.run import Settings
from jscope_tl.model.view import ModelView
from tests import models, oracles
from tests.models import TOKENS, Tiny, snapshot

NEED = {"contrastive": {"target": 5, "baseline": 9}, "fisher": {"method": "exact"}}
influence_pattern = inspect.unwrap(js.influence_pattern)


@pytest.mark.parametrize("scope", oracles.SCOPES)
def test_rows_are_what_attribute_gives(tiny: Tiny, scope: str) -> None:
    options = NEED.get(scope, {})
    pattern = js.influence_pattern(tiny.model, TOKENS, scope, **options)
    assert pattern.scores.shape == (len(TOKENS), len(TOKENS))
    for dest in (0, 3, len(TOKENS) - 1):
        row = js.attribute(tiny.model, TOKENS, scope, position=dest, **options)
        torch.testing.assert_close(pattern.scores[dest], row.scores, rtol=2e-4, atol=2e-5 * float(row.scores.max()))
        assert pattern.targets[dest].token == row.prediction.target.token
        assert pattern.targets[dest].probability == pytest.approx(row.prediction.target.probability, rel=1e-5)
        assert pattern.unit == row.unit


@pytest.mark.parametrize("scope", ["semantic", "fisher"])
@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_some_positions_in_any_order_and_chunks(llama: Any, scope: str, chunk_size: int | None) -> None:
    whole = js.influence_pattern(llama, TOKENS, scope, **NEED.get(scope, {}))
    some = js.influence_pattern(llama, TOKENS, scope, [-1, 2, 4], chunk_size=chunk_size, **NEED.get(scope, {}))
    assert some.positions == (7, 2, 4)
    assert some.position == 7
    torch.testing.assert_close(some.scores, whole.scores[[7, 2, 4]], rtol=1e-4, atol=1e-5)


def test_causal(tiny: Tiny) -> None:
    scores = js.influence_pattern(tiny.model, TOKENS, "log_prob").scores
    assert (scores.triu(1) == 0).all()
    assert (scores.diagonal() > 0).all()


@pytest.mark.parametrize("scope", ["temperature", "fisher"])
def test_one_forward_pass(llama: Any, scope: str) -> None:
    calls = []
    handle = llama.unembed.register_forward_hook(lambda *_: calls.append(1))
    pattern = js.influence_pattern(llama, TOKENS, scope, method="low_rank") if scope == "fisher" else (
        js.influence_pattern(llama, TOKENS, scope)
    )  # fmt: skip
    handle.remove()
    assert len(calls) == pattern.provenance.n_forward == 1
    assert pattern.provenance.n_backward == len(TOKENS)


def test_estimates_keep_their_errors(llama: Any) -> None:
    pattern = js.influence_pattern(llama, TOKENS, "fisher", [3, 7], method="sampled", rank=2, probes=4, seed=1)
    row = js.attribute(llama, TOKENS, "fisher", position=3, method="sampled", rank=2, probes=4, seed=1)
    assert pattern.stderr is not None
    assert row.stderr is not None
    torch.testing.assert_close(pattern.stderr[0], row.stderr, rtol=1e-4, atol=1e-6)
    assert pattern.provenance.seed == 1


def test_hooks_behind_the_unembedding(llama: Any) -> None:
    def halve(logits: torch.Tensor, hook: Any) -> torch.Tensor:
        return logits * 0.5

    if "unembed.hook_out" not in llama.hook_dict:
        pytest.skip("TransformerLens 2 has no hook points at the unembedding")
    plain = js.influence_pattern(llama, TOKENS, "semantic", target=3)
    halved = js.influence_pattern(llama, TOKENS, "semantic", target=3, fwd_hooks=[("unembed.hook_out", halve)])
    torch.testing.assert_close(halved.scores, 0.5 * plain.scores, rtol=1e-5, atol=1e-6)


def test_everything_is_left_as_it_was(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    js.influence_pattern(model, TOKENS, "semantic")  # bridges install hooks of their own at the first pass
    before = snapshot(model)
    js.influence_pattern(model, TOKENS, "fisher", method="sampled", probes=2, rank=1)
    with pytest.raises(js.InputError):
        js.influence_pattern(model, TOKENS, "semantic", target=10**6)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("positions", "cure"),
    [([], "one or more"), ([1, 1], "different"), ([1, -7], "different"), ([99], "outside the prompt"), ("12", "a list"),
     (3, "a list"), ([1.5], "whole number")],
)  # fmt: skip
def test_bad_positions(llama: Any, positions: Any, cure: str) -> None:
    with pytest.raises(js.InputError, match=cure):
        influence_pattern(llama, TOKENS, "semantic", positions)


def test_progress(llama: Any, capsys: pytest.CaptureFixture[str]) -> None:
    js.influence_pattern(llama, TOKENS, "semantic", progress=False)
    assert not capsys.readouterr().err
    for scope, words in (("semantic", "backward passes"), ("fisher", "positions")):
        js.influence_pattern(llama, TOKENS, scope, progress=True)
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_pre", "blocks.0.hook_resid_post"])
def test_at_another_hook_point(llama: Any, name: str) -> None:
    pattern = js.influence_pattern(llama, TOKENS, "entropy", [3, 7], at=name)
    row = js.attribute(llama, TOKENS, "entropy", position=3, at=name)
    torch.testing.assert_close(pattern.scores[0], row.scores, rtol=1e-4, atol=1e-6)
    assert pattern.provenance.hook_point == name


def test_scopes_of_several_rows(llama: Any) -> None:
    """As many rows as the position is odd or even: what belongs to which position is not a matter of counting."""

    def some_rows(state: js.State) -> torch.Tensor:
        return torch.eye(len(state.y))[: 2 + state.position % 2]

    pattern = js.influence_pattern(llama, TOKENS, some_rows)
    for position in (2, 3):
        row = js.attribute(llama, TOKENS, some_rows, position=position)
        torch.testing.assert_close(pattern.scores[position], row.scores, rtol=1e-4, atol=1e-5)


def test_a_score_may_take_its_rows_in_several_calls(llama: Any) -> None:
    class Twice(js.Scope):
        def cotangents(self, state: js.State) -> torch.Tensor:
            return torch.eye(len(state.y))[:2]

        def score(self, state: js.State, vjp: VJP) -> js.Score:
            rows = self.cotangents(state)
            first = vjp.squared_norms(rows[:1], retain_graph=True)
            return js.Score(first.sum(0) + vjp.squared_norms(rows[1:]).sum(0))

    plain = js.attribute(llama, TOKENS, lambda state: torch.eye(len(state.y))[:2])
    torch.testing.assert_close(js.attribute(llama, TOKENS, Twice()).scores, plain.scores**2, rtol=1e-4, atol=1e-6)
    pattern = js.influence_pattern(llama, TOKENS, Twice(), [7, 2])
    torch.testing.assert_close(pattern.scores[0], plain.scores**2, rtol=1e-4, atol=1e-6)


def test_warnings_and_choices_are_kept(llama: Any, pocket: Any) -> None:
    assert any("more than one BOS" in w for w in js.influence_pattern(pocket, [0, 0, 17, 18]).warnings)
    pattern = js.influence_pattern(llama, TOKENS, "fisher", [3, 7], method="sampled", rank=2, probes=4)
    assert [choice["probes"] for choice in pattern.options["resolved"]] == [4, 4]


def test_certain_predictions_are_named(llama: Any) -> None:
    def nothing(state: js.State) -> torch.Tensor:
        return torch.zeros(len(state.y)) if state.position == 2 else torch.ones(len(state.y))

    assert any("at positions [2]" in w for w in js.influence_pattern(llama, TOKENS, nothing).warnings)


def test_errors_name_the_position(llama: Any) -> None:
    baseline = int(TOKENS[3])  # the token that position 2 explains by default
    with pytest.raises(js.InputError, match=r"At position 2: target and baseline.*pass a target"):
        js.influence_pattern(llama, TOKENS, "contrastive", baseline=baseline)


def test_products_stand_for_backward_passes_only_where_they_may(llama: Any) -> None:
    """With several positions the unembedding is applied by hand, unless what follows it mixes logits."""
    settings = Settings(ModelView(llama), ["hook_embed"])
    with run(settings, TOKENS, [3, 7]) as forward:
        assert forward.state(0)._by_product
        direction = torch.randn(models.D_VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        by_autograd = forward._state(1, False).pull_logits(direction)
        torch.testing.assert_close(forward.state(1).pull_logits(direction), by_autograd, rtol=1e-4, atol=1e-5)
    if "unembed.hook_out" in llama.hook_dict:
        mixes = [("unembed.hook_out", lambda z, hook: z.flip(-1))]
        with run(dataclasses.replace(settings, fwd_hooks=mixes), TOKENS, [3, 7]) as forward:
            assert not forward.state(0)._by_product
