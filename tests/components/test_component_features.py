"""Features of autoencoders as components."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import jscope_tl as js
from tests.components.test_components import CORRUPTED, EXPLAINED, TARGET, cached, close, double
from tests.models import ANY_KIND, D_MODEL, TOKENS

AT = "blocks.1.hook_resid_post"
HOW: dict[str, Any] = dict(of="features", target=TARGET, position=EXPLAINED)


@dataclass
class SAE:
    """A random sparse autoencoder; its decoder has a bias, its parameters ask for gradients, as those of SAELens do."""

    W_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    cfg: Any = None

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - self.b_dec) @ self.W_enc - 0.5).relu()

    def decode(self, acts: torch.Tensor) -> torch.Tensor:
        return acts @ self.W_dec + self.b_dec


def autoencoder(d_in: int = D_MODEL, cfg: Any = None) -> SAE:
    made = torch.Generator().manual_seed(0)
    shapes = ((d_in, 40), (40, d_in), (d_in,))
    return SAE(*(0.5 * torch.randn(s, generator=made, dtype=torch.float64).requires_grad_() for s in shapes), cfg=cfg)


@pytest.fixture
def sae() -> SAE:
    return autoencoder()


def gradient(model: Any) -> torch.Tensor:
    kept: list[torch.Tensor] = []

    def keep(x: torch.Tensor, hook: Any) -> torch.Tensor:
        kept.append(x.detach().clone().requires_grad_())
        return kept[-1]

    logits = model.run_with_hooks(TOKENS[None], fwd_hooks=[(AT, keep)], return_type="logits")
    return torch.autograd.grad(logits[0, EXPLAINED, TARGET], kept[0])[0][0]


def test_effects_are_gradient_times_what_a_feature_writes(kind: str, family: str, sae: SAE) -> None:
    model = double(kind, family)
    found = js.patching.components(model, TOKENS, "semantic", sae=sae, at=AT, positions="each", refine=0, **HOW)
    x, g = cached(model)[AT][0], gradient(model)
    acts = sae.encode(x).detach()
    written = torch.einsum("pf,fd,pd->fp", acts, sae.W_dec.detach(), g)
    ids = found.index[:-1]
    assert set(ids.tolist()) == set(acts[: EXPLAINED + 1].any(0).nonzero().flatten().tolist())
    assert found.index[-1] == -1
    close(found.predicted[:-1], -written[ids])
    error = (x - sae.decode(acts)).detach()
    close(found.predicted[-1], -(error * g).sum(-1))


def test_features_and_error_and_bias_are_the_whole_vector(kind: str, sae: SAE) -> None:
    model = double(kind, "llama")
    found = js.patching.components(model, TOKENS, "semantic", sae=sae, at=AT, refine=0, **HOW)
    x, g = cached(model)[AT][0], gradient(model)
    close(found.predicted.sum(), -((x - sae.b_dec.detach()) * g).sum())


def test_measured_features(kind: str, family: str, sae: SAE) -> None:
    model = double(kind, family)
    effects = js.patching.components(model, TOKENS, "semantic", sae=sae, at=AT, source=CORRUPTED, **HOW)
    effects = effects.measure(effects.predicted.numel())
    own, theirs = (cached(model, tokens)[AT][0] for tokens in (TOKENS, CORRUPTED))
    acts, other = sae.encode(own).detach(), sae.encode(theirs).detach()
    feature = int(effects.index[int(effects.values[:-1].abs().argmax())])
    changed = acts.clone()
    changed[:, feature] = other[:, feature]
    deltas = {
        feature: (sae.decode(changed) - sae.decode(acts)).detach(),
        -1: (theirs - sae.decode(other) - own + sae.decode(acts)).detach(),
    }

    def logit(delta: Any) -> float:
        with torch.no_grad():
            logits = model.run_with_hooks(
                TOKENS[None], fwd_hooks=[(AT, lambda x, hook: x + delta)], return_type="logits"
            )
        return float(logits[0, EXPLAINED, TARGET])

    for which, delta in deltas.items():
        place = effects.index.tolist().index(which)
        assert float(effects.measured[place]) == pytest.approx(logit(delta) - logit(0), rel=1e-4, abs=1e-9)
    assert {found.name for found in effects.top(99)} >= {f"{AT} unit {feature}", f"{AT} error"}


@pytest.mark.parametrize("where", ["hook_name", "metadata"])
def test_the_hook_point_of_the_configuration(kind: str, where: str) -> None:
    own = (
        SimpleNamespace(hook_name=AT)
        if where == "hook_name"
        else SimpleNamespace(metadata=SimpleNamespace(hook_name=AT))
    )
    model = double(kind, "llama")
    named = js.patching.components(model, TOKENS, "semantic", sae=autoencoder(cfg=own), refine=0, **HOW)
    given = js.patching.components(model, TOKENS, "semantic", sae=autoencoder(), at=AT, refine=0, **HOW)
    assert torch.equal(named.predicted, given.predicted)
    assert named.hook_points == (AT,)


@pytest.mark.parametrize(
    ("sae", "at", "message"),
    [
        (None, AT, "needs sae="),
        (autoencoder(), None, "Give it as at="),
        (autoencoder(), "blocks.1.hook_resid_pots", "no hook point.*Did you mean"),
        (autoencoder(48), AT, r"does not accept the vectors \[pos, 32\]"),
        (SimpleNamespace(encode=lambda x: x.sum(0), decode=lambda x: x), AT, "needed are features"),
        (SimpleNamespace(encode=lambda x: x, decode=lambda x: x / 0), AT, "infinite or undefined"),
    ],
)
def test_what_is_no_autoencoder_of_this_point(kind: str, sae: Any, at: Any, message: str) -> None:
    with pytest.raises(js.InputError, match=message):
        js.patching.components(double(kind, "llama"), TOKENS, "semantic", sae=sae, at=at, **HOW)


@dataclass
class Normalised:
    """An autoencoder of normalised vectors, whose scale it keeps from ``encode`` to ``decode``, for one call only, as those of SAELens do."""

    inner: SAE
    scale: Any = None

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self.scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return self.inner.encode(x / self.scale)

    def decode(self, acts: torch.Tensor) -> torch.Tensor:
        scale, self.scale = self.scale, None
        return self.inner.decode(acts) * scale


@pytest.mark.parametrize("source", ["zero", "mean", "prompt"])
def test_autoencoders_that_keep_a_scale(kind: str, sae: SAE, source: str) -> None:
    model, normalised = double(kind, "llama"), Normalised(sae)
    put: dict[str, Any] = {
        "zero": dict(source="zero"),
        "mean": dict(source="mean", prompts=[TOKENS[:5]]),
        "prompt": dict(source=CORRUPTED),
    }[source]
    found = js.patching.components(model, TOKENS, "semantic", sae=normalised, at=AT, refine=0, **put, **HOW)
    x, g = cached(model)[AT][0], gradient(model)
    acts, scale = normalised.encode(x).detach(), x.norm(dim=-1, keepdim=True) / D_MODEL**0.5
    other = {"zero": torch.zeros_like(x), "mean": x[:5], "prompt": cached(model, CORRUPTED)[AT][0]}[source]
    theirs = torch.zeros_like(acts) if source == "zero" else normalised.encode(other).detach()
    theirs = theirs.mean(0) if source == "mean" else theirs
    written = torch.einsum("pf,fd,pd->f", theirs - acts, sae.W_dec.detach(), g * scale)
    close(found.predicted[:-1], written[found.index[:-1]])
    normalised.encode(3 * x.flip(0))  # the user goes on with it
    cell = int(found.predicted[:-1].abs().argmax())
    changed = acts.clone()
    changed[:, found.index[cell]] = (theirs.expand_as(acts))[:, found.index[cell]]
    hooks = [(AT, lambda v, hook: v + ((changed - acts) @ sae.W_dec.detach() * scale).to(v))]
    with torch.no_grad():
        after, before = (
            model.run_with_hooks(TOKENS[None], fwd_hooks=own, return_type="logits")[0, EXPLAINED, TARGET]
            for own in (hooks, [])
        )
    measured = found.measure(cells=[cell]).measured[cell]
    assert float(measured) == pytest.approx(float(after - before), rel=1e-5)


def test_nothing_is_refined_behind_the_last_block(kind: str, sae: SAE) -> None:
    """No block is left to run, and no residual stream shows the change."""
    model = double(kind, "llama")
    at = next(n for n in ("ln_final.hook_in", "ln_final.hook_normalized") if n in model.hook_dict)
    found = js.patching.components(model, TOKENS, "semantic", sae=sae, at=at, **HOW)
    assert not found.refined.any()
    assert found.predicted[:-1].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("encode", "decode", "message"),
    [
        (torch.relu, lambda acts: None, "needed are features"),
        (torch.relu, torch.no_grad()(lambda acts: 2 * acts), "gives no gradients"),
        (lambda x: x * torch.nan, torch.zeros_like, "infinite or undefined"),
    ],
)
def test_unusable_autoencoders(encode: Any, decode: Any, message: str) -> None:
    own = SimpleNamespace(encode=encode, decode=decode)
    with pytest.raises(js.InputError, match=message):
        js.patching.components(double(ANY_KIND, "llama"), TOKENS, "semantic", sae=own, at=AT, **HOW)


def test_autoencoders_that_take_heads_on_an_axis_of_their_own(kind: str, sae: SAE) -> None:
    model, at = double(kind, "llama"), "blocks.1.attn.hook_z"
    of_heads = SimpleNamespace(
        encode=lambda z: sae.encode(z.reshape(len(z), 4, 8).flatten(1)) if z.ndim == 3 else z.reshape(1, 2, 3),
        decode=lambda acts: sae.decode(acts).view(-1, 4, 8),
    )
    flat, own = (
        js.patching.components(model, TOKENS, "semantic", sae=one, at=at, **HOW).measure(2) for one in (sae, of_heads)
    )
    close(own.predicted, flat.predicted)
    torch.testing.assert_close(own.measured, flat.measured, equal_nan=True)
