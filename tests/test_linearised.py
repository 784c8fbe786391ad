"""Where the model is linearised, in which coordinates, and with what held constant: against naive restatements."""

import contextlib
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import jscope_tl as js
from tests import models, oracles
from tests.conftest import dense
from tests.models import D_MODEL, TOKENS, Tiny, snapshot

TARGET = 44
exact = partial(js.attribute, progress=False)


def gradient(o: oracles.Oracle) -> Tensor:
    """Of the target's logit, ``[pos, d]``."""
    return torch.einsum("d,dpi->pi", o.D[TARGET], o.J)


def test_dot_and_elementwise(tiny: Tiny) -> None:
    o = dense(tiny.family, -1)
    dot = exact(tiny.model, TOKENS, "semantic", target=TARGET, reduction="dot")
    assert oracles.relative_difference(dot.scores, (gradient(o) * o.x).sum(-1).abs()) < 2e-5
    elementwise = exact(tiny.model, TOKENS, "semantic", target=TARGET, reduction="elementwise")
    assert oracles.relative_difference(elementwise.scores, (gradient(o) * o.x).norm(dim=-1)) < 2e-5
    assert dot.unit == elementwise.unit == "logit"
    assert dot.scope == "semantic, dot"
    assert dot.options["reduction"] == "dot"


@pytest.mark.slow
def test_every_scope_takes_every_reduction(llama: Any) -> None:
    """By Cauchy and Schwarz, ``|r·x| ≤ ‖r‖ ‖x‖`` and ``‖r ⊙ x‖ ≤ ‖r‖ ‖x‖``; for Fisher half of the squares."""
    x = dense("llama", -1).x.norm(dim=-1)
    for name, (options, _) in oracles.SCOPES.items():
        scores = {
            reduction: exact(llama, TOKENS, name, reduction=reduction, **options).scores
            for reduction in ("row_norm", "dot", "elementwise")
        }
        most = scores["row_norm"] * x if "fisher" not in name else 0.5 * scores["row_norm"] * x**2
        for reduction in ("dot", "elementwise"):
            assert (scores[reduction] <= most * (1 + 1e-4)).all()
            assert (scores[reduction] > 0).any()


@pytest.mark.parametrize("method", ["low_rank", "sampled", "krylov", "auto"])
def test_estimates_of_the_second_order_prediction(llama: Any, method: str) -> None:
    rank = {"rank": D_MODEL} if method == "low_rank" else {"rank": 4}
    if method in ("krylov", "auto"):
        rank["images"] = 2
    found = exact(llama, TOKENS, "fisher_input", method=method, **rank)
    expected = oracles.fisher_input(dense("llama", -1))
    if found.stderr is None:
        assert oracles.relative_difference(found.scores, expected) < 1e-4
    else:
        off = (found.scores - expected).abs()
        assert (off <= 4 * found.stderr + 1e-5 * expected.max()).all()


def test_the_input_is_measured_from_the_origin(tiny: Tiny) -> None:
    o = dense(tiny.family, -1)
    own = torch.randn(len(TOKENS), D_MODEL, generator=torch.Generator().manual_seed(0))
    found = exact(tiny.model, TOKENS, "fisher_input", method="exact", path=js.Point(origin=own))
    assert oracles.relative_difference(found.scores, oracles.fisher_input(o, own)) < 2e-5


@pytest.mark.parametrize("name", ["bos", "pad", "mean"])
def test_named_origins(tiny: Tiny, name: str) -> None:
    o = dense(tiny.family, -1)
    ids = {"bos": [0], "pad": [2], "mean": list(range(models.D_VOCAB))}[name]
    x0 = oracles.trunk(tiny.hf, torch.tensor(ids), -1)[1].mean(0)
    found = exact(tiny.model, TOKENS, "semantic", target=TARGET, reduction="dot", path=js.Point(origin=name))
    expected = (gradient(o) * (o.x - x0)).sum(-1).abs()
    assert oracles.relative_difference(found.scores, expected) < 5e-5


def averaged(tiny: Tiny, points: list[Tensor]) -> Tensor:
    """The mean gradient of the target's logit over some inputs."""
    hf = oracles.copy.deepcopy(tiny.hf).double()
    f, _ = oracles.trunk(hf, TOKENS, -1)

    def logit(x: Tensor) -> Tensor:
        return oracles.logits_of(hf, f(x))[TARGET]

    return torch.stack([torch.autograd.functional.jacobian(logit, x.double()) for x in points]).mean(0)


