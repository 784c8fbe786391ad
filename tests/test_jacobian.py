"""Jacobians against the dense oracle and against finite differences."""

import inspect
from typing import Any

import pytest
import torch

import jscope_tl as js
from tests import models
from tests.conftest import dense, shared_tiny
from tests.models import D_MODEL, TOKENS


def test_full_jacobian_is_the_oracles(tiny: models.Tiny) -> None:
    J = js.jacobian(tiny.model, TOKENS)
    assert J.shape == (D_MODEL, len(TOKENS), D_MODEL)
    torch.testing.assert_close(J.double(), dense(tiny.family, -1).J, rtol=1e-3, atol=1e-4)


def test_projected_is_the_product_with_the_full(llama: Any) -> None:
    C = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(0))
    full = js.jacobian(llama, TOKENS, position=4)
    torch.testing.assert_close(js.jacobian(llama, TOKENS, C, position=4), torch.einsum("kd,dpi->kpi", C, full))
    torch.testing.assert_close(js.jacobian(llama, TOKENS, C[0], position=4)[0], torch.einsum("d,dpi->pi", C[0], full))
    assert (full[:, 5:] == 0).all()


@pytest.mark.parametrize("at", ["hook_embed", "blocks.1.hook_resid_post"])
def test_finite_differences(kind: str, at: str) -> None:
    """GPT-2 computes in true float64 on every class, so a central difference is good to 1e-7 or so."""
    model = shared_tiny(kind, "gpt2", torch.float64).model
    J = js.jacobian(model, TOKENS, at=at)
    step = torch.randn(D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def y(eps: float, t: int) -> torch.Tensor:
        kept = []

        def nudge(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            activation = activation.clone()
            activation[0, t] += eps * step
            return activation

        handle = model.unembed.register_forward_pre_hook(lambda module, args: kept.append(args[0][0, -1]))
        with torch.no_grad():
            model.run_with_hooks(TOKENS[None], fwd_hooks=[(at, nudge)])
        handle.remove()
        return kept[0]

    for t in range(len(TOKENS)):
        difference = (y(1e-5, t) - y(-1e-5, t)) / 2e-5
        torch.testing.assert_close(J[:, t] @ step, difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cotangents", [torch.ones(3, 7), torch.ones(1, 2, D_MODEL), 3.0, torch.empty(0, D_MODEL)])
def test_bad_cotangents(llama: Any, cotangents: Any) -> None:
    with pytest.raises(js.InputError, match=r"\[k, d_model\].*d_model = 32"):
        inspect.unwrap(js.jacobian)(llama, TOKENS, cotangents)


@pytest.mark.parametrize("chunk_size", [0, -1, 2.5, True])
def test_bad_chunk_sizes(llama: Any, chunk_size: Any) -> None:
    for call in (js.jacobian, js.attribute):
        with pytest.raises(js.InputError, match="chunk_size"):
            inspect.unwrap(call)(llama, TOKENS, chunk_size=chunk_size)


@pytest.mark.parametrize("value", [float("nan"), 1j])
def test_cotangents_are_real_and_finite(llama: Any, value: Any) -> None:
    with pytest.raises(js.InputError, match="real, finite"):
        inspect.unwrap(js.jacobian)(llama, TOKENS, torch.full((D_MODEL,), value))
