"""Which token an explanation is about: the one that is asked for, else the prompt's own next one, else the most probable."""

from typing import Any

import pytest
import torch

import jscope_tl as js
from tests import oracles
from tests.models import TOKENS

OTHER = TOKENS.clone()
OTHER[2:4] = torch.tensor([77, 350])
POINT = "blocks.1.hook_resid_pre"


def logit(state: js.State, target: Any = None) -> torch.Tensor:
    """As the semantic scope."""
    token = state.to_id(target)
    return state.gradient(lambda logits: logits[token])


def of_44(state: js.State, target: int = 44) -> torch.Tensor:
    return logit(state, target)


def of_two(state: js.State, target: tuple[int, ...] = (3, 44)) -> torch.Tensor:
    """Its target is no single token."""
    return torch.stack([logit(state, token) for token in target])


def without(state: js.State) -> torch.Tensor:
    return state.y.detach()


def most_probable(model: Any, tokens: torch.Tensor) -> int:
    with torch.no_grad():
        return int(model(tokens[None], return_type="logits")[0, -1].argmax())


@pytest.mark.parametrize("scope", [*oracles.SCOPES, logit, of_two, without])
def test_without_a_target_it_is_the_next_token_or_the_most_probable(llama: Any, scope: Any) -> None:
    options = dict(oracles.SCOPES[scope][0]) if scope in oracles.SCOPES else {}
    options.pop("target", None)
    inside, last = (js.attribute(llama, TOKENS, scope, position=p, **options).prediction.target for p in (3, -1))
    assert inside.token == int(TOKENS[4])
    assert last.token == most_probable(llama, TOKENS)
    pattern = js.influence_pattern(llama, TOKENS, scope, [3, 7], **options)
    assert [target.token for target in pattern.targets] == [inside.token, last.token]


@pytest.mark.parametrize(
    ("scope", "options"), [(of_44, {}), (logit, {"target": 44}), (js.SemanticScope(44), {}), ("own", {"target": 44})]
)
def test_a_target_is_what_everything_is_about(llama: Any, scope: Any, options: dict[str, Any]) -> None:
    """Functions are held against the scope of the package, whose effects are tested against loops."""
    js.register_scope("own")(logit)
    for position in (3, -1):
        result = js.attribute(llama, TOKENS, scope, position=position, **options)
        assert result.prediction.target.token == 44
    pattern = js.influence_pattern(llama, TOKENS, scope, **options)
    assert {target.token for target in pattern.targets} == {44}
    torch.testing.assert_close(pattern.scores, js.influence_pattern(llama, TOKENS, target=44).scores)
    found, known = js.patching.ablate(llama, TOKENS, scope, **options), js.patching.ablate(llama, TOKENS, target=44)
    assert torch.equal(found.logit, known.logit)
    assert torch.equal(found.log_prob, known.log_prob)
    assert not torch.allclose(found.logit, js.patching.ablate(llama, TOKENS, without).logit)
    runs = js.patching.side_by_side(llama, TOKENS, OTHER, POINT, [2], scope, **options)
    assert [run.prediction.target.token for run in (runs.clean, runs.corrupted, runs.patched)] == [44] * 3
    assert js.patching.compare(llama, TOKENS, OTHER, scope, **options).scope.prediction.target.token == 44


def test_a_target_by_name(pocket: Any) -> None:
    prompt, token = "the keys to the cabinet", pocket.to_single_token(" is")
    found = js.attribute(pocket, prompt, logit, target=" is")
    assert found.prediction.target.token == token
    torch.testing.assert_close(found.scores, js.attribute(pocket, prompt, "semantic", target=token).scores)


@pytest.mark.parametrize("scope", ["semantic", logit])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_three_runs_explain_the_token_of_the_clean_one(llama: Any, scope: Any, direction: str) -> None:
    target = most_probable(llama, TOKENS)
    assert target != most_probable(llama, OTHER)
    runs = js.patching.side_by_side(llama, TOKENS, OTHER, POINT, [2], scope, direction=direction)
    assert [run.prediction.target.token for run in (runs.clean, runs.corrupted, runs.patched)] == [target] * 3
    torch.testing.assert_close(runs.corrupted.scores, js.attribute(llama, OTHER, target=target).scores)


def test_three_runs_of_a_scope_that_explains_no_token_have_each_its_own(llama: Any) -> None:
    runs = js.patching.side_by_side(llama, TOKENS, OTHER, POINT, [2], "temperature")
    own = [most_probable(llama, tokens) for tokens in (TOKENS, OTHER)]
    assert [run.prediction.target.token for run in (runs.clean, runs.corrupted)] == own


def test_effects_of_a_scope_that_explains_no_token_are_those_of_the_next_one(llama: Any) -> None:
    for position, target in ((3, int(TOKENS[4])), (-1, most_probable(llama, TOKENS))):
        found = js.patching.ablate(llama, TOKENS, "temperature", position=position)
        known = js.patching.ablate(llama, TOKENS, "semantic", position=position, target=target)
        assert torch.equal(found.logit, known.logit)
        assert torch.equal(found.log_prob, known.log_prob)
