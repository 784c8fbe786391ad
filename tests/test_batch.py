"""Many prompts at once: what comes out is what one by one gives, in order."""

import inspect
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.model.view import ModelView
from tests import models, oracles
from tests.conftest import shared_tiny
from tests.models import TOKENS, Tiny, snapshot

attribute_batch = inspect.unwrap(js.attribute_batch)
PROMPTS = [TOKENS, TOKENS[:3], TOKENS.repeat(3)[:19], TOKENS[:1], TOKENS.flip(0)]
NEED = {"contrastive": {"target": 5, "baseline": 9}}


def same(one: js.Attribution, other: js.Attribution, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=rtol * float(one.scores.max()))
    for name in ("position", "str_tokens", "options", "unit", "bos_positions", "warnings", "hook_points"):
        assert getattr(one, name) == getattr(other, name), name
    assert torch.equal(one.tokens, other.tokens)
    assert one.provenance == other.provenance
    assert one.prediction.target.token == other.prediction.target.token
    assert one.prediction.target.probability == pytest.approx(other.prediction.target.probability, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scope", oracles.SCOPES)
def test_results_are_those_of_one_by_one(tiny: Tiny, scope: str) -> None:
    options = NEED.get(scope, {})
    alone = [js.attribute(tiny.model, prompt, scope, **options) for prompt in PROMPTS]
    for batch_size in (2, 16):
        many = js.attribute_batch(tiny.model, PROMPTS, scope, batch_size=batch_size, **options)
        for one, result in zip(alone, many, strict=True):
            same(one, result, rtol=3e-5)


def test_double_precision_agrees_to_the_last_digits(kind: str) -> None:
    model = shared_tiny(kind, "llama", torch.float64).model
    for prompt, result in zip(PROMPTS, js.attribute_batch(model, PROMPTS, "log_prob", target=3), strict=True):
        same(js.attribute(model, prompt, "log_prob", target=3), result, rtol=1e-6)


@pytest.mark.parametrize("position", [0, 2, -2])
def test_other_positions(llama: Any, position: int) -> None:
    long = [prompt for prompt in PROMPTS if len(prompt) > 2]
    for prompt, result in zip(long, js.attribute_batch(llama, long, "entropy", position=position), strict=True):
        same(js.attribute(llama, prompt, "entropy", position=position), result)


def test_layer_maps_and_functions_with_rows_that_differ_in_number(llama: Any) -> None:
    def own(state: js.State) -> torch.Tensor:
        return torch.eye(len(state.y))[: 1 + state.position % 3]

    for scope in (own, "semantic"):
        for prompt, result in zip(PROMPTS, js.attribute_batch(llama, PROMPTS, scope, at="resid_pre"), strict=True):
            alone = js.attribute(llama, prompt, scope, at="resid_pre")
            torch.testing.assert_close(result.scores, alone.scores, rtol=1e-4, atol=1e-5)
            assert result.hook_points == alone.hook_points


def test_half_precision(kind: str) -> None:
    """A prompt with small rows next to one with large ones loses nothing."""
    model = models.tiny(kind, "llama").model.to(torch.float16)

    def own(state: js.State) -> torch.Tensor:
        return torch.ones(len(state.y)) * (1e-6 if len(state.tokens) == 3 else 1.0)

    for prompt, result in zip(PROMPTS, js.attribute_batch(model, PROMPTS, own), strict=True):
        alone = js.attribute(model, prompt, own)
        torch.testing.assert_close(result.scores, alone.scores, rtol=0.02, atol=0.02 * float(alone.scores.max()))


def test_strings_keep_their_bos(pocket: Any) -> None:
    prompts = ["the keys near the door", "the key", "tom grew up in the south and goes to columbia ."]
    for prompt, result in zip(prompts, js.attribute_batch(pocket, iter(prompts), "semantic"), strict=True):
        same(js.attribute(pocket, prompt, "semantic"), result)
        assert result.bos_positions == (0,)
    (bare,) = js.attribute_batch(pocket, prompts[:1], "semantic", prepend_bos=False)
    assert bare.bos_positions == ()


def test_hooks_see_one_prompt_at_a_time(llama: Any) -> None:
    shapes = []

    def watch(resid: torch.Tensor, hook: Any) -> torch.Tensor:
        shapes.append(tuple(resid.shape[:2]))
        return 0.5 * resid

    watch.__module__ = "torch_hooks"  # a user's, whatever it is called
    hooks = [("blocks.1.hook_resid_pre", watch)]
    given = list(js.attribute_batch(llama, PROMPTS, "semantic", fwd_hooks=hooks))
    with llama.hooks(fwd_hooks=hooks):
        resident = list(js.attribute_batch(llama, PROMPTS, "semantic"))
    assert all(shape[0] == 1 for shape in shapes)
    for prompt, one, other in zip(PROMPTS, given, resident, strict=True):
        alone = js.attribute(llama, prompt, "semantic", fwd_hooks=hooks)
        assert torch.equal(alone.scores, one.scores)
        assert torch.equal(alone.scores, other.scores)


def test_torch_hooks_see_one_prompt_at_a_time(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    model.run_with_cache(TOKENS[None])  # leaves hooks of TransformerLens' own, which change nothing
    assert not ModelView(model).has_torch_hooks()

    def first_row(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 * output[:1], output[1:]])

    model.blocks[1].mlp.register_forward_hook(first_row)
    for prompt, result in zip(PROMPTS, js.attribute_batch(model, PROMPTS, "semantic"), strict=True):
        assert torch.equal(js.attribute(model, prompt, "semantic").scores, result.scores)


def test_rows_of_any_dtype(llama: Any) -> None:
    for dtype in (torch.int64, torch.float16):

        def own(state: js.State, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.arange(len(state.y)).to(dtype)

        for prompt, result in zip(PROMPTS, js.attribute_batch(llama, PROMPTS, own), strict=True):
            torch.testing.assert_close(result.scores, js.attribute(llama, prompt, own).scores, rtol=1e-4, atol=1e-4)


def test_padding_on_the_left_is_not_seen(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    before = model.tokenizer.padding_side, model.tokenizer.pad_token
    try:
        model.tokenizer.padding_side, model.tokenizer.pad_token = "left", model.tokenizer.bos_token
        prompts = [torch.tensor([0, 0, 5]), TOKENS, torch.tensor([0, 7])]
        for prompt, result in zip(prompts, js.attribute_batch(model, prompts, "semantic", target=3), strict=True):
            same(js.attribute(model, prompt, "semantic", target=3), result)
    finally:
        model.tokenizer.padding_side, model.tokenizer.pad_token = before


def test_it_can_be_closed(llama: Any) -> None:
    results = js.attribute_batch(llama, PROMPTS, "semantic", batch_size=2, progress=False)
    next(results)
    results.close()
    assert list(results) == []


def test_prompts_are_read_as_they_are_needed(llama: Any) -> None:
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield TOKENS

    results = js.attribute_batch(llama, endless(), "semantic", batch_size=3, progress=False)
    for _ in range(4):
        next(results)
    assert read == 6


def test_progress_bar(llama: Any, capsys: pytest.CaptureFixture[str]) -> None:
    list(js.attribute_batch(llama, PROMPTS, progress=False))
    assert not capsys.readouterr().err
    list(js.attribute_batch(llama, PROMPTS, progress=True))
    assert "prompts" in capsys.readouterr().err


def test_the_model_is_left_as_it_was(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    model.run_with_cache(TOKENS[None])  # a bridge puts hooks of its own in at its first cached run
    before = snapshot(model)
    results = js.attribute_batch(model, PROMPTS, "semantic", batch_size=2)
    next(results)
    assert snapshot(model) == before  # also between two results
    list(results)
    with pytest.raises(js.InputError):
        list(js.attribute_batch(model, PROMPTS, "semantic", target=10**6))
    assert snapshot(model) == before


def test_bad_input(llama: Any) -> None:
    with pytest.raises(js.InputError, match="for one prompt, use js.attribute"):
        attribute_batch(llama, "one prompt")
    for given in ({"a": 1}, TOKENS):
        with pytest.raises(js.InputError, match="for one prompt, use js.attribute"):
            attribute_batch(llama, given)
    assert len(list(attribute_batch(llama, PROMPTS[:2], batch_size=2**70))) == 2
    for size in (0, True, "3"):
        with pytest.raises(js.InputError, match="batch_size"):
            attribute_batch(llama, PROMPTS, batch_size=size)
    with pytest.raises(js.InputError, match="no hook point"):
        attribute_batch(llama, PROMPTS, at="hook_embd")
    with pytest.raises(js.InputError, match="Prompt 3: position 1"):
        list(attribute_batch(llama, PROMPTS, position=1))
    with pytest.raises(js.InputError, match=r"Prompt 1: .*10000"):
        list(attribute_batch(llama, [TOKENS, torch.tensor([10000])]))
    assert list(attribute_batch(llama, [])) == []