def test_integrated_gradients(tiny: Tiny) -> None:
    """Eqs. 9 and 10, and the plain mean gradient along the line."""
    x = dense(tiny.family, -1).x
    own = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1)).double() * x.std()
    mean = averaged(tiny, [own + (i + 0.5) / 5 * (x - own) for i in range(5)])
    path = js.Line(steps=5, origin=own.float())
    for reduction, expected in [
        ("row_norm", mean.norm(dim=-1)),
        ("elementwise", (mean * (x - own)).norm(dim=-1)),
        ("dot", (mean * (x - own)).sum(-1).abs()),
    ]:
        found = exact(tiny.model, TOKENS, "semantic", target=TARGET, path=path, reduction=reduction)
        assert oracles.relative_difference(found.scores, expected) < 5e-5
        assert found.provenance.n_backward == 5


def test_smoothed_gradients(tiny: Tiny) -> None:
    x = dense(tiny.family, -1).x
    path = js.Noise(samples=6, sigma=0.2, seed=5)
    points = path.points(x, x[0], range(6))
    assert torch.allclose(points.mean(0), x)  # in pairs
    size = (points - x).square().mean(-1).sqrt() / x.square().mean(-1).sqrt()
    assert 0.1 < size.mean() < 0.3
    found = exact(tiny.model, TOKENS, "semantic", target=TARGET, path=path)
    assert oracles.relative_difference(found.scores, averaged(tiny, list(points)).norm(dim=-1)) < 5e-5


@pytest.mark.slow
def test_the_end_of_the_line_is_the_scope_itself(llama: Any) -> None:
    for name, (options, _) in oracles.SCOPES.items():
        plain = exact(llama, TOKENS, name, **options)
        for path in (js.Line(alphas=[1.0]), js.Line(alphas=[1.0, 1.0, 1.0]), js.Noise(samples=3, sigma=0.0)):
            along = exact(llama, TOKENS, name, path=path, **options)
            assert oracles.relative_difference(along.scores, plain.scores) < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["semantic", "log_prob", "contrastive", "temperature", "logit_temperature", "entropy"])
def test_contributions_add_up(pocket: Any, name: str) -> None:
    """Completeness: the signed sum is the change from origin to prompt, which two plain forward passes tell."""
    options, _ = oracles.SCOPES[name]
    tokens = pocket.to_tokens("the keys to the cabinet near the doors")[0]
    path = js.Line(steps=200, origin="bos")
    result = exact(pocket, tokens, name, path=path, reduction="dot", **options)
    whole = result.options["resolved"]["completeness"]
    assert abs(whole["sum"] - whole["change"]) < 0.02 * abs(whole["change"])
    if name == "semantic":
        everywhere_bos = torch.zeros_like(tokens)
        change = (pocket(tokens[None]) - pocket(everywhere_bos[None]))[0, -1, TARGET]
        assert abs(whole["change"] - float(change)) < 1e-3 * abs(float(change))


def test_a_sum_that_is_too_coarse_says_so(pocket: Any) -> None:
    result = exact(pocket, "the keys to the cabinet", "log_prob", path=js.Line(steps=1), reduction="elementwise")
    assert any("add up to" in warning for warning in result.warnings)


def test_kept_cotangents_add_up_too(llama: Any) -> None:
    """A direction is that of the prompt all along the line."""
    scope = js.RandomDirectionScope(seed=1)
    own = torch.randn(len(TOKENS), D_MODEL, generator=torch.Generator().manual_seed(2))
    result = exact(llama, TOKENS, scope, path=js.Line(steps=300, origin=own), reduction="dot")
    whole = result.options["resolved"]["completeness"]
    assert abs(whole["sum"] - whole["change"]) < 0.02 * abs(whole["change"])


def test_points_at_once_change_nothing(llama: Any) -> None:
    """With a hook of the user's the points are taken one by one."""
    seen = []
    watch = [("hook_embed", lambda activation, hook: seen.append(len(activation)))]
    path = js.Line(steps=4)
    together = exact(llama, TOKENS, "semantic", target=TARGET, path=path)
    one_by_one = exact(llama, TOKENS, "semantic", target=TARGET, path=path, fwd_hooks=watch)
    assert seen == [1] * 5
    assert oracles.relative_difference(one_by_one.scores, together.scores) < 1e-5


