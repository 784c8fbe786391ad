"""Spectra against dense float64 decompositions of the oracle's Jacobians; decoded directions against naive products."""

import dataclasses
import inspect
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.attribution.decoding import decoded
from jscope_tl.engine.forward import run
from jscope_tl.engine.run import Settings
from jscope_tl.model.view import ModelView
from jscope_tl.scopes import singular
from tests import models, oracles
from tests.conftest import dense, shared_tiny
from tests.models import D_MODEL, TOKENS, Tiny, snapshot

pytestmark = pytest.mark.slow

BOTH = ("jacobian", "fisher")
PROMPT = "tom loves korean food . he grew up in the south and goes to columbia . at school he is a"
K = 6


def root(o: oracles.Oracle, of: str) -> torch.Tensor:
    """``C`` with ``C^T C`` the identity or ``F_u``, in float64."""
    if of == "jacobian":
        return torch.eye(len(o.y)).double()
    eigenvalues, U = torch.linalg.eigh(oracles.fisher_matrix(o))
    return (U * eigenvalues.clamp_min(0).sqrt()).T


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for rows, and a basis that is smaller than the tiny models' ``d_model``."""
    monkeypatch.setattr(singular, "BUDGET", 0)
    monkeypatch.setattr(singular, "OVERSAMPLING", 10)


@pytest.mark.parametrize("of", BOTH)
@pytest.mark.parametrize("position", [-1, 4])
def test_singular_values_are_the_oracles(tiny: Tiny, of: str, position: int) -> None:
    """float32 rows against float64 ones: what is seen is below 1e-6 of the largest value."""
    o = dense(tiny.family, position)
    found = js.spectrum(tiny.model, TOKENS, of=of, k=K, position=position)
    M = torch.einsum("ka,apj->pkj", root(o, of), o.J)
    expected = torch.linalg.svdvals(M)
    assert oracles.relative_difference(found.singular_values, expected[:, :K]) < 2e-5
    assert oracles.relative_difference(found.energy, expected.square().sum(1)) < 2e-5
    seen = found.position + 1
    participation = expected.square().sum(1).square() / expected.pow(4).sum(1)
    torch.testing.assert_close(found.effective_rank[:seen].double(), participation[:seen], rtol=1e-4, atol=0)
    assert torch.equal(found.captured, (torch.arange(len(TOKENS)) < seen).float())


@pytest.mark.parametrize("of", BOTH)
def test_all_of_them_put_together_are_the_matrix(tiny: Tiny, of: str) -> None:
    """``Σ σ_i² v_i v_i^T`` is the pulled-back matrix; ``Σ σ_i u_i v_i^T`` the Jacobian itself."""
    o = dense(tiny.family, -1)
    found = js.spectrum(tiny.model, TOKENS, of=of, k=D_MODEL)
    sigma, v, u = found.singular_values.double(), found.input_directions.double(), found.output_directions.double()
    G = torch.einsum("pk,pki,pkj->pij", sigma.square(), v, v)
    assert oracles.relative_difference(G, oracles.pulled_back(o, of)) < 5e-5
    if of == "jacobian":
        J = torch.einsum("pk,pka,pkj->apj", sigma, u, v)
        assert oracles.relative_difference(J, o.J) < 5e-5
        u = u[:, : D_MODEL - 2]  # what a norm takes out moves nothing: those directions are 0
        torch.testing.assert_close(u @ u.mT, torch.eye(D_MODEL - 2).double().expand(8, -1, -1), rtol=0, atol=1e-4)
    torch.testing.assert_close(v[:, :K] @ v[:, :K].mT, torch.eye(K).double().expand(8, -1, -1), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.shares.sum(1), torch.ones(8), rtol=1e-4, atol=0)


