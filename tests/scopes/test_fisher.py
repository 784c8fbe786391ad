"""Fisher Scope: the paper's trace, its estimators' promises, and peaked distributions."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import jscope_tl as js
from jscope_tl.engine.memory import graph_bytes
from jscope_tl.scopes.factor import FisherFactor, principal_rows
from tests import models, oracles
from tests.conftest import dense
from tests.models import D_MODEL, TOKENS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("rank", [1, 3, D_MODEL])
def test_low_rank_is_the_partial_sum(tiny: models.Tiny, rank: int) -> None:
    result = js.attribute(tiny.model, TOKENS, "fisher", method="low_rank", rank=rank)
    o = dense(tiny.family, -1)
    assert oracles.relative_difference(result.scores, oracles.fisher_low_rank(o, rank)) < 1e-4
    assert result.provenance.n_backward == rank


def test_low_rank_defaults_to_the_leading_direction(llama: Any) -> None:
    one = js.attribute(llama, TOKENS, "fisher", method="low_rank")
    assert torch.equal(one.scores, js.attribute(llama, TOKENS, "fisher", method="low_rank", rank=1).scores)
    assert one.options["resolved"] == {"rank": 1}


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


def fisher_factor(D: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    S = FisherFactor(D.T, torch.ones_like(p), p.double(), D.dtype)
    return principal_rows(S.gram()) * S.size


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


def test_long_tails_of_wide_models_are_kept() -> None:
    """A power-law spectrum at d = 1024: the usual cut at d * eps would lose a percent where J is large along the tail."""
    d = 1024
    W = torch.randn(2000, d, generator=torch.Generator().manual_seed(0)) * torch.arange(1, d + 1) ** -0.9
    p = torch.full((2000,), 1 / 2000)
    R = fisher_factor(W, p)
    truth = oracles.fisher_matrix(_oracle(W.double(), torch.zeros(2000).double())).diag()
    gains = torch.arange(1, d + 1) ** 1.2
    torch.testing.assert_close((R * gains).square().sum().double(), truth @ gains.double() ** 2, rtol=1e-3, atol=0.0)


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


@pytest.mark.newest_line
@pytest.mark.parametrize("method", [{"method": "sampled", "rank": 2}, {"method": "krylov", "rank": 4, "images": 2}])
def test_estimates_over_many_seeds(llama: Any, method: dict[str, Any]) -> None:
    """The mean over seeds is the exact score, and the stated standard error is the spread that is seen or somewhat more:
    widened by 1.2 for 8 probes, and by what the signs leave out of the variance."""
    exact = js.attribute(llama, TOKENS, "fisher", method="exact").scores
    runs = [js.attribute(llama, TOKENS, "fisher", probes=8, seed=s, **method) for s in range(60)]
    scores = torch.stack([run.scores for run in runs])
    stated = torch.stack([run.stderr for run in runs if run.stderr is not None])
    spread = scores.std(0)
    assert ((scores.mean(0) - exact).abs() < 4 * spread / 60**0.5).all()
    ratio = stated.square().mean(0).sqrt() / spread
    assert ((ratio > 0.9) & (ratio < 1.9)).all()
    covered = (scores - exact).abs() < 2 * stated
    assert covered.float().mean() > 0.9


def test_sampled_says_what_it_did(llama: Any) -> None:
    result = js.attribute(llama, TOKENS, "fisher", method="sampled", rank=3, probes=5, seed=7)
    assert result.provenance.n_backward == 8
    assert result.provenance.seed == 7
    assert result.options["resolved"].items() >= {"rank": 3, "images": 0, "probes": 5}.items()
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


@pytest.mark.parametrize("rtol", [0.3, 0.05, 0.01, 1e-6])
def test_auto_meets_its_tolerance(pocket: Any, rtol: float) -> None:
    prompt = "the keys to the cabinet near the doors"
    result = js.attribute(pocket, prompt, "fisher", rtol=rtol, atol=0.0)
    exact = js.attribute(pocket, prompt, "fisher", method="exact")
    if result.stderr is not None:
        assert (result.stderr <= rtol * result.scores).all()
        assert ((result.scores - exact.scores).abs() <= 5 * result.stderr).all()
        assert result.provenance.n_backward < exact.provenance.n_backward
    else:
        torch.testing.assert_close(result.scores, exact.scores, rtol=1e-4, atol=1e-6)
    assert (result.stderr is None) == (rtol == 1e-6)
    assert result.warnings == []


@pytest.mark.parametrize("max_rows", [32, 33, 60, 100])
def test_auto_says_what_it_could_not_meet(pocket: Any, max_rows: int) -> None:
    result = js.attribute(
        pocket,
        "the keys to the cabinet near the doors",
        "fisher",
        rtol=1e-4,
        atol=0.0,
        rank=12,
        images=5,
        max_rows=max_rows,
    )
    assert max_rows - 1 <= result.provenance.n_backward <= max_rows
    assert result.stderr is not None
    assert any(f"Stopped by max_rows={max_rows}, before rtol=0.0001" in warning for warning in result.warnings)


@pytest.mark.parametrize("max_seconds", [1e-9, 1e-3])
def test_time_that_is_short_leaves_three_rows(pocket: Any, max_seconds: float) -> None:
    """The first row has to be taken to know its time, and a standard error takes two probes."""
    prompt = "the keys to the cabinet near the doors"
    result = js.attribute(pocket, prompt, "fisher", rtol=1e-4, max_seconds=max_seconds)
    assert result.provenance.n_backward == 3
    assert any(f"Stopped by max_seconds={max_seconds:g}" in warning for warning in result.warnings)
    exact = js.attribute(pocket, prompt, "fisher", method="exact")
    assert result.stderr is not None
    assert ((result.scores - exact.scores).abs() < 2 * result.stderr).float().mean() > 0.7


def test_time_that_is_long_changes_nothing(pocket: Any) -> None:
    prompt = "the keys to the cabinet near the doors"
    plain, limited = (js.attribute(pocket, prompt, "fisher", max_seconds=s) for s in (None, 1e4))
    assert torch.equal(plain.scores, limited.scores)
    assert limited.warnings == []


def test_a_tight_rtol_holds_at_the_highest_score(pocket: Any) -> None:
    """Unless it is given, ``atol`` is a fifth of ``rtol`` and at most a hundredth."""
    prompt = "the keys to the cabinet near the doors"
    result = js.attribute(pocket, prompt, "fisher", rank=6, images=3, rtol=4e-3)
    assert result.stderr is not None
    top = result.scores[1:].argmax() + 1
    assert result.stderr[top] <= 4e-3 * result.scores[top]
    assert (result.stderr <= torch.maximum(4e-3 * result.scores, 8e-4 * result.scores[top])).all()


def test_small_scores_are_held_to_a_fraction_of_the_largest(pocket: Any) -> None:
    prompt = "the keys to the cabinet near the doors"
    exact = js.attribute(pocket, prompt, "fisher", method="exact").scores
    tight, loose = (
        js.attribute(pocket, prompt, "fisher", rank=2, images=0, rtol=0.04, atol=atol) for atol in (0.0, 0.08)
    )
    assert loose.provenance.n_backward < tight.provenance.n_backward
    assert loose.stderr is not None
    allowed = torch.maximum(0.04 * loose.scores, 0.08 * loose.scores[1:].max())
    assert (loose.stderr <= allowed).all()
    assert ((loose.scores - exact).abs() <= 4 * loose.stderr).all()


def test_auto_is_exact_where_the_rows_allow_it(pocket: Any) -> None:
    prompt = "the keys to the cabinet near the doors"
    for max_rows in (None, 200):
        result = js.attribute(pocket, prompt, "fisher", rtol=1e-6, atol=0.0, max_rows=max_rows)
        assert result.stderr is None
        assert result.warnings == []
    with pytest.raises(js.InputError, match="max_rows=20 is too few: rank=12, images=7"):
        js.attribute(pocket, prompt, "fisher", max_rows=20, rank=12)


@pytest.mark.parametrize("max_rows", [9, 10, 11, 17, 40])
def test_few_rows_are_shared_out(pocket: Any, max_rows: int) -> None:
    """Without a rank of one's own, leading directions, images and probes fit what there is."""
    result = js.attribute(pocket, "the keys near the door", "fisher", rtol=1e-4, atol=0.0, max_rows=max_rows)
    assert max_rows - 1 <= result.provenance.n_backward <= max_rows
    assert result.stderr is not None


