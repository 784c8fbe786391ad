"""`agreement` against attribution patching written out, TransformerLens' own, ablations by hooks, and naive counts of ranks."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

import jscope_tl as js
from jscope_tl.components import edges as edges_module
from tests import models
from tests.conftest import shared_tiny
from tests.models import ANY_KIND, TOKENS, snapshot

EXPLAINED, TARGET = 6, 3
CORRUPTED = torch.tensor([0, 17, 301, 90, 17, 208, 99, 431])
ATTRIBUTION = "attribution patching (log_prob)"
TIGHT = dict(rtol=1e-5, atol=1e-8)
HOOKS = {"heads": "attn.hook_z", "mlps": "hook_mlp_out"}


def has_lens() -> bool:
    return ANY_KIND == "bridge" and find_spec("transformer_lens.tools.analysis.attribution_patching") is not None


needs_lens = pytest.mark.skipif(not has_lens(), reason="this TransformerLens has no attribution patching")


def found(model: Any, scope: str = "fisher", **how: Any) -> js.patching.ComponentAgreement:
    return js.patching.agreement(model, TOKENS, scope, **{"position": EXPLAINED, "progress": False, **how})


def summed(values: torch.Tensor, of: str) -> torch.Tensor:
    """Of each component, over positions, from ``[1, pos, ...]``."""
    return (
        values[0].unflatten(-1, (4, -1)).sum((0, 2)) if of == "heads" and values.ndim == 3 else values[0].sum(0).sum(-1)
    )


def naive_attribution(
    model: Any, of: str, base: torch.Tensor, source: torch.Tensor | None, target: int
) -> torch.Tensor:
    """Change times gradient of the log-probability, by TransformerLens' hooks."""
    kept: dict[str, torch.Tensor] = {}

    def keep(x: torch.Tensor, hook: Any, name: str) -> torch.Tensor:
        kept[name] = x if x.requires_grad else x.requires_grad_()
        return kept[name]

    names = [f"blocks.{layer}.{HOOKS[of]}" for layer in range(3)]
    hooks = [(name, lambda x, hook, name=name: keep(x, hook, name)) for name in names]
    logits = model.run_with_hooks(base[None], fwd_hooks=hooks, return_type="logits")
    gradients = torch.autograd.grad(logits[0, EXPLAINED].log_softmax(-1)[target], [kept[name] for name in names])
    other = dict.fromkeys(names, 0.0) if source is None else model.run_with_cache(source[None])[1]
    changes = [(other[name] - kept[name]).detach() for name in names]
    return torch.stack([summed(c * g, of) for c, g in zip(changes, gradients, strict=True)])


@pytest.mark.parametrize("of", HOOKS)
@pytest.mark.parametrize("source", ["zero", "prompt"])
def test_attribution_patching_is_change_times_gradient(kind: str, family: str, of: str, source: str) -> None:
    model = shared_tiny(kind, family, torch.float64).model
    other = None if source == "zero" else CORRUPTED
    result = found(model, of=of, source="zero" if other is None else other)
    target = result.effects.prediction.target.token
    expected = naive_attribution(model, of, TOKENS, other, target)
    torch.testing.assert_close(result.predictions[ATTRIBUTION].double(), expected, **TIGHT)


@needs_lens
@pytest.mark.parametrize("of", HOOKS)
@pytest.mark.parametrize("scope", ["fisher", "log_prob", "contrastive", "semantic"])
def test_transformer_lens_says_the_same_to_first_order(family: str, of: str, scope: str) -> None:
    """A second implementation of the same formula, of the same quantity."""
    model = shared_tiny("bridge", family, torch.float64).model
    options = {"fisher": {}, "contrastive": {"target": TARGET, "baseline": 7}}.get(scope, {"target": TARGET})
    result = found(model, scope, of=of, source=CORRUPTED, direction="denoising", **options)
    single = scope != "fisher"
    lens = result.predictions[f"TransformerLens ({scope if single else 'log_prob'})"]
    own = result.predictions[f"{scope} (attribution patching)" if single else ATTRIBUTION]
    torch.testing.assert_close(lens, own, rtol=1e-4, atol=1e-7)
    assert result.costs[f"TransformerLens ({scope if single else 'log_prob'})"].forward_equivalents == 3
    assert result.notes == []


def test_everything_is_measured(kind: str) -> None:
    """KL divergences of the model with one head at zero."""
    model = shared_tiny(kind, "llama", torch.float64).model
    result = found(model)
    assert bool(result.compared.all())
    with torch.no_grad():
        log_p = model(TOKENS[None], return_type="logits")[0, EXPLAINED].log_softmax(-1)
        for layer in range(3):
            for head in range(4):

                def off(z: torch.Tensor, hook: Any, head: int = head) -> torch.Tensor:
                    z = z.clone()
                    z.view(*z.shape[:2], 4, -1)[:, :, head] = 0
                    return z

                hooks = [(f"blocks.{layer}.attn.hook_z", off)]
                other = model.run_with_hooks(TOKENS[None], fwd_hooks=hooks, return_type="logits")[0, EXPLAINED]
                kl = float((log_p.exp() * (log_p - other.log_softmax(-1))).sum())
                assert float(result.effects.measured[layer, head]) == pytest.approx(kl, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("scope", "options"), [("fisher", {}), ("log_prob", {"target": TARGET})])
