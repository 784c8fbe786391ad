"""Fisher Scope: the paper's trace, its estimators' promises, and peaked distributions."""

from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.scopes.fisher import _auto, fisher_factor, probe_rows
from tests import models, oracles
from tests.conftest import dense
from tests.models import D_MODEL, TOKENS


@pytest.mark.parametrize("rank", [1, 3, D_MODEL])
def test_low_rank_is_the_partial_sum(tiny: models.Tiny, rank: int) -> None:
    result = js.attribute(tiny.model, TOKENS, "fisher", method="low_rank", rank=rank)
    o = dense(tiny.family, -1)
    assert oracles.relative_difference(result.scores, oracles.fisher_low_rank(o, rank)) < 1e-4
    assert result.provenance.n_backward == rank


def test_low_rank_defaults_to_the_leading_direction(llama: Any) -> None:
    one = js.attribute(llama, TOKENS, "fisher", method="low_rank")
    assert torch.equal(one.scores, js.attribute(llama, TOKENS, "fisher", method="low_rank", rank=1).scores)
    assert 0 < one.options["resolved"]["share_of_trace_F_u"] < 1


def test_low_rank_grows_to_the_trace(llama: Any) -> None:
    exact = js.attribute(llama, TOKENS, "fisher", method="exact").scores
    previous = torch.zeros_like(exact)
    for rank in (1, 2, 4, 8, 16, 32):
        scores = js.attribute(llama, TOKENS, "fisher", method="low_rank", rank=rank).scores
        assert (scores >= previous * (1 - 1e-5)).all()
        assert (scores <= exact * (1 + 1e-4)).all()
        previous = scores
    torch.testing.assert_close(previous, exact, rtol=1e-4, atol=1e-6)


def test_exact_costs_at_most_d_model_backward_passes(llama: Any) -> None:
    result = js.attribute(llama, TOKENS, "fisher", method="exact")
    assert result.provenance.n_backward <= D_MODEL
    assert result.stderr is None
    assert result.provenance.seed is None


def test_factor_is_the_matrix() -> None:
    o = dense("gemma2", -1)
    R = fisher_factor(o.D, o.p)
    torch.testing.assert_close(R.T @ R, oracles.fisher_matrix(o))
    norms = R.norm(dim=1)
    assert (norms[:-1] >= norms[1:]).all()


def test_weak_directions_are_kept() -> None:
    """Directions with a ten-thousandth of the leading eigenvalue matter where J is large along them."""
    W = torch.randn(500, D_MODEL, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, D_MODEL)
    R = fisher_factor(W, torch.full((500,), 1 / 500))
    truth = oracles.fisher_matrix(_oracle(W.double(), torch.zeros(500).double()))
    weights = torch.logspace(0, 2, D_MODEL)
    torch.testing.assert_close(
        (R * weights).square().sum().double(), truth.diag() @ weights.double() ** 2, rtol=1e-4, atol=0
    )
    assert len(R) == D_MODEL


@pytest.mark.parametrize(("n", "rtol", "method"), [(400, 0.2, "sampled"), (60, 0.1, "exact"), (400, 0.9, "sampled")])
def test_auto_stops_neither_early_nor_late(n: int, rtol: float, method: str) -> None:
    """J of rank one: each probe is as noisy as it can be, √2 of the score, so about 2/rtol² of them are needed."""
    generator = torch.Generator().manual_seed(0)
    factor, v = torch.randn(n, 500, generator=generator), torch.randn(500, 3, generator=generator)

    def energies(cotangents: torch.Tensor, more_to_come: bool = False) -> torch.Tensor:
        return (cotangents @ v).square()

    score = _auto(factor, 2, rtol, 0, energies)
    exact = energies(factor).sum(0)
    assert score.resolved["method"] == method
    if method == "exact":
        torch.testing.assert_close(score.values, exact)
        assert score.stderr is None
    else:
        assert score.stderr is not None
        assert (score.stderr <= rtol * score.values).all()
        assert score.resolved["probes"] <= 8 / rtol**2 + 16
        assert ((score.values - exact).abs() < 5 * score.stderr).all()