@pytest.mark.parametrize("of", BOTH)
def test_outputs_are_where_inputs_lead(tiny: Tiny, of: str) -> None:
    o = dense(tiny.family, -1)
    found = js.spectrum(tiny.model, TOKENS, of=of, k=3)
    moved = torch.einsum("apj,pkj->pka", o.J, found.input_directions.double())
    cosines = (moved * found.output_directions.double()).sum(-1) / moved.norm(dim=-1)
    assert (cosines > 1 - 1e-5).all()
    gains = (moved @ root(o, of).T).norm(dim=-1)
    torch.testing.assert_close(gains, found.singular_values.double(), rtol=1e-4, atol=1e-6)


def test_the_energy_of_fisher_is_its_trace(llama: Any) -> None:
    found = js.spectrum(llama, TOKENS, of="fisher")
    torch.testing.assert_close(found.energy, js.attribute(llama, TOKENS, "fisher", method="exact").scores)


@pytest.mark.parametrize("of", BOTH)
def test_the_scope_is_the_first_value(llama: Any, of: str) -> None:
    for at in ("hook_embed", "blocks.1.hook_resid_post"):
        found = js.spectrum(llama, TOKENS, of=of, k=1, at=at, position=5, frozen="attn")
        score = js.attribute(llama, TOKENS, "spectral", of=of, at=at, position=5, frozen="attn")
        torch.testing.assert_close(found.singular_values[:, 0], score.scores, rtol=1e-5, atol=1e-7)
        assert found.unit == score.unit


def test_the_scope_of_fisher_is_the_oracles(tiny: Tiny) -> None:
    found = js.attribute(tiny.model, TOKENS, "spectral", of="fisher")
    assert oracles.relative_difference(found.scores, oracles.spectral(dense(tiny.family, -1), "fisher")) < 2e-5


