"""Every registered scope against its naive restatement, and what all results have in common."""

import pytest
import torch

import jscope_tl as js
from tests import models, oracles
from tests.conftest import dense, shared_tiny
from tests.models import TOKENS

TOLERANCE = 1e-4
"""Relative, for float32 models against the float64 oracle; what is seen is below 3e-6."""
BF16_TOLERANCE = 0.1
"""Relative to the largest score: bf16 keeps 8 bits, and every step of three layers rounds; what is seen is below 0.06."""


def test_every_scope_has_an_oracle() -> None:
    assert {name for name in js.available_scopes() if js.scopes.registry.scope_entry(name).builtin} == set(
        oracles.SCOPES
    )


@pytest.mark.parametrize("scope", oracles.SCOPES)
@pytest.mark.parametrize("position", [-1, 4])
def test_agrees_with_the_dense_oracle(tiny: models.Tiny, scope: str, position: int) -> None:
    options, formula = oracles.SCOPES[scope]
    result = js.attribute(tiny.model, TOKENS, scope, position=position, **options)
    expected = formula(dense(tiny.family, position))
    assert oracles.relative_difference(result.scores, expected) < TOLERANCE


@pytest.mark.parametrize("scope", oracles.SCOPES)
def test_bf16_stays_near_the_oracle(kind: str, family: str, scope: str) -> None:
    options, formula = oracles.SCOPES[scope]
    model = shared_tiny(kind, family, torch.bfloat16).model
    result = js.attribute(model, TOKENS, scope, **options)
    assert result.provenance.dtype == "bfloat16"
    assert result.scores.dtype == torch.float32
    assert oracles.relative_difference(result.scores, formula(dense(family, -1))) < BF16_TOLERANCE


@pytest.mark.parametrize("scope", oracles.SCOPES)
def test_positions_after_the_explained_one_score_exactly_zero(llama: object, scope: str) -> None:
    result = js.attribute(llama, TOKENS, scope, position=3, **oracles.SCOPES[scope][0])
    assert (result.scores[4:] == 0).all()
    assert (result.scores[:4] > 0).all()


@pytest.mark.parametrize("scope", oracles.SCOPES)
def test_later_tokens_change_nothing(llama: object, scope: str) -> None:
    options = oracles.SCOPES[scope][0]
    long = js.attribute(llama, TOKENS, scope, position=4, **options)
    short = js.attribute(llama, TOKENS[:5], scope, **options)
    torch.testing.assert_close(long.scores[:5], short.scores, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scope", oracles.SCOPES)
def test_chunks_change_nothing(llama: object, scope: str) -> None:
    options = oracles.SCOPES[scope][0]
    whole = js.attribute(llama, TOKENS, scope, chunk_size=64, **options)
    single = js.attribute(llama, TOKENS, scope, chunk_size=1, **options)
    torch.testing.assert_close(whole.scores, single.scores, rtol=1e-5, atol=1e-7)


def test_result_says_what_was_done(llama: object) -> None:
    result = js.attribute(llama, TOKENS, "semantic", position=-2)
    assert result.position == 6
    assert result.tokens.tolist() == TOKENS.tolist()
    assert len(result.str_tokens) == len(TOKENS)
    assert result.scores.dtype == torch.float32
    assert result.scores.device.type == "cpu"
    assert result.stderr is None
    assert result.unit == "logit per unit of x"
    assert result.prediction.target.token == int(TOKENS[7])  # the prompt's own next token
    assert result.provenance.n_backward == 1
    assert result.provenance.hook_point == "hook_embed"
    assert set(result.provenance.versions) == {"jscope_tl", "transformer_lens", "torch"}
    assert sum(c.probability for c in result.prediction.top) <= 1


def test_without_a_next_token_the_target_is_the_arg_max(llama: object) -> None:
    result = js.attribute(llama, TOKENS, "semantic")
    assert result.prediction.target == result.prediction.top[0]
    assert result.prediction.target_rank == 1
    assert result.options["resolved"]["target"] == result.prediction.target.str_token


def test_prompt_forms_agree(llama: object) -> None:
    results = [js.attribute(llama, p, "entropy").scores for p in (TOKENS, TOKENS[None], TOKENS.tolist(), TOKENS.int())]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_prediction_is_the_models_own(tiny: models.Tiny) -> None:
    result = js.attribute(tiny.model, TOKENS, "entropy")
    probabilities = tiny.hf(TOKENS[None]).logits[0, -1].detach().softmax(-1)  # soft-cap included
    for candidate in result.prediction.top:
        assert candidate.probability == pytest.approx(float(probabilities[candidate.token]), rel=1e-4)


@pytest.mark.parametrize("at", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"])
def test_attaches_to_the_residual_stream(tiny: models.Tiny, at: str) -> None:
    result = js.attribute(tiny.model, TOKENS, "semantic", target=44, at=at)
    assert result.provenance.hook_point == at
    # One more unit along the gradient, small enough to be linear, moves the logit by the score.
    rows = js.jacobian(tiny.model, TOKENS, at=at)
    expected = oracles.norm_score(rows, dense(tiny.family, -1).D[44].to(rows))
    torch.testing.assert_close(result.scores, expected, rtol=1e-4, atol=1e-5)


def test_first_residual_is_the_embedding_where_nothing_is_added(kind: str) -> None:
    model = shared_tiny(kind, "llama").model  # rotary positions: nothing is added to the embedding
    embed, resid = (js.attribute(model, TOKENS, "fisher", at=at) for at in ("hook_embed", "blocks.0.hook_resid_pre"))
    torch.testing.assert_close(embed.scores, resid.scores)


def test_a_bare_function_is_a_scope(llama: object) -> None:
    def leader(state: js.State, power: float = 1.0) -> torch.Tensor:
        return state.gradient(lambda logits: logits.max() ** power)

    result = js.attribute(llama, TOKENS, leader)
    expected = js.attribute(llama, TOKENS, "semantic")
    assert result.scope == "leader"
    torch.testing.assert_close(result.scores, expected.scores)
    assert js.attribute(llama, TOKENS, leader, power=1.0).options == {"power": 1.0}


def test_what_a_function_returns_is_checked(llama: object) -> None:
    with pytest.raises(js.InputError, match=r"\[k, d_model\]"):
        js.attribute(llama, TOKENS, lambda state: torch.ones(3))
    with pytest.raises(js.InputError, match="are not finite"):
        js.attribute(llama, TOKENS, lambda state: state.y.detach() * float("nan"))
    with pytest.raises(js.InputError, match="one number computed from the logits"):
        js.attribute(llama, TOKENS, lambda state: state.gradient(lambda logits: logits))
    with pytest.raises(js.InputError, match="one number computed from the logits"):
        js.attribute(llama, TOKENS, lambda state: state.gradient(lambda logits: 3.0))