@contextlib.contextmanager
def naively_frozen(kinds: tuple[str, ...]) -> Iterator[None]:
    """HuggingFace's models with what torch computes for patterns and scales taken off the graph."""
    softmax, rsqrt = torch.nn.functional.softmax, torch.rsqrt

    def layer_norm(x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt().detach() * weight + bias

    with contextlib.ExitStack() as stack:
        if "attn" in kinds:
            detached = mock.patch("torch.nn.functional.softmax", lambda *a, **k: softmax(*a, **k).detach())
            stack.enter_context(detached)
        if "norm" in kinds:
            stack.enter_context(mock.patch("torch.rsqrt", lambda *a, **k: rsqrt(*a, **k).detach()))
            stack.enter_context(mock.patch("torch.nn.functional.layer_norm", layer_norm))
        yield


@pytest.mark.parametrize("frozen", [("attn",), ("norm",), ("attn", "norm")])
def test_frozen(tiny: Tiny, frozen: tuple[str, ...]) -> None:
    with naively_frozen(frozen):
        o = oracles.dense(tiny.hf, TOKENS, -1)
    exact(tiny.model, TOKENS)  # TransformerLens puts hooks of its own at the first run
    before = snapshot(tiny.model)
    for name in ("semantic", "fisher"):
        options, formula = oracles.SCOPES[name]
        found = exact(tiny.model, TOKENS, name, frozen=frozen, **options)
        assert oracles.relative_difference(found.scores, formula(o)) < 5e-5
        plain = exact(tiny.model, TOKENS, name, **options)
        assert oracles.relative_difference(found.scores, plain.scores) > 1e-3
        assert found.options["frozen"] == list(frozen)
    assert snapshot(tiny.model) == before
    rows = js.jacobian(tiny.model, TOKENS, frozen=frozen)
    assert oracles.relative_difference(rows, o.J) < 5e-5


@pytest.mark.slow
def test_frozen_for_every_scope_in_batches_and_patterns(llama: Any) -> None:
    for name, (options, _) in oracles.SCOPES.items():
        alone = exact(llama, TOKENS, name, frozen=["norm", "attn"], **options)
        shorter, batched = js.attribute_batch(llama, [TOKENS[:5], TOKENS], name, frozen=("attn", "norm"), **options)
        assert oracles.relative_difference(batched.scores, alone.scores) < 1e-5
        assert shorter.scope == alone.scope == f"{name}, frozen attn, frozen norm"
        pattern = js.influence_pattern(llama, TOKENS, name, [4, 7], frozen=("attn", "norm"), **options)
        assert oracles.relative_difference(pattern.scores[1], alone.scores) < 1e-5


def test_frozen_values_are_those_of_the_prompt_all_along_a_path(llama: Any) -> None:
    """What is linear between embedding and stream is added up exactly: without MLPs, everything before the unembedding."""
    mlps = [(lambda name: name.endswith("hook_mlp_out"), lambda out, hook: torch.zeros_like(out))]
    how = dict(frozen=("attn", "norm"), fwd_hooks=mlps, reduction="dot", target=TARGET)
    scores = [exact(llama, TOKENS, "semantic", path=js.Line(steps=n), **how).scores for n in (1, 7)]
    assert oracles.relative_difference(scores[0], scores[1]) < 1e-5
    whole = exact(llama, TOKENS, "semantic", path=js.Line(steps=1), **how).options["resolved"]["completeness"]
    assert whole["sum"] == pytest.approx(whole["change"], rel=1e-3)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"reduction": "dott"}, "no reduction 'dott'. Did you mean 'dot'"),
        ({"path": "lines"}, "Did you mean 'line'"),
        ({"frozen": ("attn", "mlp")}, "frozen is 'attn'"),
        ({"frozen": 3}, "frozen is 'attn'"),
        ({"path": js.Line(origin=torch.zeros(3))}, r"here \[32\] or \[8, 32\]; got \[3\]"),
        ({"path": js.Line(origin="pad"), "at": "blocks.1.hook_resid_pre"}, "is an embedding; at blocks.1"),
        ({"path": js.Line(), "at": "resid_pre"}, "A path needs a single hook point"),
    ],
)
def test_wrong_input(llama: Any, how: dict[str, Any], says: str) -> None:
    before = snapshot(llama)
    with pytest.raises(js.InputError, match=says):
        inspect.unwrap(js.attribute)(llama, TOKENS, "semantic", **how)
    assert snapshot(llama) == before


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: js.Line(steps=0), "steps is a whole number"),
        (lambda: js.Line(alphas=[]), "alphas must be one or more numbers"),
        (lambda: js.Line(origin="zeros"), "Did you mean 'zero'"),
        (lambda: js.Noise(sigma=-1.0), "sigma is the size"),
        (lambda: js.Noise(samples=0), "samples is a whole number"),
        (lambda: js.RandomDirectionScope(seed=-1), "seed is a whole number"),
    ],
)
def test_wrong_paths(make: Any, says: str) -> None:
    with pytest.raises(js.InputError, match=says):
        make()


