"""What a run needs of the outside, and what it leaves behind: nothing."""

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.engine.forward import _filled, run
from jscope_tl.engine.run import Settings
from jscope_tl.model.view import ModelView
from tests import models
from tests.conftest import shared_tiny
from tests.models import TOKENS, snapshot


@pytest.fixture
def model(kind: str) -> Any:
    """A tiny model of one's own, with hooks, frozen and unfrozen parameters, as a user may have it."""
    model = models.tiny(kind, "llama").model
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    model.add_hook("blocks.1.hook_resid_post", lambda activation, hook: activation * 1.0)
    model(TOKENS[None])  # a bridge hooks its own norms at its first forward pass, whoever calls it
    return model


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_gradient_mode_outside_does_not_matter(llama: Any, mode: Any) -> None:
    expected = js.attribute(llama, TOKENS, "fisher", method="exact").scores
    with mode():
        prompt = TOKENS.clone()  # an inference tensor in inference mode
        assert torch.equal(js.attribute(llama, prompt, "fisher", method="exact").scores, expected)
        assert js.jacobian(llama, prompt, torch.ones(models.D_MODEL)).isfinite().all()


def test_gradients_switched_off_for_good(llama: Any) -> None:
    expected = js.attribute(llama, TOKENS, "entropy").scores
    torch.set_grad_enabled(False)
    try:
        assert torch.equal(js.attribute(llama, TOKENS, "entropy").scores, expected)
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


@pytest.mark.parametrize("scope", ["semantic", "fisher"])
def test_everything_is_as_before(model: Any, scope: str) -> None:
    before = snapshot(model)
    tokens = TOKENS.clone()
    js.attribute(model, tokens, scope)
    js.jacobian(model, tokens, torch.ones(models.D_MODEL))
    assert snapshot(model) == before
    assert torch.equal(tokens, TOKENS)


def test_everything_is_as_before_after_an_exception(model: Any) -> None:
    class Boom(Exception):
        pass

    def boom(*args: Any, **kwargs: Any) -> Any:
        raise Boom

    before = snapshot(model)
    with pytest.raises(Boom):
        js.attribute(model, TOKENS, boom)
    with pytest.raises(Boom):
        js.attribute(model, TOKENS, "semantic", fwd_hooks=[("blocks.1.hook_resid_pre", boom)])
    with pytest.raises(js.InputError):
        js.attribute(model, TOKENS, "semantic", target=10**6)
    with pytest.raises(js.InputError):
        js.attribute(model, TOKENS, "semantic", fwd_hooks=[("hook_embed", lambda a, hook: a), ("no.such", boom)])
    with pytest.raises(js.InputError):
        js.attribute(model, TOKENS, "semantic", at="no.such")
    assert snapshot(model) == before


def test_users_hooks_stay_in_force(model: Any) -> None:
    plain = js.attribute(model, TOKENS, "semantic", target=44).scores
    model.add_hook("blocks.0.hook_resid_post", lambda activation, hook: 0.5 * activation)
    hooked = js.attribute(model, TOKENS, "semantic", target=44).scores
    again = js.attribute(model, TOKENS, "semantic", target=44).scores
    assert not torch.allclose(plain, hooked)
    assert torch.equal(hooked, again)


def test_hooks_that_a_user_left_on_purpose_survive(model: Any) -> None:
    calls = []
    with model.hooks(fwd_hooks=[("hook_embed", lambda a, hook: calls.append(1))], reset_hooks_end=False):
        pass
    left = sum(len(point.fwd_hooks) for point in model.hook_dict.values())
    js.attribute(model, TOKENS, "semantic")
    assert sum(len(point.fwd_hooks) for point in model.hook_dict.values()) == left


