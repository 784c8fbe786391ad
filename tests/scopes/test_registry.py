"""Names of scopes, and scopes of one's own."""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.scopes import registry
from tests.models import TOKENS


def test_names() -> None:
    assert js.available_scopes() == [
        "alternatives", "contrastive", "entropy", "fisher", "fisher_input", "log_prob", "logit_temperature", "random_direction", "semantic", "spectral", "temperature"
    ]  # fmt: skip


def test_lookup_makes_the_scope() -> None:
    assert js.get_scope("fisher")(rank=3) == js.FisherScope(rank=3)
    assert js.get_scope("semantic")(target=" are") == js.SemanticScope(target=" are")


@pytest.mark.parametrize(
    ("given", "meant"), [("fischer", "fisher"), ("semantics", "semantic"), ("logprob", "log_prob")]
)
def test_unknown_names_get_the_nearest(llama: Any, given: str, meant: str) -> None:
    with pytest.raises(js.InputError, match=f"no scope '{given}'. Did you mean '{meant}'"):
        js.get_scope(given)
    with pytest.raises(js.InputError, match="Did you mean"):
        js.attribute(llama, TOKENS, given)


def test_unknown_options_get_the_nearest(llama: Any) -> None:
    with pytest.raises(js.InputError, match="'semantic' has no option 'targt'. Did you mean 'target'"):
        js.attribute(llama, TOKENS, "semantic", targt=3)
    with pytest.raises(js.InputError, match="It takes no options"):
        js.attribute(llama, TOKENS, "entropy", target=3)


def test_options_beside_an_object_are_refused(llama: Any) -> None:
    with pytest.raises(js.InputError, match="got an object and"):
        js.attribute(llama, TOKENS, js.FisherScope(), rank=3)


@pytest.mark.parametrize("scope", [3, None, ["fisher"], dict])
def test_other_things_are_no_scopes(llama: Any, scope: Any) -> None:
    with pytest.raises(js.InputError, match="registered name, a scope object or a function"):
        inspect.unwrap(js.attribute)(llama, TOKENS, scope)


def test_a_function_by_name(llama: Any) -> None:
    @js.register_scope("margin", unit="logit per unit of x")
    def margin(state: js.State, rank: int = 2) -> torch.Tensor:
        """Best logit against the runner-up."""
        return state.gradient(lambda logits: logits.max() - logits.topk(rank).values[-1])

    result = js.attribute(llama, TOKENS, "margin", rank=3)
    assert (result.scope, result.unit, result.options) == ("margin", "logit per unit of x", {"rank": 3})
    assert registry.scope_entry("margin").summary == "Best logit against the runner-up."
    third = result.prediction.top[2].token
    expected = js.attribute(llama, TOKENS, "contrastive", baseline=third)
    torch.testing.assert_close(result.scores, expected.scores)
    with pytest.raises(js.InputError, match="no option 'rnk'. Did you mean 'rank'"):
        js.attribute(llama, TOKENS, "margin", rnk=3)


def test_a_function_under_its_own_name(llama: Any) -> None:
    @js.register_scope
    def plain(state: js.State) -> torch.Tensor:
        return torch.eye(len(state.y))[:2]

    J = js.jacobian(llama, TOKENS, torch.eye(32)[:2])
    torch.testing.assert_close(js.attribute(llama, TOKENS, "plain").scores, J.square().sum((0, 2)).sqrt())


def test_a_class(llama: Any) -> None:
    @js.register_scope("scaled")
    @dataclass(frozen=True)
    class Scaled(js.Scope):
        """Twice something."""

        by: float = 2.0
        unit = "twice |y| per unit of x"

        def cotangents(self, state: js.State) -> torch.Tensor:
            return self.by * state.y.detach().unsqueeze(0) / state.y.detach().norm()

    twice, once = js.attribute(llama, TOKENS, "scaled"), js.attribute(llama, TOKENS, "temperature")
    torch.testing.assert_close(twice.scores, 2 * once.scores)
    assert twice.options == {"by": 2.0}
    assert js.attribute(llama, TOKENS, Scaled).unit == "twice |y| per unit of x"


def test_ones_own_can_be_replaced_and_the_packages_cannot() -> None:
    def one(state: js.State) -> torch.Tensor:
        return state.y

    js.register_scope("mine")(one)
    js.register_scope("mine")(one)
    with pytest.raises(js.InputError, match="is a scope of jscope_tl"):
        js.register_scope("fisher")(one)
    with pytest.raises(js.InputError, match="neither"):
        js.register_scope("thing")(3)
    with pytest.raises(js.InputError, match="'explain' is .*register yours under another name"):
        js.register_scope("explain")(lambda state: state.y)


def test_a_subclass_goes_by_its_own_name(llama: Any) -> None:
    class Mine(js.SemanticScope):
        """Not registered."""

    assert js.attribute(llama, TOKENS, Mine()).scope == "Mine"
    assert js.attribute(llama, TOKENS, Mine, target=44).options["target"] == 44
    with pytest.raises(js.InputError, match="'Mine' has no option 'targt'. Did you mean 'target'"):
        js.attribute(llama, TOKENS, Mine, targt=44)


