"""Runs that are spared, run side by side or from a later block on, against one whole run after the other in float64."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.engine.batches import in_batches
from jscope_tl.model import view
from jscope_tl.model.replay import blocks_replayed, recorded_blocks
from tests import models
from tests.conftest import shared_tiny
from tests.models import TOKENS
from tests.patching.test_comparison import CORRUPTED

EXPLAINED, TARGET = 6, 3
LIVE = 12
"""Cells of the three hook points ``resid_pre`` that can have an effect."""
PRE = [f"blocks.{layer}.hook_resid_pre" for layer in range(3)]
EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(autouse=True)
def _small_batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five prompts of eight tokens at once, so that most batches start at a later block."""
    if "real" not in request.keywords:
        monkeypatch.setattr(view, "TOKENS_AT_ONCE", 40)


def double(kind: str, family: str) -> Any:
    return shared_tiny(kind, family, torch.float64).model


def one_by_one(model: Any, points: list[str], hooks: Any = (), position: int = EXPLAINED) -> torch.Tensor:
    """Effects on the target's logit: one whole run for each cell, of all positions, whatever they may do."""

    def logit(tokens: torch.Tensor, own: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.run_with_hooks(tokens[None], fwd_hooks=[*hooks, *own], return_type="logits")[
                0, position, TARGET
            ]

    theirs: dict[str, torch.Tensor] = {}
    for name in points:
        logit(CORRUPTED, [(name, lambda x, hook, name=name: theirs.__setitem__(name, x.clone()))])

    def patch(name: str, t: int) -> Callable[..., torch.Tensor]:
        def put(x: torch.Tensor, hook: Any) -> torch.Tensor:
            x = x.clone()
            x[0, t] = theirs[name][0, t]
            return x

        return put

    base = logit(TOKENS, [])
    rows = [[logit(TOKENS, [(name, patch(name, t))]) - base for t in range(len(TOKENS))] for name in points]
    return torch.tensor(rows, dtype=torch.float64)


def compared(model: Any, at: Any = "resid_pre", **options: Any) -> Any:
    return js.patching.compare(
        model, TOKENS, CORRUPTED, "semantic", target=TARGET, position=EXPLAINED, at=at, **options
    )


@contextmanager
def changed_blocks(model: Any, change: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """A model whose blocks do something else, as another architecture's might: no hook that could be seen."""
    with ExitStack() as stack:
        for i, block in enumerate(model.blocks):
            stack.callback(vars(block).pop, "forward")
            vars(block)["forward"] = change(i, block.forward)
        yield


def of_stream(function: Callable[[torch.Tensor], torch.Tensor], output: Any) -> Any:
    return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)


def counted(rows: list[int]) -> Callable[[int, Callable[..., Any]], Callable[..., Any]]:
    """Blocks that note how many prompts they see."""

    def change(i: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            of_stream(lambda x: rows.append(len(x)), output)
            return output

        return counting

    return change


@pytest.mark.parametrize("at", ["resid_pre", "resid_post", ["blocks.2.hook_resid_pre", "hook_embed"]])
def test_effects_are_those_of_one_run_after_the_other(kind: str, family: str, at: Any) -> None:
    model = double(kind, family)
    result = compared(model, at)
    wanted = one_by_one(model, result.scope.hook_points)
    torch.testing.assert_close(result.effects, wanted, **EXACT)
    with torch.no_grad():
        clean, corrupted = (
            model(tokens[None], return_type="logits")[0, EXPLAINED, TARGET] for tokens in (TOKENS, CORRUPTED)
        )
    assert result.total == pytest.approx(float(corrupted - clean))


def test_cells_that_can_have_no_effect_are_skipped(kind: str, family: str) -> None:
    """Before the first difference of the prompts, beside it where no position has been read, and after the explained one."""
    model = double(kind, family)
    result = compared(model)
    skipped = torch.zeros(3, 8, dtype=torch.bool)
    skipped[:, [0, 1, 7]] = True
    skipped[0, 4:7] = True
    assert not result.effects[skipped].any()
    assert not one_by_one(model, PRE)[skipped].any()
    assert result.costs["patching"].n_skipped == int(skipped.sum()) == 24 - LIVE
    assert "12 cells not run" in repr(result)


def test_of_the_highest_cells_those_without_an_effect_are_skipped_too(kind: str) -> None:
    model = double(kind, "llama")
    every, few = compared(model), compared(model, only_top=3)
    asked = few.effects.isfinite()
    assert torch.equal(asked.sum(1), torch.tensor([3, 3, 3]))
    torch.testing.assert_close(few.effects[asked], every.effects[asked], **EXACT)
    assert few.costs["patching"].n_skipped == int((few.effects == 0).sum()) > 0
    whole = compared(model, only_top=99)
    torch.testing.assert_close(whole.joint[0].item(), whole.total, **EXACT)


def test_what_is_counted_is_what_was_run(kind: str) -> None:
    """Batches of 5, 5 and 4 prompts, two of them without a patch, from block 0, 1 and 2 on; before them one run of each prompt."""
    model, rows = models.tiny(kind, "llama").model, []
    with changed_blocks(model, counted(rows)):
        result = compared(model)
    n_forward = result.costs["patching"].n_forward
    assert n_forward == pytest.approx(2 + 5 + 5 * 2 / 3 + 4 / 3)
    assert n_forward + result.costs["scope"].n_forward == pytest.approx(sum(rows) / 3)


def test_activations_are_compared_and_not_tokens(kind: str, family: str) -> None:
    """A hook of the user's that brings the difference to positions whose tokens are the same."""

    def leak(embedded: torch.Tensor, hook: Any) -> torch.Tensor:
        return embedded + embedded.mean(1, keepdim=True)

    model, hooks = double(kind, family), [("hook_embed", leak)]
    result = compared(model, fwd_hooks=hooks)
    wanted = one_by_one(model, PRE, hooks)
    torch.testing.assert_close(result.effects, wanted, **EXACT)
    assert (result.effects[0, : EXPLAINED + 1] != 0).all()
    assert result.costs["patching"].n_skipped == 3


def test_hooks_see_one_whole_run_after_the_other(kind: str) -> None:
    """A hook that counts on one prompt, and one that takes over what another kept in an earlier layer."""
    model, kept = double(kind, "llama"), []

    def keep(resid: torch.Tensor, hook: Any) -> None:
        kept[:] = [resid[0].clone()]

    def add(resid: torch.Tensor, hook: Any) -> torch.Tensor:
        resid = resid.clone()
        resid[0] += 0.5 * kept.pop()
        return resid

    hooks = [("blocks.0.hook_resid_post", keep), ("blocks.2.hook_resid_post", add)]
    result = compared(model, fwd_hooks=hooks)
    torch.testing.assert_close(result.effects, one_by_one(model, PRE, hooks), **EXACT)
    assert result.costs["patching"].n_forward == 2 + int((result.effects != 0).sum())
    for name, hook in hooks:
        model.add_hook(name, hook)
    try:
        added = compared(model)
    finally:
        model.reset_hooks()
    assert torch.equal(added.effects, result.effects)
    assert added.costs["patching"].n_forward == result.costs["patching"].n_forward


def test_hooks_at_the_unembedding_see_all_positions(kind: str) -> None:
    model, seen = models.tiny(kind, "llama").model, set()
    handle = model.unembed.register_forward_hook(lambda module, args, output: seen.add(output.shape[1]))
    try:
        compared(model)
        js.patching.ablate(model, TOKENS, "semantic", target=TARGET)
    finally:
        handle.remove()
    assert seen == {8}


def test_blocks_that_share_more_than_the_stream(kind: str) -> None:
    """As those that use the keys and values of an earlier layer: from a later block on they could not run."""
    model, shared = models.tiny(kind, "llama", torch.float64).model, {}

    def change(i: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def sharing(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if i == 0:
                of_stream(lambda x: shared.__setitem__("kept", x), output)
            return of_stream(lambda x: x + shared.pop("kept").roll(1, 1), output) if i == 2 else output

        return sharing

    with changed_blocks(model, change):
        result = compared(model)
        wanted = one_by_one(model, PRE)
    torch.testing.assert_close(result.effects, wanted, **EXACT)
    assert result.costs["patching"].n_forward >= 2 + LIVE + 2  # in the end from the first block on, in batches
    assert result.costs["patching"].n_forward < 2 + 2 * LIVE + 2


@pytest.mark.parametrize("mixes", [True, False])
def test_models_that_mix_the_prompts_of_a_batch_or_take_but_one(kind: str, mixes: bool) -> None:
    model = models.tiny(kind, "llama", torch.float64).model

    def mixed(x: torch.Tensor) -> torch.Tensor:
        if not mixes and len(x) > 1:
            raise ValueError("one prompt at a time")
        return x / x.abs().max()

    def change(i: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: of_stream(mixed, forward(*args, **kwargs))

    with changed_blocks(model, change):
        result = compared(model)
        wanted = one_by_one(model, PRE)
    # A scale that all positions share lets later ones have an effect, which this package takes for impossible.
    torch.testing.assert_close(result.effects[:, :7], wanted[:, :7], **EXACT)
    assert result.costs["patching"].n_forward >= 2 + LIVE * (1 + mixes)


def test_smaller_batches_after_memory_ran_out_are_kept() -> None:
    tried: list[int] = []

    def run(part: slice) -> list[int]:
        tried.append(part.stop - part.start)
        if tried[-1] > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return list(range(20))[part]

    assert [i for found in in_batches(run, 20, 16) for i in found] == list(range(20))
    assert tried == [16, 8, 4, *[2] * 10]

    def broken(part: slice) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(in_batches(broken, 4, 4))
    with pytest.raises(MemoryError):
        list(in_batches(lambda part: (_ for _ in ()).throw(MemoryError()), 4, 4))


def test_replayed_blocks_are_those_of_one_thread(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    seen = view.ModelView(model)
    with torch.no_grad():
        plain = model(CORRUPTED[None], return_type="logits")
        with recorded_blocks(seen) as blocks:
            base = model(TOKENS[None], return_type="logits")
        with blocks_replayed(seen, blocks, range(3), 2), ThreadPoolExecutor(1) as pool:
            here = model(torch.stack([CORRUPTED] * 2), return_type="logits")

            def elsewhere() -> torch.Tensor:
                with torch.no_grad():
                    return model(CORRUPTED[None], return_type="logits")

            there = pool.submit(elsewhere).result()
    torch.testing.assert_close(here, base.expand_as(here))
    assert torch.equal(there, plain)
    assert all("forward" not in vars(block) for block in model.blocks)


def test_one_bar_for_all_runs(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = double(kind, "llama")
    for options in ({}, {"only_top": 2}):
        result = compared(model, progress=True, **options)
        bars = re.findall(r"patched runs: +\d+%.*?(\d+)/(\d+)", capsys.readouterr().err)
        assert len({total for _, total in bars}) == 1, bars
        assert bars[-1][0] == bars[-1][1] or int(result.costs["patching"].n_forward) > 0


@pytest.mark.real
@pytest.mark.slow
def test_indirect_objects(smollm2: Any) -> None:
    """Effects in float32, at three depths, of one run after the other."""
    clean, corrupted = (
        f"When {a} and {b} went to the store, {b} gave a drink to" for a, b in (("Mary", "John"), ("John", "Mary"))
    )
    points = [f"blocks.{layer}.hook_resid_pre" for layer in (0, 14, 29)]
    result = js.patching.compare(smollm2, clean, corrupted, "contrastive", target=" Mary", baseline=" John", at=points)
    mary, john = (smollm2.to_single_token(name) for name in (" Mary", " John"))
    tokens = smollm2.to_tokens(clean)
    with torch.no_grad():
        _, cache = smollm2.run_with_cache(corrupted, names_filter=points)

        def difference(*hooks: Any) -> float:
            logits = smollm2.run_with_hooks(tokens, fwd_hooks=list(hooks), return_type="logits")[0, -1]
            return float(logits[mary] - logits[john])

        for layer, t in ((0, 2), (0, 4), (1, 4), (1, 10), (2, 14), (1, 14), (2, 10), (1, 1), (0, 13)):

            def patch(resid: torch.Tensor, hook: Any, layer: int = layer, t: int = t) -> torch.Tensor:
                resid = resid.clone()
                resid[0, t] = cache[points[layer]][0, t]
                return resid

            effect = difference((points[layer], patch)) - difference()
            assert float(result.effects[layer, t]) == pytest.approx(effect, abs=2e-4)
    assert result.costs["patching"].n_skipped == 3 * 2 + 10
    assert not result.effects[:, :2].any()