def test_fwd_hooks_explain_the_patched_model(llama: Any) -> None:
    """Zeroing a token's embedding by a hook equals a model whose embedding of that token is zero."""

    def ablate(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        activation = activation.clone()
        activation[:, 2] = 0
        return activation

    result = js.attribute(llama, TOKENS, "log_prob", target=44, fwd_hooks=[("hook_embed", ablate)])
    with torch.no_grad():
        logits = llama.run_with_hooks(TOKENS[None], fwd_hooks=[("hook_embed", ablate)])
    probability = float(logits[0, -1].softmax(-1)[44])
    assert result.prediction.target.probability == pytest.approx(probability, rel=1e-5)
    # The cut is made in what the hook leaves: were it made before, nothing would depend on the ablated embedding.
    assert result.scores[2] > 0
    assert not torch.allclose(result.scores, js.attribute(llama, TOKENS, "log_prob", target=44).scores)


def test_a_hook_that_runs_the_model_again_is_refused(llama: Any) -> None:
    inner = []

    def again(activation: torch.Tensor, hook: Any) -> None:
        if not inner:
            inner.append(1)
            llama(TOKENS[None])

    with pytest.raises(js.InputError, match="ran 2 times"):
        js.attribute(llama, TOKENS, "semantic", fwd_hooks=[("blocks.0.hook_resid_pre", again)])


def test_fwd_hooks_by_filter(llama: Any) -> None:
    seen = []
    hooks = [(lambda name: name.endswith("hook_resid_post"), lambda a, hook: seen.append(hook.name))]
    js.attribute(llama, TOKENS, "semantic", fwd_hooks=hooks)
    assert len(seen) == 3


def test_a_hook_that_cuts_the_model_is_named(llama: Any) -> None:
    with pytest.raises(js.InputError, match="does not depend on 'hook_embed'"):
        js.attribute(llama, TOKENS, "semantic", fwd_hooks=[("blocks.1.hook_resid_pre", lambda a, hook: a.detach())])


def test_a_hook_that_detaches_the_logits_is_named(llama: Any) -> None:
    handle = llama.unembed.register_forward_hook(lambda module, args, output: output.detach())
    try:
        with pytest.raises(js.InputError, match="at or behind the unembedding detaches the logits"):
            js.attribute(llama, TOKENS, "semantic")
    finally:
        handle.remove()


def test_non_finite_activations_are_refused(llama: Any) -> None:
    hooks = [("blocks.0.hook_resid_post", lambda a, hook: a * float("inf"))]
    with pytest.raises(js.InputError, match="infinite or undefined"):
        js.attribute(llama, TOKENS, "semantic", fwd_hooks=hooks)


def test_only_the_explained_position_is_unembedded(llama: Any) -> None:
    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward:
        assert forward._logits._base is not None  # the model's whole output, of which the run keeps one row
        assert forward._logits._base.numel() == models.D_VOCAB


@pytest.mark.parametrize("place", ["unembed.hook_in", "unembed.hook_out", "module"])
def test_hooks_behind_the_unembedding_count_positions_as_always(llama: Any, place: str) -> None:
    """With such a hook nothing is narrowed: one on another position changes nothing, one on this position counts."""
    if place != "module" and place not in llama.hook_dict:
        pytest.skip("TransformerLens 2 has no hook points at the unembedding")

    def scores(t: int) -> torch.Tensor:
        def halve(activation: torch.Tensor, hook: Any = None) -> torch.Tensor:
            activation = activation.clone()
            activation[:, t] *= 0.5
            return activation

        if place != "module":
            return js.attribute(llama, TOKENS, target=44, fwd_hooks=[(place, halve)]).scores
        handle = llama.unembed.register_forward_hook(lambda module, args, output: halve(output))
        try:
            return js.attribute(llama, TOKENS, target=44).scores
        finally:
            handle.remove()

    plain = js.attribute(llama, TOKENS, target=44).scores
    torch.testing.assert_close(scores(5), plain)
    torch.testing.assert_close(scores(7), 0.5 * plain)


def test_hooks_may_write_in_place(llama: Any) -> None:
    def in_place(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        activation[:, 2] = activation[:, 2] * 0.5
        return activation

    def copied(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return in_place(activation.clone(), hook)

    for at, name in (
        ("hook_embed", "blocks.0.hook_resid_pre"),
        ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"),
    ):
        written, expected = (js.attribute(llama, TOKENS, at=at, fwd_hooks=[(name, f)]) for f in (in_place, copied))
        torch.testing.assert_close(written.scores, expected.scores)


def test_autocast_outside_does_not_matter(llama: Any) -> None:
    expected = js.attribute(llama, TOKENS, "fisher", method="exact").scores
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(js.attribute(llama, TOKENS, "fisher", method="exact").scores, expected)


def test_default_device_does_not_matter(llama: Any) -> None:
    expected = js.attribute(llama, TOKENS, "fisher", method="sampled", rank=2).scores
    with torch.device("meta"):
        assert torch.equal(js.attribute(llama, TOKENS.tolist(), "fisher", method="sampled", rank=2).scores, expected)


def test_threads_take_turns(llama: Any) -> None:
    expected = js.attribute(llama, TOKENS, "entropy").scores
    before = snapshot(llama)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: js.attribute(llama, TOKENS, "entropy").scores, range(24)))
    assert all(torch.allclose(result, expected) for result in results)
    assert snapshot(llama) == before


def test_a_scope_may_explain_something_else_on_the_way(llama: Any) -> None:
    def nested(state: js.State) -> torch.Tensor:
        js.attribute(llama, TOKENS[:4], "entropy")
        return state.gradient(lambda logits: logits[44])

    torch.testing.assert_close(
        js.attribute(llama, TOKENS, nested).scores, js.attribute(llama, TOKENS, target=44).scores
    )


def test_gradients_that_are_not_numbers_end_in_a_refusal(llama: Any) -> None:
    """The square root at 0 has a finite value and an infinite slope: the forward pass looks fine."""
    hooks = [("blocks.1.hook_resid_post", lambda a, hook: a + (a * 0).sqrt())]
    for scope in ("semantic", js.FisherScope(rank=2, rtol=0.01), js.FisherScope(method="exact")):
        with pytest.raises(js.InputError, match="infinite or undefined"):
            js.attribute(llama, TOKENS, scope, fwd_hooks=hooks)


def test_tensors_of_hooks_from_inference_mode_are_named(llama: Any) -> None:
    with torch.inference_mode():
        steering = torch.randn(models.D_MODEL)
    with pytest.raises(js.InputError, match="A hook returns a tensor"):
        js.attribute(llama, TOKENS, fwd_hooks=[("blocks.0.hook_resid_post", lambda a, hook: a * steering)])


def test_a_bias_of_the_unembedding_counts(kind: str) -> None:
    """p comes from the model's own logits: with a bias on them the Fisher score is another, and the oracle's."""
    from tests import oracles

    tiny = models.tiny(kind, "gpt2")
    bias = torch.linspace(-3, 3, models.D_VOCAB)
    with torch.no_grad():
        tiny.model.b_U.copy_(bias)
    plain = oracles.dense(tiny.hf, TOKENS)
    o = oracles.Oracle(plain.J, plain.x, plain.y, plain.z + bias, plain.D)
    result = js.attribute(tiny.model, TOKENS, "fisher", method="exact")
    assert oracles.relative_difference(result.scores, oracles.fisher(o)) < 1e-4
    assert oracles.relative_difference(result.scores, oracles.fisher(plain)) > 1e-2


def test_soft_capped_logits_count() -> None:
    """Without the cap the numbers would be others: the fixture's cap bites."""
    from tests import oracles
    from tests.conftest import dense

    o = dense("gemma2", -1)
    uncapped = 3.0 * torch.atanh(o.z / 3.0)
    assert (o.z - uncapped).abs().max() > 0.5
    model = shared_tiny(models.ANY_KIND, "gemma2").model
    best = int(o.z.argmax())
    result = js.attribute(model, TOKENS, "semantic", target=best)
    assert oracles.relative_difference(result.scores, oracles.semantic(o, best)) < 1e-4


@pytest.mark.parametrize("ids", [(2, 0, 1), (0, 1, 2), (0, 0, 0), (1, 0, None), (None, 3, 0), (None, None, None)])
def test_shorter_prompts_are_filled_up_with_no_special_token(ids: tuple[int | None, ...]) -> None:
    """What fills a prompt up must not be taken for padding, beginning or end, whatever ids these have."""
    tokenizer = SimpleNamespace(**dict(zip(("pad_token_id", "bos_token_id", "eos_token_id"), ids, strict=True)))
    long, short = _filled([TOKENS, TOKENS[:5]], tokenizer)
    assert torch.equal(long, TOKENS)
    assert torch.equal(short[:5], TOKENS[:5])
    assert not set(short[5:].tolist()) & set(ids)


def test_prompts_side_by_side_are_filled_up_for_the_models_own_tokenizer(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, plain = [], type(llama).forward

    def kept(self: Any, tokens: torch.Tensor, *args: Any, **how: Any) -> Any:
        seen.append(tokens)
        return plain(self, tokens, *args, **how)

    monkeypatch.setattr(type(llama), "forward", kept)
    list(js.attribute_batch(llama, [TOKENS, TOKENS[:5]], "temperature"))
    (batch,) = seen
    (filling,) = [row[5:] for row in batch if not torch.equal(row, TOKENS)]
    own = models.tokenizer()
    assert not set(filling.tolist()) & {own.bos_token_id, own.pad_token_id, own.eos_token_id}


def first_half(activation: torch.Tensor, hook: Any) -> torch.Tensor:
    return activation[..., : activation.shape[-1] // 2]


def only_last(activation: torch.Tensor, hook: Any) -> torch.Tensor:
    return activation[:, -1:]


def a_number(activation: torch.Tensor, hook: Any) -> float:
    return activation.sum().item()


def a_pair(activation: torch.Tensor, hook: Any) -> tuple[torch.Tensor, None]:
    return activation, None


def an_array(activation: torch.Tensor, hook: Any) -> Any:
    return activation.detach().numpy()


SHAPED = "it must return a tensor [1, 8, 32] of torch.float32 on cpu"
WRONG = {
    first_half: f"returned a tensor [1, 8, 16] of torch.float32 on cpu; {SHAPED}",
    only_last: f"returned a tensor [1, 1, 32] of torch.float32 on cpu; {SHAPED}",
    a_number: f"returned float; {SHAPED}",
    a_pair: f"returned tuple; {SHAPED}",
    an_array: f"returned ndarray; {SHAPED}",
}


@pytest.mark.parametrize("hook", WRONG)
@pytest.mark.parametrize("place", ["hook_embed", "blocks.1.hook_resid_pre"])
@pytest.mark.parametrize("on_the_model", [False, True])
def test_a_hook_that_returns_what_does_not_fit_is_named(model: Any, hook: Any, place: str, on_the_model: bool) -> None:
    """Whether it is given or sits on the model, and whether or not the model could go on with what it returns."""
    if on_the_model:
        model.add_hook(place, hook)
    given = [] if on_the_model else [(place, hook)]
    before = snapshot(model)
    for call in (js.attribute, js.influence_pattern, js.patching.ablate):
        with pytest.raises(js.InputError, match=re.escape(WRONG[hook])) as refused:
            call(model, TOKENS, "temperature", fwd_hooks=given)
        assert re.search(r"hook.*at '.*(embed|blocks\.1\.).*'", str(refused.value))
        if not on_the_model or getattr(model.hook_dict[place].fwd_hooks[-1], "user_hook", None):
            assert hook.__name__ in str(refused.value)
    assert snapshot(model) == before


def test_a_hook_that_returns_another_dtype_is_named_where_the_run_fails(model: Any) -> None:
    def doubled(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation.double()

    before = snapshot(model)
    with pytest.raises(js.InputError, match=r"doubled at .* returned a tensor .* of torch.float64") as refused:
        js.attribute(model, TOKENS, fwd_hooks=[("blocks.0.mlp.hook_post", doubled)])
    assert isinstance(refused.value.__cause__, RuntimeError)
    assert snapshot(model) == before


@pytest.mark.parametrize("function", [lambda activation: activation, lambda activation, point: activation])
def test_a_hook_that_cannot_be_called_is_named(llama: Any, function: Any) -> None:
    with pytest.raises(js.InputError, match=r"at 'hook_embed' cannot be called.*functions of \(activation, hook\)"):
        js.attribute(llama, TOKENS, fwd_hooks=[("hook_embed", function)])


@pytest.mark.parametrize("where", ["blocks.0.attn.hook_result", lambda name: name == "blocks.0.attn.hook_result"])
def test_a_hook_that_never_runs_is_named(llama: Any, where: Any) -> None:
    """It would have had no effect on what is explained, without a word."""

    def nothing(activation: torch.Tensor, hook: Any) -> None: ...

    with pytest.raises(js.InputError, match=r"nothing at .* never ran.*set_use_attn_result"):
        js.attribute(llama, TOKENS, fwd_hooks=[(where, nothing)])