def test_estimates_have_no_rows_to_average(llama: Any) -> None:
    with pytest.raises(js.InputError, match="method='low_rank'"):
        exact(llama, TOKENS, "fisher", path="line")


def test_layer_maps_of_dots_are_those_of_single_layers(llama: Any) -> None:
    layers = exact(llama, TOKENS, "semantic", target=TARGET, at="resid_pre", reduction="dot")
    for name, row in zip(layers.hook_points, layers.scores, strict=True):
        alone = exact(llama, TOKENS, "semantic", target=TARGET, at=name, reduction="dot")
        assert oracles.relative_difference(row, alone.scores) < 1e-5


def test_results_say_what_was_done_and_can_be_kept(llama: Any, tmp_path: Any) -> None:
    result = exact(llama, TOKENS, "semantic", path=js.Line(steps=3, origin=torch.ones(D_MODEL)), frozen="attn")
    again = js.Attribution.load(result.save(tmp_path / "line.safetensors"))
    assert again.options["path"] == {"name": "Line", "origin": "a tensor", "steps": 3, "n_points": 3}
    assert again.scope == "semantic, line, frozen attn"


@pytest.mark.slow
@pytest.mark.parametrize("path", [js.Line(steps=5, origin="bos"), js.Noise(samples=4, sigma=0.8)])
@pytest.mark.parametrize("name", ["semantic", "log_prob", "contrastive"])
def test_the_token_explained_is_that_of_the_prompt_all_along(pocket: Any, name: str, path: Any) -> None:
    """Elsewhere on the path another token may be the most probable one."""
    prompt = "tom grew up in the south and goes to columbia . at school he is a"
    more = {"baseline": " conservative"} if name == "contrastive" else {}
    for reduction in ("row_norm", "dot"):
        left_open = exact(pocket, prompt, name, path=path, reduction=reduction, **more)
        named = exact(pocket, prompt, name, target=" liberal", path=path, reduction=reduction, **more)
        assert torch.equal(left_open.scores, named.scores)


def test_a_function_is_asked_at_each_point(llama: Any) -> None:
    """As the scope of the package that it restates; unless it says that its cotangents are those of the prompt."""
    path = js.Line(steps=6, origin=torch.ones(D_MODEL))

    def log_prob(state: js.State) -> Tensor:
        return state.gradient(lambda logits: logits.log_softmax(-1)[TARGET])

    js.register_scope("mine")(log_prob)
    js.register_scope("kept", moves_along=False)(log_prob)
    own, mine, kept = (exact(llama, TOKENS, scope, path=path, reduction="dot") for scope in (log_prob, "mine", "kept"))
    expected = exact(llama, TOKENS, "log_prob", target=TARGET, path=path, reduction="dot")
    assert oracles.relative_difference(own.scores, expected.scores) < 1e-6
    assert oracles.relative_difference(mine.scores, expected.scores) < 1e-6
    assert oracles.relative_difference(kept.scores, expected.scores) > 1e-2
    assert "completeness" not in mine.options["resolved"]  # of what, nobody says
    assert kept.options["resolved"]["cotangents"] == "those of the prompt, at each point"


def test_origins_of_prompts_of_different_length(llama: Any) -> None:
    for_eight = js.Point(origin=torch.ones(8, D_MODEL))
    results = js.attribute_batch(llama, [TOKENS, TOKENS[:5]], "semantic", reduction="dot", path=for_eight)
    assert next(results).options["path"]["origin"] == "a tensor"
    with pytest.raises(js.InputError, match=r"Prompt 1: .*got \[8, 32\]"):
        next(results)


