"""Threads and forks: a model belongs to all threads, a run to one."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.model import turns
from jscope_tl.model.view import ModelView
from tests import models
from tests.models import TOKENS, snapshot

OTHER = TOKENS.flip(0)


def torch_forks() -> bool:
    """Whether a backward pass is possible after a fork, once the parent has had one: not with torch 2.6."""
    if not hasattr(os, "fork"):
        return False
    torch.ones(1, requires_grad=True).exp().backward()
    if not (process := os.fork()):
        try:
            torch.ones(1, requires_grad=True).exp().backward()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(process, 0)[1] == 0


needs_fork = pytest.mark.skipif(
    not torch_forks(), reason="this system does not fork, or this torch has no backward pass after it"
)


@pytest.fixture
def model(kind: str) -> Any:
    """A model of one's own, that has run with a cache: libraries put hooks of their own on a model the first time."""
    model = models.tiny(kind, "llama").model
    model.run_with_cache(TOKENS[None])
    return model


@contextmanager
def amid_an_explanation(model: Any, explain: Callable[..., Any]) -> Iterator[tuple[Future[Any], Event]]:
    """Another thread explains, and has come to the middle of its forward pass, where it waits for the event."""
    there, go_on = Event(), Event()

    def wait(activation: torch.Tensor, hook: Any) -> None:
        there.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(explain, model, TOKENS, fwd_hooks=[("blocks.1.hook_resid_post", wait)])
        try:
            assert there.wait(60)
            yield done, go_on
        finally:
            go_on.set()


def patched(model: Any, tokens: torch.Tensor, fwd_hooks: list[Any]) -> torch.Tensor:
    """Scores of a model that is changed for this run alone."""
    halve = ("blocks.0.hook_resid_post", lambda activation, hook: 0.5 * activation)
    return js.attribute(model, tokens, "fisher", method="exact", frozen="norm", fwd_hooks=[halve, *fwd_hooks]).scores


def effects(model: Any, tokens: torch.Tensor, fwd_hooks: list[Any]) -> torch.Tensor:
    return js.patching.ablate(model, tokens, "entropy", fwd_hooks=fwd_hooks).kl


@pytest.mark.parametrize("explain", [patched, effects])
def test_runs_of_other_threads_are_not_touched_and_do_not_count(model: Any, explain: Callable[..., Any]) -> None:
    """All logits of the user's run, from the model as it is; and the explanation is what it would have been alone."""
    with torch.no_grad():
        logits = model(OTHER[None])
    expected = explain(model, TOKENS, [("blocks.1.hook_resid_post", lambda activation, hook: None)])
    before = snapshot(model)
    with amid_an_explanation(model, explain) as (done, go_on), torch.no_grad():
        assert torch.equal(model(OTHER[None]), logits)
        found, cache = model.run_with_cache(OTHER[None])
        assert torch.equal(found, logits)
        assert cache["blocks.1.hook_resid_post"].shape == (1, len(OTHER), models.D_MODEL)
        zero = [("hook_embed", lambda activation, hook: 0 * activation)]
        assert not torch.equal(model.run_with_hooks(OTHER[None], fwd_hooks=zero), logits)
        go_on.set()
        assert torch.equal(done.result(60), expected)
    assert snapshot(model) == before


def test_hooks_that_come_and_go_in_another_thread_take_none_of_ours_along(model: Any) -> None:
    """TransformerLens counts hook contexts on the model, whichever thread they belong to."""
    expected = patched(model, TOKENS, [("blocks.1.hook_resid_post", lambda activation, hook: None)])
    before = snapshot(model)
    nothing = [("blocks.0.hook_resid_pre", lambda activation, hook: None)]
    with model.hooks(fwd_hooks=nothing), amid_an_explanation(model, patched) as (done, go_on):
        with model.hooks(fwd_hooks=nothing):
            pass
        model.reset_hooks()
        go_on.set()
        assert torch.equal(done.result(60), expected)
    assert snapshot(model) == before


def test_hooks_of_a_run_in_another_thread_are_not_the_users(model: Any) -> None:
    """Where hooks of the user's are active, prompts run one at a time."""
    view = ModelView(model)
    with amid_an_explanation(model, patched):
        assert any(point.fwd_hooks for point in view.points.values())
        assert not view.is_hooked([])
    model.add_hook("blocks.0.hook_resid_pre", lambda activation, hook: None)
    assert view.is_hooked([])


def in_a_child(function: Callable[[], bool]) -> bool:
    """What the function returns in a forked process, which has a minute."""
    process = os.fork()
    if not process:
        signal.alarm(60)
        try:
            os._exit(0 if function() else 1)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(2)
    return os.waitpid(process, 0)[1] == 0


@needs_fork
def test_a_fork_waits_for_the_turn_of_another_thread(model: Any) -> None:
    """The child has the model as it was before the run: no hooks, no frozen parameters."""
    before, expected = snapshot(model), js.attribute(model, TOKENS, "entropy").scores
    with amid_an_explanation(model, patched) as (done, go_on), ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: (Event().wait(0.3), go_on.set()))
        assert in_a_child(lambda: snapshot(model) == before)
        assert in_a_child(lambda: torch.allclose(js.attribute(model, TOKENS, "entropy").scores, expected, rtol=1e-5))
        done.result(60)
    assert snapshot(model) == before


@needs_fork
def test_a_fork_amid_a_long_turn_does_not_hang(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn does not end before the child does: it gets a lock of its own, and sees nothing of the other's hooks."""
    monkeypatch.setattr(turns, "PATIENCE", 0.2)
    expected = js.attribute(model, TOKENS, "entropy").scores
    with amid_an_explanation(model, patched) as (done, go_on):
        assert in_a_child(lambda: torch.allclose(js.attribute(model, TOKENS, "entropy").scores, expected, rtol=1e-5))
        process = multiprocessing.get_context("fork").Process(target=js.attribute, args=(model, TOKENS))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        go_on.set()
        assert done.result(60) is not None
    assert torch.equal(js.attribute(model, TOKENS, "entropy").scores, expected)


@needs_fork
def test_a_fork_inside_ones_own_turn(model: Any) -> None:
    """A hook forks: both processes can go on to the end."""
    processes = []

    def fork(activation: torch.Tensor, hook: Any) -> None:
        processes.append(os.fork())

    expected, alike = js.attribute(model, TOKENS, "entropy").scores, False
    try:
        found = js.attribute(model, TOKENS, "entropy", fwd_hooks=[("blocks.1.hook_resid_post", fork)])
        again = js.attribute(model, TOKENS, "entropy")
        alike = torch.equal(found.scores, expected) and torch.equal(again.scores, expected)
    finally:
        if processes == [0]:  # the child ends here, whatever was raised
            os._exit(not alike)
    assert os.waitpid(processes[0], 0)[1] == 0
    assert alike


@needs_fork
def test_locks_of_matrix_precision_survive_a_fork(model: Any) -> None:
    def slow(state: js.State) -> torch.Tensor:
        return state.gradient(lambda logits: logits[44])

    expected = js.attribute(model, TOKENS, slow).scores
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(js.attribute, model, TOKENS, slow, matmul_precision="high") for _ in range(8)]
        assert all(
            in_a_child(lambda: js.attribute(model, TOKENS, slow, matmul_precision="high") is not None) for _ in range(4)
        )
        for done in running:
            torch.testing.assert_close(done.result(60).scores, expected)
