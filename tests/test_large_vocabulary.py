"""Numbers that a vocabulary of real size brings into danger: sums over all its tokens in float32, held against float64."""

import functools
import math
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.engine.state import product
from tests import models, oracles
from tests.models import TOKENS, tiny

N_LOGITS = 262_144
TOLERANCE = 1e-5
"""For scores: what float32 leaves of the tiny models' own passes is below 3e-6."""
SUMMED = 5e-6
"""For a sum over the vocabulary: below 4e-6 in several rows, 8e-6 to 1e-3 token by token."""


def unembedding(d_model: int) -> torch.Tensor:
    """Tokens have a direction in common, as in trained models, and one of them is likely: small terms are added to a large sum."""
    generator = torch.Generator().manual_seed(0)
    W_U = 0.3 * torch.randn(d_model, N_LOGITS, generator=generator)
    return W_U + torch.randn(d_model, 1, generator=generator)


@functools.cache
def with_large_vocabulary(kind: str, family: str) -> tuple[Any, Any]:
    """A tiny model that predicts `N_LOGITS` tokens, and the same in float64."""
    return _enlarged(kind, family, torch.float32), _enlarged(kind, family, torch.float64)


def _enlarged(kind: str, family: str, dtype: torch.dtype) -> Any:
    model, W_U = tiny(kind, family, dtype).model, unembedding(models.D_MODEL).to(dtype)
    if kind == "hooked":
        model.unembed.W_U = torch.nn.Parameter(W_U)
        model.unembed.b_U = torch.nn.Parameter(torch.zeros(N_LOGITS, dtype=dtype))
    else:
        model.unembed.original_component.weight = torch.nn.Parameter(W_U.T.contiguous())
        model.unembed.original_component.bias = None
    return model


@pytest.mark.parametrize("scope", oracles.SCOPES)
def test_scores_are_those_of_float64(kind: str, family: str, scope: str) -> None:
    options = oracles.SCOPES[scope][0]
    found, expected = (js.attribute(model, TOKENS, scope, **options) for model in with_large_vocabulary(kind, family))
    assert expected.provenance.dtype == "float64"
    assert oracles.relative_difference(found.scores, expected.scores) < TOLERANCE


@pytest.mark.parametrize("positions", [[-1], [3, -1]])  # of several positions, products with W_U take autograd's place
@pytest.mark.parametrize("name", ["log_prob", "logit_temperature", "entropy"])
def test_a_gradient_is_that_of_float64(kind: str, family: str, name: str, positions: list[int]) -> None:
    """The sum over the vocabulary by itself, at the logits that the float32 model has."""
    errors = []

    def watched(state: js.State) -> torch.Tensor:
        quantity = js.get_scope(name)().quantity(state)
        (u,) = torch.autograd.grad(quantity(state.logits), state.logits, retain_graph=True)
        expected = state.W_U.double() @ (u * state.slope.double())
        found = state.gradient(quantity)
        errors.append(oracles.relative_difference(found, expected))
        return found

    js.influence_pattern(with_large_vocabulary(kind, family)[0], TOKENS, watched, positions)
    assert len(errors) >= len(positions)
    assert max(errors) < SUMMED


def test_behind_a_hook_that_cannot_be_batched(kind: str) -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: torch.Tensor) -> torch.Tensor:
            return 2 * z

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * (2.0 if math.isfinite(gradient.sum().item()) else 0.0)

    scores = []
    for model in with_large_vocabulary(kind, "llama"):
        handle = model.unembed.register_forward_hook(lambda module, args, z: Doubled.apply(z))
        scores.append(js.attribute(model, TOKENS, "entropy").scores)
        handle.remove()
    assert oracles.relative_difference(*scores) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 512, 1000, N_LOGITS])
def test_a_product_is_as_good_as_its_factors(dtype: torch.dtype, n: int) -> None:
    """Half precision is that of the weights, not of the sum."""
    W = unembedding(models.D_MODEL)[:, :n].to(dtype)
    u = torch.linspace(0, 12, n).neg().exp().double()
    assert oracles.relative_difference(product(W, u), W.double() @ u) < 1e-6