def test_hooks_of_the_users_leave_origins_alone(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    path = js.Point(origin="pad")
    plain = exact(model, TOKENS, "semantic", target=TARGET, reduction="dot", path=path)
    model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: x.index_fill(1, torch.tensor([7]), 0.0) + 0 * x)
    exact(model, TOKENS, "semantic", target=TARGET, reduction="dot", path=path)
    model.reset_hooks()
    model.add_hook("hook_embed", lambda x, hook: 2 * x)
    doubled = exact(model, TOKENS, "semantic", target=TARGET, reduction="dot", path=path)
    x0 = oracles.trunk(models.hf_model("llama"), torch.tensor([2]), -1)[1][0].float()
    by_hand = exact(model, TOKENS, "semantic", target=TARGET, reduction="dot", path=js.Point(origin=x0))
    assert oracles.relative_difference(doubled.scores, by_hand.scores) < 1e-5
    assert oracles.relative_difference(doubled.scores, plain.scores) > 1e-2


def test_paths_of_ones_own_are_checked(llama: Any) -> None:
    class Wrong(js.Path):
        def n_points(self) -> int:
            return 1

        def points(self, x: Any, x0: Any, which: range) -> Any:
            return x

    class Empty(Wrong):
        def n_points(self) -> int:
            return 0

    with pytest.raises(js.InputError, match="must return 1 points"):
        inspect.unwrap(js.attribute)(llama, TOKENS, "semantic", path=Wrong())
    with pytest.raises(js.InputError, match="at least one point"):
        inspect.unwrap(js.attribute)(llama, TOKENS, "semantic", path=Empty())


def test_points_may_come_as_any_numbers(llama: Any) -> None:
    found = [
        exact(llama, TOKENS, "semantic", target=TARGET, path=js.Line(alphas=alphas)).options["path"]
        for alphas in ((0.5, 1.0), torch.tensor([0.5, 1.0]))
    ]
    assert found[0] == found[1] == {"name": "Line", "origin": "zero", "alphas": (0.5, 1.0), "n_points": 2}
    for alphas in ([float("nan")], 0.5, torch.tensor(0.5), "ab", [None]):
        with pytest.raises(js.InputError, match="alphas must be one or more numbers"):
            inspect.unwrap(js.Line.__init__)(object.__new__(js.Line), alphas=alphas)


@pytest.mark.slow
def test_stated_errors_of_the_second_order_prediction_hold(pocket: Any) -> None:
    """One number at each position: squares of few normal numbers scatter far."""
    prompt = "tom grew up in the south and goes to columbia . at school he is a"
    for how in ({"method": "sampled", "rank": 2, "probes": 8}, {"method": "krylov", "rank": 2, "probes": 4}):
        expected = exact(pocket, prompt, "fisher_input", method="exact").scores
        held = []
        for seed in range(25):
            found = exact(pocket, prompt, "fisher_input", seed=seed, **how)
            held.append(((found.scores - expected).abs() <= 2 * found.stderr).float().mean())
        assert torch.stack(held).mean() > 0.92


@pytest.mark.parametrize("path", [js.Line(steps=3, origin="bos"), js.Noise(samples=4)])
@pytest.mark.parametrize("name", ["log_prob", "random_direction"])
def test_a_pattern_along_a_path_is_that_of_single_predictions(llama: Any, name: str, path: Any) -> None:
    for reduction in ("row_norm", "dot"):
        pattern = js.influence_pattern(llama, TOKENS, name, [3, 6], path=path, reduction=reduction, progress=False)
        alone = [exact(llama, TOKENS, name, position=p, path=path, reduction=reduction) for p in (3, 6)]
        expected = torch.stack([result.scores for result in alone])
        assert oracles.relative_difference(pattern.scores, expected) < 1e-6
        assert [part["cotangents"] for part in pattern.options["resolved"]] == [
            result.options["resolved"]["cotangents"] for result in alone
        ]


def test_an_added_reduction_has_a_cut_and_a_unit_of_its_own(llama: Any) -> None:
    """Scores of the half of the vector: nothing else is asked of a reduction."""

    class Half(js.Reduction):
        name, formula = "half", "‖C J_t / 2‖"

        def cut(self, x: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
            leaf = x.detach().reshape(1, -1, x.shape[-1]).requires_grad_()
            return leaf, (x + (leaf - leaf.detach()).view_as(x) / 2).clone()

        def unit(self, per_x: str, effect: str) -> str:
            return f"half {per_x}"

    found = exact(llama, TOKENS, "semantic", target=TARGET, reduction=Half())
    plain = exact(llama, TOKENS, "semantic", target=TARGET)
    assert oracles.relative_difference(2 * found.scores, plain.scores) < 1e-5
    assert (found.unit, found.scope) == ("half logit per unit of x", "semantic, half")