@pytest.mark.parametrize("of", BOTH)
def test_a_sketch_finds_the_same_from_below(sketched: None, tiny: Tiny, of: str) -> None:
    """The bounds that it states hold: ``σ̂² ≤ σ² ≤ σ̂² + missed``."""
    o = dense(tiny.family, -1)
    expected = torch.linalg.svdvals(torch.einsum("ka,apj->pkj", root(o, of), o.J))
    found = js.spectrum(tiny.model, TOKENS, of=of, k=3)
    assert found.provenance.seed is not None
    assert ((found.captured > 0.3) & (found.captured < 1)).all()
    missed = ((1 - found.captured) * found.energy).double().unsqueeze(1)
    squares, true = found.singular_values.double().square(), expected[:, :3].square()
    assert (squares <= true * (1 + 1e-4)).all()
    assert (true <= squares + missed + 1e-4 * true[:, :1]).all()
    assert oracles.relative_difference(found.energy, expected.square().sum(1)) < 2e-5
    participation = expected.square().sum(1).square() / expected.pow(4).sum(1)
    assert (found.effective_rank >= participation * (1 - 1e-4)).all()
    assert any("from a sketch" in warning for warning in found.warnings)
    v = found.input_directions
    torch.testing.assert_close(v @ v.mT, torch.eye(3).expand(8, -1, -1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("of", BOTH)
def test_sketches_of_a_trained_model_are_close(pocket: Any, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    """Its spectra fall: with the package's own width three values are off by less than 2 %."""
    whole = js.spectrum(pocket, PROMPT, of=of, k=3)
    monkeypatch.setattr(singular, "BUDGET", 0)
    found = js.spectrum(pocket, PROMPT, of=of, k=3)
    assert found.provenance.n_backward == whole.provenance.n_backward + 3 + singular.OVERSAMPLING
    torch.testing.assert_close(found.singular_values, whole.singular_values, rtol=0.02, atol=0)
    aligned = (found.input_directions[:, 0] * whole.input_directions[:, 0]).sum(-1).abs()
    assert (aligned > 0.95).all()
    assert found.captured.min() > 0.9
    assert torch.equal(found.singular_values, js.spectrum(pocket, PROMPT, of=of, k=3).singular_values)


def test_a_sketch_is_as_wide_as_there_is_room(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singular, "OVERSAMPLING", 4)
    captured = []
    for share, rows in ((0, 7), (0.3, 9), (0.9, 16), (1, 0)):
        monkeypatch.setattr(singular, "BUDGET", int(share * 4 * len(TOKENS) * D_MODEL**2))
        found = js.spectrum(llama, TOKENS, k=3)
        assert found.provenance.n_backward == D_MODEL + rows
        captured.append(float(found.captured.min()))
    assert captured == sorted(captured)
    assert captured[-1] == 1


@pytest.mark.parametrize("of", BOTH)
def test_the_scope_from_a_sketch(sketched: None, llama: Any, of: str) -> None:
    """A lower bound; in layer maps and beside patching, where rows of the sketch do not count, as well."""
    found = js.attribute(llama, TOKENS, "spectral", of=of, at="resid_pre", position=6)
    first = js.spectrum(llama, TOKENS, of=of, k=1, position=6)
    expected = oracles.spectral(dense("llama", 6), of)
    assert found.options["resolved"] == {"sketch": 11}
    assert (found.scores[0] <= expected * (1 + 1e-4)).all()
    assert (found.scores[0] >= 0.8 * expected).all()
    assert (found.scores[:, 7:] == 0).all()
    assert any("too low" in warning for warning in found.warnings)
    torch.testing.assert_close(first.singular_values[:7, 0].double(), expected[:7], rtol=0.2, atol=0)


def test_predictions_beside_patching_leave_the_sketch_out(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = TOKENS.clone()
    other[2] = 77
    whole = js.patching.compare(llama, TOKENS, other, "spectral", of="fisher")
    monkeypatch.setattr(singular, "BUDGET", 0)
    monkeypatch.setattr(singular, "OVERSAMPLING", 10)
    found = js.patching.compare(llama, TOKENS, other, "spectral", of="fisher")
    torch.testing.assert_close(found.predicted, whole.predicted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.effects, whole.effects)


def test_effects_of_fisher_are_roots_of_twice_the_divergence(kind: str) -> None:
    model = shared_tiny(kind, "gpt2", torch.float64).model
    other = TOKENS.clone()
    other[2] = 77
    root_of = js.patching.compare(model, TOKENS, other, "spectral", of="fisher")
    divergence = js.patching.compare(model, TOKENS, other, "fisher", method="exact")
    torch.testing.assert_close(root_of.effects.square() / 2, divergence.effects, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(root_of.predicted.square() / 2, divergence.predicted, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("of", BOTH)
def test_directions_are_decoded_as_by_hand(tiny: Tiny, of: str) -> None:
    """``D u`` less its mean, or ``p ⊙ (D u - p·D u)``, with ``D`` the oracle's: scale, bias and soft-cap included."""
    o = dense(tiny.family, -1)
    found = js.spectrum(tiny.model, TOKENS, of=of, k=2)
    for pos, i in ((0, 0), (3, 1), (7, 0)):
        logits = o.D @ found.output_directions[pos, i].double()
        change = logits - logits.mean() if of == "jacobian" else o.p * (logits - o.p @ logits)
        decoded = found.decode(pos, i, k=4)
        for ends, largest in ((decoded.rises, True), (decoded.falls, False)):
            values, ids = change.topk(4, largest=largest)
            assert [token for token, _ in ends] == [models.tokenizer().decode([token]) for token in ids]
            torch.testing.assert_close(torch.tensor([v for _, v in ends]), values.float(), rtol=1e-3, atol=1e-6)
        assert decoded.rises[0][1] >= 0.99 * change.abs().max()
        assert decoded.singular_value == float(found.singular_values[pos, i])


@pytest.mark.parametrize(("more", "rises"), [(0.0, 0), (0.005, 0), (0.009, 0), (0.011, 1), (0.5, 1)])
def test_of_two_changes_alike_the_more_probable_token_rises(llama: Any, more: float, rises: int) -> None:
    """Three tokens share all of the probability. The second changes by ``more`` than the first, which is more probable: within
    one per cent the first one rises, else the second, whichever way the direction is given."""
    ids, p = torch.tensor([44, 301, 17]), torch.tensor([0.5, 0.3, 0.2])
    change = torch.tensor([1.0, -1 - more, more])
    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward:
        logits = torch.full((models.D_VOCAB,), -1e3, dtype=torch.float64)
        logits[ids] = p.double().log()
        state = dataclasses.replace(forward.state(), logits=logits)
        # p ⊙ (l - p·l) is the change, which sums to 0, where l is change / p.
        u = torch.linalg.pinv(state.W_U[:, ids].T) @ (change / p)
        found = decoded(torch.stack([u, -u]), state, forward.view, True)
    assert found.signs[0] == -found.signs[1]
    assert found.ids[:, 0, 0].tolist() == [int(ids[rises])] * 2
    torch.testing.assert_close(found.changes[:, 0, 0], change[rises].abs().expand(2), rtol=1e-4, atol=0)


def test_signs_go_together(llama: Any) -> None:
    found = js.spectrum(llama, TOKENS, k=4)
    J = js.jacobian(llama, TOKENS)
    gains = torch.einsum("pka,apj,pkj->pk", found.output_directions, J, found.input_directions)
    torch.testing.assert_close(gains, found.singular_values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("of", BOTH)
def test_nothing_after_the_explained_position(llama: Any, of: str) -> None:
    found = js.spectrum(llama, TOKENS, of=of, position=3)
    for name in ("singular_values", "output_directions", "input_directions", "energy", "effective_rank", "captured"):
        values = getattr(found, name)
        assert len(values) == len(TOKENS)
        assert not values[4:].any()
        assert values[:4].any()
    assert not found.shares[4:].any()
    assert len(found.to_dataframe()) == 4 * 8
    with pytest.raises(js.InputError, match="after the explained position"):
        found.decode(5)


def test_leading_directions_do_what_they_say(pocket: Any) -> None:
    """A small step along the first input direction moves the distribution by ``½ (ε σ)²``, and as it was decoded."""
    tokens = pocket.to_tokens(PROMPT)
    found = js.spectrum(pocket, tokens, of="fisher", k=1)
    step = 0.002 * found.input_directions[15, 0]

    def nudge(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        activation = activation.clone()
        activation[0, 15] += step
        return activation

    with torch.no_grad():
        before = pocket(tokens)[0, -1].double().log_softmax(-1)
        after = pocket.run_with_hooks(tokens, fwd_hooks=[("hook_embed", nudge)])[0, -1].double().log_softmax(-1)
    kl = (before.exp() * (before - after)).sum()
    assert float(kl) == pytest.approx(0.5 * (0.002 * float(found.singular_values[15, 0])) ** 2, rel=0.1)
    change = after.exp() - before.exp()
    decoded = found.decode(15, 0, k=1)
    assert pocket.tokenizer.decode([int(change.argmax())]) == decoded.rises[0][0]
    assert pocket.tokenizer.decode([int(change.argmin())]) == decoded.falls[0][0]


def test_certain_predictions_have_no_directions(llama: Any) -> None:
    """A distribution that is one token has nothing left to move: zeros, not rounding noise."""

    def peaked(normalized: torch.Tensor, hook: Any) -> torch.Tensor:
        return normalized * 1e4

    found = js.spectrum(llama, TOKENS, of="fisher", fwd_hooks=[("ln_final.hook_normalized", peaked)])
    if found.energy.any():
        pytest.skip("this class takes its final norm from elsewhere")
    assert not found.effective_rank.any()
    assert not found.input_directions.any()
    assert not found.shares.any()


def test_half_precision_stays_near(kind: str) -> None:
    model = shared_tiny(kind, "llama", torch.bfloat16).model
    found = js.spectrum(model, TOKENS, k=2)
    expected = torch.linalg.svdvals(dense("llama", -1).J.movedim(1, 0))[:, :2]
    assert oracles.relative_difference(found.singular_values, expected) < 0.1


def test_logits_that_are_mixed_have_no_tokens(llama: Any) -> None:
    if "unembed.hook_out" not in llama.hook_dict:
        pytest.skip("TransformerLens 2 has no hook points at the unembedding")
    mixes = [("unembed.hook_out", lambda z, hook: z.flip(-1))]
    found = js.spectrum(llama, TOKENS, k=2, fwd_hooks=mixes)
    assert any("mixes logits" in warning for warning in found.warnings)
    assert "effective rank" in repr(found)
    with pytest.raises(js.InputError, match="mixes logits"):
        found.decode(0)
    with pytest.raises(js.InputError, match="W_U"):
        js.spectrum(llama, TOKENS, of="fisher", fwd_hooks=mixes)


def test_data_frame_and_text(pocket: Any) -> None:
    found = js.spectrum(pocket, PROMPT, of="fisher", k=2)
    frame = found.to_dataframe()
    assert frame.loc[(15, 1), "singular_value"] == float(found.singular_values[15, 1])
    assert frame.loc[(15, 0), "rises"][0] == found.decode(15).rises[0][0]
    assert frame.attrs["unit"] == found.unit
    for part in ("pulled-back Fisher", "' columbia' at 15", "effective rank", "sqrt(2 nats)", "against"):
        assert part in repr(found)
    assert dataclasses.is_dataclass(found.decode(15))


def test_weights_that_were_folded(kind: str) -> None:
    """The Jacobian's spectrum changes with folding and says so, Fisher's does not."""
    folded = models.tiny(kind, "llama", fold_ln=True).model
    plain = shared_tiny(kind, "llama").model
    assert any("rescaled" in warning for warning in js.spectrum(folded, TOKENS).warnings)
    fisher = js.spectrum(folded, TOKENS, of="fisher")
    assert not fisher.warnings
    expected = js.spectrum(plain, TOKENS, of="fisher").singular_values
    assert oracles.relative_difference(fisher.singular_values, expected) < 1e-4


def test_everything_is_left_as_it_was(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    model.add_hook("blocks.0.hook_resid_pre", lambda resid, hook: resid)
    js.spectrum(model, TOKENS)  # bridges install hooks of their own at the first pass
    before = snapshot(model)
    js.spectrum(model, TOKENS, of="fisher")
    with pytest.raises(js.InputError):
        js.spectrum(model, TOKENS, at="nowhere")
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"of": "fischer"}, "no spectrum of 'fischer'. Did you mean 'fisher'"),
        ({"of": "trace"}, "no spectrum of 'trace'"),
        ({"k": 0}, r"k is the number of singular values to compute, 1 to 32 \(d_model\)"),
        ({"k": 33}, "1 to 32"),
        ({"k": True}, "got True"),
        ({"position": 8}, "outside the prompt"),
        ({"at": "hook_embedd"}, "hook_embed"),
        ({"at": "resid_pre"}, "."),
        ({"chunk_size": 0}, "chunk_size"),
        ({"frozen": "mlp"}, "frozen is 'attn'"),
    ],
)
def test_wrong_input(llama: Any, how: dict[str, Any], says: str) -> None:
    with pytest.raises(js.InputError, match=says):
        inspect.unwrap(js.spectrum)(llama, TOKENS, **how)


@pytest.mark.parametrize(
    ("args", "says"),
    [((0, 2), "0 to 1 in this result"), ((0, -1), "0 to 1"), ((8, 0), "outside the prompt"), ((0, 0, 0), "1 to 20"),
     ((0, 0, 21), "1 to 20"), ((0.5, 0), "whole number")],
)  # fmt: skip
def test_wrong_directions(llama: Any, args: Any, says: str) -> None:
    found = js.spectrum(llama, TOKENS, k=2)
    with pytest.raises(js.InputError, match=says):
        inspect.unwrap(type(found).decode)(found, *args)


def test_a_scope_of_nothing_known() -> None:
    with pytest.raises(js.InputError, match="Did you mean 'jacobian'"):
        js.SpectralScope(of="jacobean")


@pytest.mark.parametrize("of", BOTH)
def test_shares_of_the_tokens_shown_are_as_by_hand(llama: Any, of: str) -> None:
    o = dense("llama", -1)
    found = js.spectrum(llama, TOKENS, of=of, k=2)
    for pos, i in ((0, 0), (3, 1), (7, 0)):
        logits = o.D @ found.output_directions[pos, i].double()
        change = (logits - logits.mean() if of == "jacobian" else o.p * (logits - o.p @ logits)).sort().values
        ends = torch.cat([change[:5], change[-5:]]).square().sum() / change.square().sum()
        assert found.decode(pos, i).share == pytest.approx(float(ends), rel=1e-3)


def test_tokens_of_random_directions_are_noise(llama: Any) -> None:
    """Of 200 others drawn at random none is five standard deviations above those that are the control."""
    rng = torch.Generator().manual_seed(0)
    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward:
        W_U = torch.randn(D_MODEL, models.D_VOCAB, generator=rng)
        state = dataclasses.replace(forward.state(), W_U=W_U, slope=torch.ones(models.D_VOCAB).double())
        found = decoded(torch.randn(200, D_MODEL, generator=rng), state, forward.view, False)
        one = dataclasses.replace(state, W_U=W_U * torch.eye(models.D_VOCAB)[0])
        told = decoded(W_U[:, :1].T, one, forward.view, False)
    assert all(found.noise(row) for row in range(200))
    assert float(found.shares.mean()) == pytest.approx(found.control[0], rel=0.05)
    assert not told.noise(0)  # one logit moves, and no other
    assert float(told.shares[0]) > 0.99


def test_no_tokens_are_shown_where_they_are_noise(pocket: Any, tmp_path: Any) -> None:
    found = js.spectrum(pocket, PROMPT, of="fisher", k=2)
    assert not found.decode(15).noise
    assert "against" in repr(found)
    noisy = dataclasses.replace(found, decodings=dataclasses.replace(found.decodings, control=(0.99, 1.0)))
    low = dataclasses.replace(
        noisy, decodings=dataclasses.replace(noisy.decodings, shares=noisy.decodings.shares * 0.4)
    )
    assert low.decode(15).noise
    assert low.decode(15).rises == found.decode(15).rises  # whoever asks is told
    assert low.texts(15, 0, 3) == ([], [])
    assert "against" not in repr(low)
    assert "no tokens are shown for" in repr(low)
    assert "none above chance" in low._repr_html_()
    assert not any(low.to_dataframe()["rises"])
    assert low.to_dataframe()["decoded_share"].max() < 0.4001


@pytest.mark.real
@pytest.mark.newest_line
def test_on_a_real_vocabulary(smollm2: Any) -> None:
    """The Jacobian's leading directions say no more in tokens than random ones; those of Fisher are told by ten tokens. Of the last
    third of the blocks, which takes a fifth of the time."""
    prompt, at = "When Mary and John met, John greeted", "blocks.20.hook_resid_post"
    jacobian, fisher = (js.spectrum(smollm2, prompt, of=of, k=1, at=at) for of in BOTH)
    n = len(jacobian.tokens)
    assert sum(jacobian.decode(t).noise for t in range(n)) > 0.9 * n
    assert not any(fisher.decode(t).noise for t in range(n))
    assert " Mary" in fisher.texts(n - 1, 0, 1)[0] + fisher.texts(n - 1, 0, 1)[1]