def test_long_tails_of_wide_models_are_kept() -> None:
    """A power-law spectrum at d = 1024: the usual cut at d * eps would lose a percent where J is large along the tail."""
    d = 1024
    W = torch.randn(2000, d, generator=torch.Generator().manual_seed(0)) * torch.arange(1, d + 1) ** -0.9
    p = torch.full((2000,), 1 / 2000)
    R = fisher_factor(W, p)
    truth = oracles.fisher_matrix(_oracle(W.double(), torch.zeros(2000).double())).diag()
    gains = torch.arange(1, d + 1) ** 1.2
    torch.testing.assert_close((R * gains).square().sum().double(), truth @ gains.double() ** 2, rtol=1e-3, atol=0)


@pytest.mark.parametrize("scope", ["log_prob", "entropy", "fisher"])
@pytest.mark.parametrize(("sharpness", "uncertainty"), [(60.0, 2e-2), (250.0, 1e-6)])
def test_almost_certain_predictions(kind: str, scope: str, sharpness: float, uncertainty: float) -> None:
    """1 - p is tiny: in float32 it would cancel against 1, in float16 vanish."""
    options = {"method": "exact"} if scope == "fisher" else {}
    scores = {}
    for dtype in (torch.float16, torch.float32, torch.float64):
        model = models.tiny(kind, "gpt2").model
        parameter = model.unembed.W_U if kind == "hooked" else model.unembed.weight
        with torch.no_grad():
            parameter *= sharpness
        result = js.attribute(model.to(dtype), TOKENS, scope, **options)
        assert result.warnings == []
        scores[dtype] = result.scores.double()
    assert sum(candidate.probability for candidate in result.prediction.top[1:]) < uncertainty
    assert oracles.relative_difference(scores[torch.float32], scores[torch.float64]) < 1e-3
    assert (scores[torch.float16] > 0).all()


def test_predictions_too_certain_for_anything_are_said_to_be_so(kind: str) -> None:
    model = models.tiny(kind, "gpt2").model
    parameter = model.unembed.W_U if kind == "hooked" else model.unembed.weight
    with torch.no_grad():
        parameter *= 1e5
    result = js.attribute(model, TOKENS, "entropy")
    assert not result.scores.any()
    assert any("Every score is 0" in warning for warning in result.warnings)


@pytest.mark.parametrize("factor", [0.75, 0.95])
def test_scaled_logits_behind_the_unembedding_are_noticed(kind: str, factor: float) -> None:
    model = models.tiny(kind, "llama").model
    model.unembed.register_forward_hook(lambda module, args, output: output * factor)
    with pytest.raises(js.InputError, match="more than that"):
        js.attribute(model, TOKENS, "fisher", method="exact")