@pytest.mark.parametrize("sharpness", [1.0, 3.0, 10.0, 30.0, 100.0])
@pytest.mark.parametrize("rtol", [0.05, 1e-3])
def test_estimates_of_certain_predictions(sharpness: float, rtol: float) -> None:
    """Peaked distributions have a tiny F_u of few directions: nothing is counted twice, nothing vanishes when squared."""
    prompt = "the keys to the cabinet near the doors"
    model = js.load_pocket_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "unembed" in name or "lm_head" in name:
                parameter *= sharpness
    exact = js.attribute(model, prompt, "fisher", method="exact").scores
    result = js.attribute(model, prompt, "fisher", rtol=rtol)
    assert (result.prediction.top[0].probability > 0.999) == (sharpness > 1)
    error = (result.scores - exact).abs()
    allowed = 1e-4 * exact if result.stderr is None else 4 * result.stderr + 1e-4 * exact
    assert (error <= allowed).all()


def test_influence_patterns_pass_the_doubts_on(pocket: Any) -> None:
    options = {"rtol": 1e-4, "atol": 0.0, "max_rows": 40, "rank": 12}
    pattern = js.influence_pattern(pocket, "the keys to the cabinet", "fisher", [2, 4], **options)
    assert sum("Stopped by max_rows=40" in warning for warning in pattern.warnings) >= 1
    assert pattern.provenance.n_backward <= 80


