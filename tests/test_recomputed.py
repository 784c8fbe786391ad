"""Layers that run again in the backward pass: the same scores in less memory, and nothing of the user's is changed."""

from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.attribution.setup import set_up
from jscope_tl.engine import recomputed
from jscope_tl.engine.memory import LiveBytes
from tests import models
from tests.models import TOKENS, Tiny, snapshot

PROMPT, ANSWER = TOKENS[:5], TOKENS[5:]


def explained(model: Any, recompute: bool | None, **how: Any) -> js.TextAttribution:
    return js.attribute_text(model, PROMPT, ANSWER, recompute=recompute, **how)


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_scores_are_the_same(tiny: Tiny, chunk_size: int) -> None:
    kept, again = (explained(tiny.model, way, chunk_size=chunk_size) for way in (False, True))
    torch.testing.assert_close(again.token_scores, kept.token_scores, rtol=1e-6, atol=1e-8)
    assert any("ran again in each backward pass" in warning for warning in again.warnings)
    assert not any("ran again" in warning for warning in kept.warnings)


def test_no_layer_adds_its_keys_twice(kind: str) -> None:
    """Bridges of GPT-NeoX hand every layer a key-value cache, also where nobody asked for one."""
    model = models.tiny(kind, "pythia").model
    torch.testing.assert_close(
        explained(model, True).token_scores, explained(model, False).token_scores, rtol=1e-6, atol=1e-8
    )


def test_graphs_are_not_kept(pocket: Any) -> None:
    """What is alive after the forward pass is a small part of what it is with all graphs."""
    tokens = torch.randint(5, 200, (300,), generator=torch.Generator().manual_seed(0))
    alive = []
    for way in (False, True):
        setup = set_up(pocket, "log_prob", {}, recompute=way)
        with LiveBytes() as meter, setup.run(tokens, [299]) as (forward, _):
            alive.append(meter.now)
            assert (forward.recomputed > 0) == way
    assert alive[1] < alive[0] / 2


def test_memory_decides(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputed, "LONG", 1)
    assert not any("ran again" in warning for warning in explained(llama, None).warnings)
    monkeypatch.setattr(recomputed, "available_bytes", lambda device: 1000.0)
    assert any("ran again" in warning for warning in explained(llama, None).warnings)
    assert any("ran again" in warning for warning in js.attribute(llama, TOKENS).warnings)  # whatever entry point
    assert not any("ran again" in warning for warning in explained(llama, False).warnings)
    monkeypatch.setattr(recomputed, "LONG", 100)
    assert not any("ran again" in warning for warning in explained(llama, None).warnings)


def test_rows_of_recomputed_layers_where_memory_is_not_told(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = explained(llama, True, spans="token").token_scores
    monkeypatch.setattr("jscope_tl.engine.vjp.available_bytes", lambda device: float("inf"))
    torch.testing.assert_close(explained(llama, True, spans="token").token_scores, expected)


def test_fisher_does_without_products(llama: Any) -> None:
    """A second derivative would need the graphs; an estimate takes more probes and says so."""
    kept, again = (explained(llama, way, scope="fisher", spans="message") for way in (False, True))
    assert any("Products with J were not computed" in warning for warning in again.warnings)
    exact = explained(llama, False, scope="fisher", spans="message", method="exact").token_scores
    for result in (kept, again):
        error = torch.zeros_like(exact) if result.token_stderr is None else result.token_stderr
        assert ((result.token_scores - exact).abs() <= 4 * error + 1e-4 * exact.max()).all()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"at": "blocks.1.hook_resid_pre"}, "hook points inside the layers"),
        ({"at": "pattern"}, "hook points inside the layers"),
        ({"gradient": "attnlrp"}, "gradient rules"),
        ({"fwd_hooks": [("blocks.1.hook_resid_pre", lambda x, hook: x)]}, "hooks of your own"),
    ],
)
def test_what_layers_cannot_run_again_with(
    llama: Any, how: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(llama)
    with pytest.raises(js.InputError, match=says):
        explained(llama, True, **how)
    assert snapshot(llama) == before
    monkeypatch.setattr(recomputed, "LONG", 1)
    monkeypatch.setattr(recomputed, "available_bytes", lambda device: 1000.0)
    assert not any("ran again" in warning for warning in explained(llama, None, **how).warnings)


def test_bad_values(llama: Any) -> None:
    with pytest.raises(js.InputError, match="recompute is True, False, or None"):
        set_up(llama, "log_prob", {}, recompute="yes")  # type: ignore[arg-type]


def test_nothing_of_the_users_is_changed(tiny: Tiny) -> None:
    before = snapshot(tiny.model)
    with torch.inference_mode():
        explained(tiny.model, True)
    assert snapshot(tiny.model) == before
    forward = [vars(block).get("forward") for block in tiny.model.blocks]
    explained(tiny.model, True)
    assert [vars(block).get("forward") for block in tiny.model.blocks] == forward