def test_cotangents_of_classes_are_checked_too(llama: Any) -> None:
    class Flat(js.Scope):
        def cotangents(self, state: js.State) -> Any:
            return state.y.detach()

    class Wrong(js.Scope):
        def cotangents(self, state: js.State) -> Any:
            return torch.ones(3, 3)

    js.register_scope("flat")(Flat)  # no dataclass, hence no options
    assert js.attribute(llama, TOKENS, "flat").scores.all()
    with pytest.raises(js.InputError, match="Wrong returned"):
        js.attribute(llama, TOKENS, Wrong())


def test_functions_of_many_kinds(llama: Any) -> None:
    def weighted(state: js.State, *, weight: float) -> torch.Tensor:
        return weight * state.y.detach()

    js.register_scope("double")(functools.partial(weighted, weight=2.0))
    js.register_scope("any")(lambda state, **options: options["by"] * state.y.detach())
    js.register_scope("weighted")(weighted)
    once = js.attribute(llama, TOKENS, "weighted", weight=1.0).scores
    for name, options in (("double", {}), ("any", {"by": 2.0})):
        torch.testing.assert_close(js.attribute(llama, TOKENS, name, **options).scores, 2 * once)
    with pytest.raises(js.InputError, match="missing a required"):
        js.attribute(llama, TOKENS, "weighted")
    with pytest.raises(js.InputError, match="unexpected keyword"):
        js.attribute(llama, TOKENS, weighted, weight=1.0, wait=2.0)


def test_names_that_cannot_be_registered() -> None:
    with pytest.raises(js.InputError, match="needs a name"):
        js.register_scope("")(lambda state: state.y)
    with pytest.raises(js.InputError, match="keyword of attribute"):
        js.register_scope("mine")(lambda state, position: state.y)
    for name in (3, ["a"], None):
        with pytest.raises(js.InputError, match="There is no scope"):
            inspect.unwrap(js.get_scope)(name)


def test_a_score_of_a_mixin_is_the_same_in_batches_and_patterns(pocket: Any) -> None:
    """A scope is additive only where its score is that of the base."""

    class Doubled:
        def score(self, state: js.State, vjp: Any) -> js.Score:
            return js.Score(2 * vjp.squared_norms(self.rows(state)).sum(0))

    class Mixed(Doubled, js.Scope):
        def cotangents(self, state: js.State) -> Any:
            return state.y.detach()

    assert not Mixed.additive
    prompt = "the keys to the cabinet"
    alone = js.attribute(pocket, prompt, Mixed()).scores
    batched, _ = js.attribute_batch(pocket, [prompt, "the key"], Mixed())
    assert torch.allclose(batched.scores, alone)
    assert torch.allclose(js.influence_pattern(pocket, prompt, Mixed(), [-1]).scores[0], alone)


def test_a_scores_shape_is_checked(pocket: Any) -> None:
    class Short(js.TemperatureScope):
        def score(self, state: js.State, vjp: Any) -> js.Score:
            return js.Score(torch.ones(2))

    class Bare(js.TemperatureScope):
        def score(self, state: js.State, vjp: Any) -> Any:
            return torch.ones(6)

    for scope, given in ((Short(), r"\[2\]"), (Bare(), "Tensor")):
        with pytest.raises(js.InputError, match=f"returned {given}; it must return a js.Score"):
            js.attribute(pocket, "the keys to the cabinet", scope)


def test_functions_may_name_their_options_as_they_like(pocket: Any) -> None:
    @js.register_scope("odd")
    def odd(state: js.State, name: float = 1.0, unit: float = 1.0, function: float = 1.0, entry: float = 1.0) -> Any:
        return state.y.detach() * name * unit * function * entry

    plain, doubled = (
        js.attribute(pocket, "the keys", "odd", **how).scores for how in ({}, {"name": 2.0, "entry": 2.0})
    )
    assert torch.allclose(4 * plain, doubled)


@pytest.mark.parametrize("scope", [js.Scope, js.QuantityScope, max])
def test_what_cannot_be_a_scope_is_refused_in_words(pocket: Any, scope: Any) -> None:
    with pytest.raises(js.InputError):
        js.attribute(pocket, "the keys", scope)


def test_a_target_that_is_no_token_is_left_to_the_scope(pocket: Any) -> None:
    def several(state: js.State, target: Any = ()) -> Any:
        return state.gradient(lambda z: z[list(target)].sum())

    found = js.attribute(pocket, "the keys to the cabinet", several, target=(5, 9))
    assert found.prediction.target == found.prediction.top[0]
    with pytest.raises(js.InputError, match="it must be exactly one"):
        js.influence_pattern(pocket, "the keys", "semantic", target="the keys")


def test_scores_of_a_scope_of_ones_own_are_not_negative(pocket: Any) -> None:
    @dataclass(frozen=True)
    class Signed(js.Scope):
        unit = "x"

        def cotangents(self, state: js.State) -> torch.Tensor:
            return state.gradient(lambda logits: logits[4])[None]

        def combined(self, squares: torch.Tensor) -> torch.Tensor:
            return -squares.sum(0)

    for explain in (js.attribute, js.influence_pattern, lambda *given: list(js.attribute_batch(*given))):
        prompt = ["the keys"] if explain not in (js.attribute, js.influence_pattern) else "the keys"
        with pytest.raises(js.InputError, match="'Signed' gave negative scores"):
            explain(pocket, prompt, Signed())
