"""Mean effects of components: against `js.patching.components` prompt by prompt."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jscope_tl as js
from jscope_tl.corpus.resampling import FEWEST, Resampled
from tests.conftest import shared_tiny

pytestmark = pytest.mark.slow

PROMPTS = [
    "the keys to the cabinet near the doors",
    "the key near the door",
    "the keys near the door",
    "29 , 35 , 41 ,",
]


@pytest.fixture(scope="module")
def each(pocket: Any) -> list[Any]:
    return [js.patching.components(pocket, prompt, "log_prob") for prompt in PROMPTS]


@pytest.fixture(scope="module")
def means(pocket: Any) -> js.corpus.ComponentMeans:
    return js.corpus.components(pocket, PROMPTS, "log_prob", most=3)


@pytest.mark.newest_line
def test_against_each_prompt(means: js.corpus.ComponentMeans, each: list[Any]) -> None:
    values = torch.stack([effects.values for effects in each]).double()
    assert means.mean.numpy() == pytest.approx(values.mean(0).numpy(), rel=1e-4, abs=1e-6)
    assert means.stderr.numpy() == pytest.approx((values.std(0) / 2).numpy(), rel=1e-4, abs=1e-6)
    assert means.absolute.numpy() == pytest.approx(values.abs().mean(0).numpy(), rel=1e-4, abs=1e-6)
    in_top = torch.zeros(values[0].numel())
    for effects in each:
        for found in effects.top(3):
            in_top[4 * found.layer + found.head] += 0.25
    assert means.in_top.flatten().tolist() == in_top.tolist()
    refined = torch.stack([e.refined if e.measured is None else e.refined | ~e.measured.isnan() for e in each])
    assert torch.equal(means.refined, refined.float().mean(0))
    assert (means.n, means.n_failed, means.unit, means.signed) == (4, 0, each[0].unit, True)
    assert bool((means.low <= means.mean).all())
    assert bool((means.mean <= means.high).all())
    assert bool((means.low >= values.min(0).values.float() - 1e-6).all())


@pytest.mark.newest_line
def test_top_and_table(means: js.corpus.ComponentMeans) -> None:
    top = means.top(5)
    assert [abs(found.mean) for found in top] == sorted((means.mean.abs().flatten().tolist()), reverse=True)[:5]
    frame = means.to_pandas()
    assert frame["mean"].tolist() == means.mean.flatten().tolist()
    assert frame.name[5] == "blocks.1.attn.hook_z head 1"
    assert (frame.layer[5], frame["head"][5]) == (1, 1)
    assert top[0].name in repr(means)
    for k in (0, -1):
        with pytest.raises(js.InputError, match="k is how many"):
            means.top(k)
    with pytest.raises(js.InputError, match="0 to 15"):
        means.component(16)


@pytest.mark.parametrize(("of", "axes"), [("mlps", ("layer",)), ("attn", ("layer",)), ("neurons", ("layer", "neuron"))])
def test_other_kinds(kind: str, of: str, axes: tuple[str, ...]) -> None:
    model = shared_tiny(kind, "llama").model
    prompts = [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7])]
    found = js.corpus.components(model, prompts, "fisher", of=of, refine=0)
    expected = torch.stack([js.patching.components(model, p, "fisher", of=of, refine=0).values for p in prompts]).mean(
        0
    )
    assert found.axes == axes
    assert torch.allclose(found.mean, expected, rtol=1e-4, atol=1e-9)
    assert found.component(1).unit == (1 if of == "neurons" else None)
    assert not found.signed


@pytest.mark.newest_line
def test_the_order_changes_nothing_but_the_resamples(pocket: Any, means: js.corpus.ComponentMeans) -> None:
    other = js.corpus.components(pocket, PROMPTS[::-1], "log_prob", most=3)
    assert torch.allclose(means.mean, other.mean, atol=1e-6)
    assert torch.equal(means.in_top, other.in_top)
    again = js.corpus.components(pocket, PROMPTS, "log_prob", most=3, bootstrap_seed=0)
    assert torch.equal(means.low, again.low)


@pytest.mark.newest_line
def test_a_prompt_many_times_has_no_interval_but_its_value(pocket: Any) -> None:
    one = js.patching.components(pocket, PROMPTS[1], "log_prob")
    found = js.corpus.components(pocket, [PROMPTS[1]] * 3, "log_prob")
    for values in (found.mean, found.low, found.high):
        assert torch.allclose(values, one.values, rtol=1e-5, atol=1e-7)
    assert bool((found.stderr.abs() < 1e-7).all())
    single = js.corpus.components(pocket, [PROMPTS[1]], "log_prob")
    assert bool(single.stderr.isnan().all())
    assert torch.allclose(single.low, single.high)


@pytest.mark.newest_line
def test_the_strongest_are_measured(pocket: Any) -> None:
    found = js.corpus.components(pocket, PROMPTS[:2], "fisher", measure=16)
    expected = torch.stack([js.patching.components(pocket, p, "fisher").measure(16).values for p in PROMPTS[:2]]).mean(
        0
    )
    assert torch.allclose(found.mean, expected, rtol=1e-4, atol=1e-7)
    assert bool((found.refined == 1).all())
    assert "warning" not in repr(js.corpus.components(pocket, PROMPTS[:1], "log_prob", refine=0))


@pytest.mark.newest_line
def test_prompts_with_their_own(pocket: Any) -> None:
    own = [
        {"id": "a", "prompt": PROMPTS[1], "corrupted": PROMPTS[2], "target": " are"},
        {"prompt": PROMPTS[2], "corrupted": PROMPTS[1], "source": "a book", "target": " is", "position": -2},
    ]
    found = js.corpus.components(pocket, own, "log_prob")
    each = [
        js.patching.components(pocket, PROMPTS[1], "log_prob", source=PROMPTS[2], target=" are"),
        js.patching.components(pocket, PROMPTS[2], "log_prob", source=PROMPTS[1], target=" is", position=-2),
    ]
    assert torch.allclose(found.mean, torch.stack([e.values for e in each]).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.newest_line
def test_prompts_that_fail_are_named(pocket: Any) -> None:
    bad = ["", {"id": "x", "prompt": PROMPTS[0], "target": "no such token"}, {"text": "y", "position": "z"}]
    found = js.corpus.components(pocket, (p for p in [PROMPTS[0], *bad, PROMPTS[1]]), "log_prob")
    assert (found.n, found.n_failed) == (2, 3)
    assert list(found.failed) == ["1", "x", "3"]
    assert "failed: 3" in repr(found)
    kept = js.corpus.components(pocket, PROMPTS[:2], "log_prob")
    assert torch.allclose(found.mean, kept.mean, atol=1e-6)


@pytest.mark.newest_line
def test_files_and_scopes_as_of_a_run(pocket: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"id": "a", "prompt": PROMPTS[0], "target": " is", "task": "x"},
        {"id": "b", "prompt": PROMPTS[1], "target": " are"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    own = torch.stack(
        [js.patching.components(pocket, row["prompt"], "log_prob", target=row["target"]).values for row in rows]
    ).mean(0)
    for scope in ("log_prob", js.LogProbScope(target=" was")):
        assert torch.allclose(js.corpus.components(pocket, path, scope).mean, own, rtol=1e-4, atol=1e-6)
    without = torch.stack([js.patching.components(pocket, row["prompt"], "fisher").values for row in rows]).mean(0)
    assert torch.allclose(js.corpus.components(pocket, rows, "fisher").mean, without, rtol=1e-4, atol=1e-7)


@pytest.mark.newest_line
@pytest.mark.parametrize(
    ("prompts", "how", "says"),
    [
        ([], {}, "no prompts"),
        (["", ""], {}, "all 2 failed; the error of the first is"),
        ("the keys", {}, "the keys"),
        (3, {}, "got int"),
        (PROMPTS, {"of": "edges"}, "got 'edges'"),
        (PROMPTS, {"of": "head"}, "Did you mean 'heads'"),
        (PROMPTS, {"positions": "each"}, "positions='each'"),
        (PROMPTS, {"most": 0}, "most is a whole number"),
        (PROMPTS, {"bootstrap_seed": -1}, "bootstrap_seed is a whole number"),
        (PROMPTS, {"sourze": "mean"}, "sourze"),
    ],
)
def test_what_has_no_means(pocket: Any, prompts: Any, how: dict[str, Any], says: str) -> None:
    with pytest.raises(js.InputError, match=says):
        inspect.unwrap(js.corpus.components)(pocket, prompts, **how)


@pytest.mark.newest_line
def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    """Of 200 experiments with 60 prompts from a skewed distribution, as KL divergences are."""
    rng = np.random.default_rng(1)
    values = rng.gamma(2.0, size=(60, 200))
    resampled = Resampled(200, seed=0)
    for row in values:
        resampled.add(row)
    low, high = resampled.interval()
    assert 0.88 <= np.mean((low <= 2.0) & (high >= 2.0)) <= 0.99
    by_t = 2 * 2.0 * values.std(0, ddof=1) / 60**0.5
    assert np.median((high - low) / by_t) == pytest.approx(1, abs=0.1)


@pytest.mark.newest_line
def test_resamples_of_many_components_are_fewer() -> None:
    resampled = Resampled(150_000, seed=0)
    resampled.add(np.ones(150_000))
    assert resampled._sums.shape[0] == FEWEST
    low, high = resampled.interval()
    assert (low == 1).all()
    assert (high == 1).all()