def test_peaked_distributions_do_not_cancel() -> None:
    """As printed, float32 loses everything in S - μμ^T where p is almost one-hot; centred first it does not."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(500, D_MODEL, generator=generator) + 3.0
    logits = torch.randn(500, generator=generator)
    logits[7] = 22.0
    p = logits.softmax(0)
    truth = oracles.fisher_matrix(_oracle(W.double(), logits.double()))
    printed = W.T @ (torch.diag(p) - torch.outer(p, p)) @ W
    R = fisher_factor(W, p)
    assert (printed - truth).norm() / truth.norm() > 1.0
    assert (R.T @ R - truth).norm() / truth.norm() < 1e-3


def _oracle(D: torch.Tensor, z: torch.Tensor) -> oracles.Oracle:
    nothing = torch.zeros(0)
    return oracles.Oracle(nothing, nothing, nothing, z, D)


def test_certain_predictions_score_zero() -> None:
    p = torch.zeros(9)
    p[4] = 1
    assert (fisher_factor(torch.randn(9, 5), p) == 0).all()


def test_probes_are_unbiased_and_reproducible() -> None:
    o = dense("llama", -1)
    factor = fisher_factor(o.D, o.p)[4:]
    exact = sum(oracles.norm_score(o.J, row) ** 2 for row in factor)
    probes = probe_rows(factor, 4000, torch.Generator().manual_seed(0))
    energies = torch.einsum("kd,dpi->kpi", probes, o.J).square().sum(-1)
    error = energies.mean(0) - exact
    assert (error.abs() < 4 * energies.std(0) / 4000**0.5).all()
    assert torch.equal(probes, probe_rows(factor, 4000, torch.Generator().manual_seed(0)))


def test_sampled_over_many_seeds(llama: Any) -> None:
    """The mean over seeds is the exact score, and the stated standard error is the spread that is seen."""
    exact = js.attribute(llama, TOKENS, "fisher", method="exact").scores
    runs = [js.attribute(llama, TOKENS, "fisher", method="sampled", rank=2, probes=8, seed=s) for s in range(60)]
    scores = torch.stack([run.scores for run in runs])
    stated = torch.stack([run.stderr for run in runs if run.stderr is not None])
    spread = scores.std(0)
    assert ((scores.mean(0) - exact).abs() < 4 * spread / 60**0.5).all()
    ratio = stated.square().mean(0).sqrt() / spread
    assert ((ratio > 0.7) & (ratio < 1.4)).all()
    covered = (scores - exact).abs() < 2 * stated
    assert covered.float().mean() > 0.8  # 8 probes: a t distribution, wider than the normal one


def test_sampled_says_what_it_did(llama: Any) -> None:
    result = js.attribute(llama, TOKENS, "fisher", method="sampled", rank=3, probes=5, seed=7)
    assert result.provenance.n_backward == 8
    assert result.provenance.seed == 7
    assert result.options["resolved"] == {"rank": 3, "probes": 5}
    assert result.stderr is not None
    assert (result.stderr > 0).all()
    again = js.attribute(llama, TOKENS, "fisher", method="sampled", rank=3, probes=5, seed=7)
    assert torch.equal(result.scores, again.scores)


def test_sampling_nothing_is_exact(llama: Any) -> None:
    result = js.attribute(llama, TOKENS, "fisher", method="sampled", rank=D_MODEL)
    exact = js.attribute(llama, TOKENS, "fisher", method="exact")
    torch.testing.assert_close(result.scores, exact.scores)
    assert result.stderr is None
    assert result.options["resolved"]["method"] == "exact"


def test_auto_is_exact_where_that_is_no_dearer(llama: Any) -> None:
    result = js.attribute(llama, TOKENS, "fisher")
    assert result.options["resolved"]["method"] == "exact"
    assert result.provenance.n_backward <= D_MODEL


@pytest.mark.parametrize("rtol", [0.3, 0.05, 1e-4])
def test_auto_meets_its_tolerance(pocket: Any, rtol: float) -> None:
    prompt = "the keys to the cabinet near the doors"
    result = js.attribute(pocket, prompt, "fisher", rtol=rtol)
    exact = js.attribute(pocket, prompt, "fisher", method="exact")
    resolved = result.options["resolved"]
    if resolved["method"] == "sampled":
        assert result.stderr is not None
        assert (result.stderr <= rtol * result.scores).all()
        assert result.provenance.n_backward == resolved["rank"] + resolved["probes"] < exact.provenance.n_backward
        assert ((result.scores - exact.scores).abs() <= 5 * result.stderr).all()
    else:
        torch.testing.assert_close(result.scores, exact.scores, rtol=1e-4, atol=1e-6)
    if rtol == 1e-4:
        assert resolved["method"] == "exact"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is a whole number, 1 or more"),
        ({"rank": True}, "rank"),
        ({"probes": 1}, "probes is a whole number, 2 or more"),
        ({"seed": -1}, "seed"),
        ({"rtol": 0.0}, "rtol"),
        ({"rtol": 1.5}, "rtol"),
        ({"seed": 2**70}, "seed"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(js.InputError, match=message):
        js.FisherScope(**options)


def test_unknown_methods_and_too_high_ranks(llama: Any) -> None:
    with pytest.raises(js.InputError, match="Did you mean 'exact'"):
        js.get_scope("fisher")(method="exakt")
    with pytest.raises(js.InputError, match="only 32 directions"):
        js.attribute(llama, TOKENS, "fisher", method="low_rank", rank=33)


def test_refuses_logits_that_are_not_elementwise(llama: Any) -> None:
    """A hook that mixes logits after the unembedding: D as built would be wrong, so it is not used."""
    handle = llama.unembed.register_forward_hook(lambda module, args, output: output.flip(-1))
    try:
        with pytest.raises(js.InputError, match="more than that"):
            js.attribute(llama, TOKENS, "fisher", method="exact")
        assert js.attribute(llama, TOKENS, "semantic", target=3).scores.isfinite().all()
    finally:
        handle.remove()