def test_images_of_the_leading_directions(pocket: Any) -> None:
    """With the images of all leading directions and as many probes, the error is smaller than without them."""
    prompt = js.pocket_prompts("translation", 1)[0].text
    exact = js.attribute(pocket, prompt, "fisher", method="exact").scores

    def error(**options: Any) -> float:
        runs = [js.attribute(pocket, prompt, "fisher", seed=seed, **options).scores for seed in range(12)]
        return float(((torch.stack(runs) - exact) / exact).square().mean().sqrt())

    assert error(method="krylov", rank=24, images=11, probes=5) < error(method="sampled", rank=32, probes=32)


def test_layer_maps_are_estimated_too(pocket: Any) -> None:
    prompt = "the keys to the cabinet near the doors"
    exact = js.attribute(pocket, prompt, "fisher", method="exact", at="resid_pre")
    runs = [js.attribute(pocket, prompt, "fisher", at="resid_pre", seed=seed) for seed in range(8)]
    mean = torch.stack([run.scores for run in runs]).mean(0)
    assert float(((mean - exact.scores).abs() / exact.scores).mean()) < 0.02
    for run in runs:
        assert run.stderr is not None
        assert run.stderr.shape == run.scores.shape


def test_models_without_second_derivatives(kind: str) -> None:
    """Then probes alone do it, and the result says so."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * 1

    model = models.tiny(kind, "llama").model
    hooks = [("blocks.1.hook_resid_pre", lambda resid, hook: Once.apply(resid))]
    with_hook = js.attribute(
        model, TOKENS, "fisher", method="krylov", rank=4, images=4, probes=64, fwd_hooks=hooks, chunk_size=1
    )
    exact = js.attribute(model, TOKENS, "fisher", method="exact")
    assert with_hook.options["resolved"]["images"] == 0
    assert any("Products with J were not available" in warning for warning in with_hook.warnings)
    assert with_hook.stderr is not None
    assert ((with_hook.scores - exact.scores).abs() < 5 * with_hook.stderr).all()


def test_products_that_memory_does_not_allow_are_not_taken(pocket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jscope_tl.engine.jvp.available_bytes", lambda device: 1e4)
    prompt = "the keys to the cabinet near the doors"
    result = js.attribute(pocket, prompt, "fisher")
    exact = js.attribute(pocket, prompt, "fisher", method="exact")
    assert result.options["resolved"]["images"] == 0
    assert any("Products with J were not computed: they need about" in warning for warning in result.warnings)
    assert result.stderr is not None
    assert ((result.scores - exact.scores).abs() < 5 * result.stderr).all()


def test_bytes_of_a_graph() -> None:
    """A tanh keeps its result and a product what it multiplies; the weight and the input are not the graph's own."""
    x, W = torch.randn(1, 7, 30, requires_grad=True), torch.randn(30, 50)
    hidden = (x @ W).tanh()
    assert graph_bytes((hidden @ W.T).sum(-1)) == 4 * hidden.numel()
    assert graph_bytes((hidden.exp() @ W.T).sum(-1)) == 4 * 2 * hidden.numel()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is a whole number, 1 or more"),
        ({"rank": True}, "rank"),
        ({"probes": 1}, "probes is a whole number, 2 or more"),
        ({"images": -1}, "images is a whole number, 0 or more"),
        ({"max_rows": 0}, "max_rows is a whole number, 1 or more"),
        ({"seed": -1}, "seed"),
        ({"rtol": 0.0}, "rtol"),
        ({"rtol": 1.5}, "rtol"),
        ({"atol": -0.1}, "atol is the standard error to reach relative to the largest score"),
        ({"atol": 1.0}, "atol"),
        ({"method": "exact", "max_rows": 40}, "max_rows limits method='auto'; 'exact' takes a fixed number"),
        ({"method": "sampled", "max_seconds": 1.0}, "max_seconds limits method='auto'"),
        ({"max_seconds": 0.0}, "max_seconds is the time that the backward passes may take and must be above 0"),
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


def test_whole_numbers_of_numpys_will_do(llama: Any) -> None:
    make = inspect.unwrap(js.FisherScope.__init__)
    scope = object.__new__(js.FisherScope)
    make(scope, method="sampled", rank=np.int64(2), probes=np.int64(4), seed=np.int64(3))
    found = js.attribute(llama, TOKENS, scope)
    plain = js.attribute(llama, TOKENS, "fisher", method="sampled", rank=2, probes=4, seed=3)
    assert torch.equal(found.scores, plain.scores)