def test_ranks_are_counted_naively(llama: Any, scope: str, options: dict[str, Any]) -> None:
    result = found(llama, scope, positions="each", **options)
    kept = result.compared
    measured = result.effects.measured[kept].abs().tolist()
    for row in result.rows():
        sizes = result.predictions[row.method][kept].abs().tolist()
        assert row.spearman == pytest.approx(spearmanr(sizes, measured).statistic, abs=1e-6)

        def best(values: list[float], k: int) -> set[int]:
            return set(sorted(range(len(values)), key=lambda i: -values[i])[:k])

        assert row.top5 == pytest.approx(len(best(sizes, 5) & best(measured, 5)) / 5)
        assert row.top10 == pytest.approx(len(best(sizes, 10) & best(measured, 10)) / 10)
        assert row.top10_in_20 == pytest.approx(len(best(sizes, 20) & best(measured, 10)) / 10)
    assert not kept[..., EXPLAINED + 1 :].any()  # what comes after the explained position does nothing


def test_methods_by_name(llama: Any) -> None:
    assert list(found(llama).predictions) == ["fisher, refined", "fisher", ATTRIBUTION]
    assert list(found(llama, refine=0).predictions) == ["fisher", ATTRIBUTION]
    of_one = found(llama, "entropy")
    assert list(of_one.predictions) == ["entropy, refined", "entropy (attribution patching)"]
    assert "is not compared" in of_one.notes[0]


def test_rules_are_those_of_the_scope_alone(llama: Any) -> None:
    """Attribution patching takes the derivative itself."""
    plain, ruled = found(llama), found(llama, frozen=("attn", "norm"))
    torch.testing.assert_close(ruled.predictions[ATTRIBUTION], plain.predictions[ATTRIBUTION])
    assert not torch.allclose(ruled.predictions["fisher, frozen attn, frozen norm"], plain.predictions["fisher"])


@pytest.mark.slow
def test_a_sample_is_measured_as_all_are(llama: Any) -> None:
    def edges(**how: Any) -> js.patching.ComponentAgreement:
        return found(llama, of="edges", position=3, **how)

    everything, some = edges(), edges(sample=25)
    again, other = edges(sample=25), edges(sample=25, sample_seed=1)
    assert int(some.compared.sum()) == 25
    assert torch.equal(again.compared, some.compared)
    assert not torch.equal(other.compared, some.compared)
    torch.testing.assert_close(
        some.effects.measured[some.compared], everything.effects.measured[some.compared], rtol=1e-3, atol=1e-7
    )
    dest, src = some.compared.nonzero()[:, 2:].T
    assert bool((src <= dest).all())
    assert int(dest.max()) == 3


@pytest.mark.slow
def test_edges_of_long_prompts_are_laid_side_by_side(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prediction keeps its own strongest ones."""
    whole = found(llama, of="edges", refine=0).predictions[ATTRIBUTION]
    for kept_of_one_row in (9 * 20, 9):
        monkeypatch.setattr(edges_module, "MOST_BYTES", 4 * 3 * 4 * kept_of_one_row)
        few = found(llama, of="edges", refine=0)
        assert few.effects.axes == ("layer", "head", "entry")
        laid, index = few.predictions[ATTRIBUTION], few.effects.index
        expected = whole.flatten(2).gather(2, index)
        listed = laid != 0 if kept_of_one_row == 9 else torch.ones_like(laid, dtype=torch.bool)
        assert float(listed.float().mean()) > 0.0
        torch.testing.assert_close(laid[listed], expected[listed], rtol=1e-4, atol=1e-7)


def test_costs(llama: Any) -> None:
    result = found(llama)
    costs = {name: cost.forward_equivalents for name, cost in result.costs.items()}
    assert costs[ATTRIBUTION] == 2
    assert costs["fisher"] < costs["fisher, refined"]
    frame = result.to_dataframe()
    assert list(frame.index) == [*result.predictions, "measuring"]
    assert frame.loc["measuring", "passes"] == costs["measuring"] > 3


def test_round_trip(llama: Any, tmp_path: Path) -> None:
    before = snapshot(llama)
    with torch.inference_mode():
        result = found(llama, source=CORRUPTED, direction="denoising")
    assert snapshot(llama) == before
    again = js.patching.ComponentAgreement.load(result.save(tmp_path / "agreement.safetensors"))
    assert repr(again) == repr(result)
    for name, values in result.predictions.items():
        assert torch.equal(again.predictions[name], values)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"sample": 0}, "sample is a whole number"),
        ({"of": "tokens"}, "There are no components"),
        ({"source": TOKENS}, "nothing to patch in"),
        ({"reduction": "dot"}, "takes no 'reduction'"),
        ({"direction": "denoising"}, "give the corrupted prompt as source"),
    ],
)
def test_what_cannot_be_compared(llama: Any, how: dict[str, Any], says: str) -> None:
    before = snapshot(llama)
    with pytest.raises(js.InputError, match=says):
        found(llama, **how)
    assert snapshot(llama) == before


def test_hooks_of_the_users_are_active(kind: str) -> None:
    """Of a model without one head, that head does nothing, and TransformerLens, which would not know, is not asked."""
    model = models.tiny(kind, "llama").model

    def off(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        z.view(*z.shape[:2], 4, -1)[:, :, 2] = 0
        return z

    result = found(model, source=CORRUPTED, direction="denoising", fwd_hooks=[("blocks.1.attn.hook_z", off)])
    assert not result.compared[1, 2]
    assert not any("TransformerLens (" in name for name in result.predictions)
