"""Estimators of ``‖R J_t‖²`` on matrices that are written out."""

from typing import Any

import pytest
import torch
from scipy.special import stdtrit

from jscope_tl.engine.one_position import VJP
from jscope_tl.engine.vjp import Backward
from jscope_tl.scopes import trace
from jscope_tl.scopes.budget import Budget, Tolerance
from jscope_tl.scopes.factor import Matrix, leading_directions

pytestmark = [pytest.mark.slow, pytest.mark.newest_line]


def linear(J: torch.Tensor) -> VJP:
    """The engine on ``y = Σ_t J_t x_t``, with ``J [d_model, pos, d_in]`` at hand."""
    x = torch.zeros(1, *J.shape[1:]).requires_grad_()
    y = torch.einsum("dpi,npi->nd", J, x)
    return VJP(Backward([x], y, [J.shape[1] - 1], progress=False))


def trace_of(factor: torch.Tensor, J: torch.Tensor) -> torch.Tensor:
    return torch.einsum("kd,dpi->kpi", factor, J).square().sum((0, 2))


def power_law(d: int, pos: int, decay: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A factor with a slow spectrum, and a Jacobian with a faster one in other directions."""
    generator = torch.Generator().manual_seed(seed)
    basis, turned = (torch.linalg.qr(torch.randn(d, d, generator=generator)).Q for _ in range(2))
    sizes = torch.arange(1, d + 1.0) ** -decay
    J = (turned * sizes**2) @ torch.randn(d, pos * d, generator=generator)
    return basis * sizes[:, None], J.view(d, pos, d)


def adaptive(
    factor: torch.Tensor, rank: int, images: int, rtol: float, max_rows: int | None, seed: int, vjp: VJP
) -> Any:
    """Every position to ``rtol``, whatever the largest score is."""
    return trace.adaptive(Matrix(factor), rank, images, Tolerance(rtol), seed, vjp, Budget(vjp, max_rows))


def relative_errors(score: Any, factor: torch.Tensor, J: torch.Tensor) -> torch.Tensor:
    exact = trace_of(factor, J)
    return (score.values - exact) / exact


@pytest.mark.parametrize("images", [0, 5])
def test_unbiased(images: int) -> None:
    factor, J = power_law(60, 4, 0.5)
    errors = torch.stack(
        [
            relative_errors(trace.sampled(Matrix(factor), 8, images, 6, seed, linear(J)), factor, J)
            for seed in range(400)
        ]
    )
    assert (errors.mean(0).abs() < 4 * errors.std(0) / 400**0.5).all()
    assert errors.abs().max() > 1e-3


@pytest.mark.parametrize("decay", [0.2, 0.5, 1.0])
def test_stated_errors_hold(decay: float) -> None:
    """Two of them hold nine errors in ten, on average over draws; just under, where the rest is nearly of rank one."""
    factor, J = power_law(80, 6, decay)
    exact = trace_of(factor, J)
    within = []
    for seed in range(80):
        score = adaptive(factor, 12, 5, 0.1, None, seed, linear(J))
        within.append((score.values - exact).abs() <= 2 * score.stderr)
    assert torch.stack(within).float().mean() > (0.9 if decay < 1 else 0.87)


@pytest.mark.parametrize("probes", [8, 20])
def test_stated_errors_are_neither_too_small_nor_too_large(probes: int) -> None:
    """Against the variance of sign vectors, ``2 (‖M‖_F² - Σ M_ii²) / n`` with ``M`` what the known directions leave.

    What is stated is ``2 ‖M‖_F² / n``, widened as Student's t is. 100 draws at 30 positions: both are seen to about 3 %.
    """
    factor, _ = power_law(80, 1, 0.3)
    J = torch.randn(80, 30, 6, generator=torch.Generator().manual_seed(0))
    known = leading_directions(Matrix(factor), 4)
    rest = torch.einsum("nd,dpi->pni", factor - known.T @ (known @ factor), J)
    M = (rest @ rest.mT).double()
    scores = [trace.sampled(Matrix(factor), 4, 0, probes, seed, linear(J)) for seed in range(100)]
    errors = torch.stack([score.values - trace_of(factor, J) for score in scores]).double()
    stated = torch.stack([score.stderr for score in scores if score.stderr is not None]).double()
    whole, diagonal = M.square().sum((1, 2)), M.diagonal(dim1=1, dim2=2).square().sum(1)
    variance = 2 * (whole - diagonal) / probes
    assert float((errors.square().mean(0) / variance).mean()) == pytest.approx(1, abs=0.1)
    widened = float(stdtrit(probes - 1, 0.975)) / 1.96
    assert float((stated.square().mean(0) / (2 * whole / probes)).mean()) == pytest.approx(widened**2, rel=0.1)
    assert 0.93 < (errors.abs() < 2 * stated).float().mean() < 0.975


@pytest.mark.parametrize("probes", [8, 20])
def test_stated_errors_where_the_input_is_one_number(probes: int) -> None:
    """Two of them reach the upper end of the interval, which misses 2.5 % of the truths.

    Seen are about 2 %, since a sum of signs has lighter tails than a normal number; 3000 nearly independent draws make that
    good to 0.3 %. Twice the error would miss 0.4 % and less, half of it 9 % and more.
    """
    factor, _ = power_law(200, 1, 0.3)
    v = torch.randn(200, 30, 1, generator=torch.Generator().manual_seed(0))
    exact, missed = trace_of(factor, v), []
    for seed in range(100):
        score = trace.sampled(Matrix(factor), 2, 0, probes, seed, linear(v))
        missed.append(score.values + 2 * score.stderr < exact)
    assert 0.008 < torch.stack(missed).float().mean() < 0.045


@pytest.mark.parametrize("more", [-1, 0])
def test_all_directions_are_taken_as_soon_as_probes_are_expected_to_cost_as_much(more: int) -> None:
    """The tolerance is chosen so that after the first probes one fewer is wanted than there are directions left, or as many."""
    factor, J = power_law(60, 4, 0.3)
    rank, left = 4, 60 - 4
    first = trace.sampled(Matrix(factor), rank, 0, trace.BLOCK, 0, linear(J))
    assert first.stderr is not None
    worst = float((first.stderr / first.values).max())
    # ⌈n (worst / rtol)²⌉ probes are expected to meet rtol, n of which were drawn.
    rtol = worst * (trace.BLOCK / (trace.BLOCK + left + more - 0.5)) ** 0.5
    score = adaptive(factor, rank, 0, rtol, None, 0, linear(J))
    drawn = score.resolved.get("probes_given_up", score.resolved.get("probes"))
    if more < 0:
        assert drawn > trace.BLOCK
        return
    assert (score.stderr, drawn) == (None, trace.BLOCK)
    torch.testing.assert_close(score.values, trace_of(factor, J), rtol=1e-4, atol=0)
    # Where rows are limited: if all of them fit, to the last one.
    least = rank + trace.BLOCK + left
    for max_rows in (least, least - 1):
        vjp = linear(J)
        score = adaptive(factor, rank, 0, 1e-3, max_rows, 0, vjp)
        assert vjp.backward.passes.n_backward <= max_rows
        assert (score.stderr is None) == (max_rows == least)
        assert bool(score.warnings) == (max_rows < least)


@pytest.mark.parametrize("decay", [0.3, 0.6])
def test_images_halve_the_error(decay: float) -> None:
    factor, J = power_law(200, 6, decay)

    def error(rank: int, images: int, probes: int) -> tuple[float, int]:
        vjps = [linear(J) for _ in range(20)]
        scores = [trace.sampled(Matrix(factor), rank, images, probes, seed, vjp) for seed, vjp in enumerate(vjps)]
        errors = torch.stack([relative_errors(score, factor, J) for score in scores])
        return float(errors.square().mean().sqrt()), vjps[0].backward.passes.n_backward

    plain, cost = error(32, 0, 32)
    with_images, same_cost = error(24, 11, 16)
    assert same_cost <= cost == 64
    assert with_images < 0.6 * plain


@pytest.mark.parametrize(("n", "rtol", "exact"), [(400, 0.2, False), (60, 0.02, True), (400, 0.9, False)])
def test_adaptive_stops_neither_early_nor_late(n: int, rtol: float, exact: bool) -> None:
    """J of rank one, without images: each probe is as noisy as it can be, √2 of the score."""
    generator = torch.Generator().manual_seed(0)
    factor, v = torch.randn(n, 500, generator=generator), torch.randn(500, 3, 1, generator=generator)
    vjp = linear(v)
    score = adaptive(factor, 2, 0, rtol, None, 0, vjp)
    wanted = trace_of(factor, v)
    if exact:
        torch.testing.assert_close(score.values, wanted)
        assert score.stderr is None
        assert score.resolved["method"] == "exact"
    else:
        assert score.stderr is not None
        assert (score.stderr <= rtol * score.values).all()
        assert score.resolved["probes"] <= 8 / rtol**2 + 16
        assert ((score.values - wanted).abs() < 5 * score.stderr).all()


def test_giving_up_is_exact_and_costs_each_direction_once() -> None:
    factor, J = power_law(60, 4, 0.1)
    vjp = linear(J)
    score = adaptive(factor, 4, 3, 0.001, None, 0, vjp)
    torch.testing.assert_close(score.values, trace_of(factor, J), rtol=1e-4, atol=0)
    assert score.stderr is None
    products, shared = 3, 2
    assert vjp.backward.passes.n_backward == 60 + products + shared + score.resolved["probes_given_up"]
    assert score.weights is not None
    assert int((score.weights > 0).sum()) == 60


def test_weights_are_those_of_the_pulled_rows() -> None:
    """The score is the weighted sum of the squares of all rows, in the order in which they were pulled."""
    factor, J = power_law(60, 4, 0.4)
    for estimate in (
        lambda vjp: trace.sampled(Matrix(factor), 6, 3, 10, 1, vjp),
        lambda vjp: adaptive(factor, 4, 3, 0.001, None, 1, vjp),
    ):
        vjp = linear(J)
        seen: list[torch.Tensor] = []
        vjp.backward.capture = lambda rows, seen=seen: seen.append(rows[0])
        score = estimate(vjp)
        assert score.weights is not None
        squares = torch.cat(seen).square().sum(-1)
        torch.testing.assert_close(score.weights @ squares, score.values, rtol=1e-4, atol=0)


def test_the_same_seed_draws_the_same() -> None:
    factor, J = power_law(40, 3, 0.5)
    one, same, other = (trace.sampled(Matrix(factor), 4, 2, 6, seed, linear(J)).values for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_positions_without_influence() -> None:
    factor, J = power_law(40, 3, 0.5)
    J[:, 1] = 0
    score = adaptive(factor, 4, 2, 0.2, None, 0, linear(J))
    assert score.values[1] == 0
    assert score.values[[0, 2]].all()


def test_images_that_are_known_are_not_counted_twice() -> None:
    """S of three directions and more asked for: what is left is rounding."""
    factor, J = power_law(60, 4, 0.5)
    flat = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) @ factor[:3]
    for rank, images in ((2, 2), (4, 3), (12, 5)):
        score = trace.sampled(Matrix(flat), rank, images, 6, 0, linear(J))
        torch.testing.assert_close(score.values, trace_of(flat, J), rtol=1e-3, atol=0)


def test_more_images_than_leading_directions_are_not_taken() -> None:
    factor, J = power_law(60, 4, 0.5)
    score = trace.sampled(Matrix(factor), 4, 200, 6, 0, linear(J))
    assert score.resolved["images"] == 4


def test_out_of_memory_in_a_product_halves_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    J = power_law(40, 3, 0.5)[1]
    plain, wanted = torch.autograd.grad, linear(J).jvp(J[:6])

    def narrow(*args: Any, **how: Any) -> Any:
        if how.get("is_grads_batched") and len(args[2]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return plain(*args, **how)

    monkeypatch.setattr(torch.autograd, "grad", narrow)
    vjp = linear(J)
    vjp.backward.chunk_size = 6
    moved = vjp.jvp(J[:6])
    assert moved is not None
    assert wanted is not None
    torch.testing.assert_close(moved, wanted)
    assert "Memory ran out" in vjp.backward.notes[0]
