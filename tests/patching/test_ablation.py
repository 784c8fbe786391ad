"""Leave-one-out effects against a loop over prompts, and the three runs side by side."""

import inspect
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

import jscope_tl as js
from tests.conftest import shared_tiny
from tests.models import TOKENS, Tiny
from tests.patching.test_comparison import CORRUPTED

POINT = "blocks.1.hook_resid_pre"


def naive_logits(model: Any, put: Any) -> torch.Tensor:
    rows = []
    for t in range(6):

        def blank(embedded: torch.Tensor, hook: Any, t: int = t) -> torch.Tensor:
            embedded = embedded.clone()
            embedded[0, t] = put
            return embedded

        with torch.no_grad():
            rows.append(
                model.run_with_hooks(TOKENS[None], fwd_hooks=[("hook_embed", blank)], return_type="logits")[0, 5]
            )
    return torch.stack(rows).double()


@pytest.mark.parametrize("replacement", ["zero", "mean"])
def test_effects_are_those_of_a_loop(tiny: Tiny, replacement: str) -> None:
    model = tiny.model
    with torch.no_grad():
        base = model(TOKENS[None], return_type="logits")[0, 5].double()
        _, cache = model.run_with_cache(TOKENS[None])
    factor = float((cache["hook_embed"][0, 1] / model.W_E.detach()[TOKENS[1]]).mean())  # Gemma's, else 1
    put = 0 if replacement == "zero" else factor * model.W_E.detach().mean(0)
    logits = naive_logits(model, put)
    result = js.patching.ablate(model, TOKENS, "semantic", target=3, position=5, replacement=replacement, batch_size=4)
    log_p, log_q = base.log_softmax(-1), logits.log_softmax(-1)
    close = {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(result.logit[:6], logits[:, 3] - base[3], **close)
    torch.testing.assert_close(result.log_prob[:6], log_q[:, 3] - log_p[3], **close)
    torch.testing.assert_close(result.kl[:6], (log_p.exp() * (log_p - log_q)).sum(-1), **close)
    assert not result.kl[6:].any()


def test_another_token(llama: Any) -> None:
    result = js.patching.ablate(llama, TOKENS, "log_prob", target=3, replacement=77)
    for t in (0, 4, 7):
        changed = TOKENS.clone()
        changed[t] = 77
        with torch.no_grad():
            a, b = (
                llama(tokens[None], return_type="logits")[0, -1].double().log_softmax(-1)
                for tokens in (TOKENS, changed)
            )
        assert float(result.log_prob[t]) == pytest.approx(float(b[3] - a[3]), abs=1e-5)


def test_batches_do_not_matter(llama: Any) -> None:
    one, many = (js.patching.ablate(llama, TOKENS, "fisher", batch_size=n) for n in (1, 64))
    torch.testing.assert_close(one.kl, many.kl, rtol=1e-4, atol=1e-7)


def test_correlation_is_scipys(pocket: Any) -> None:
    result = js.patching.ablate(pocket, "tom grew up in the south and goes to columbia . at school he is a", "fisher")
    assert result.correlation("kl") == pytest.approx(spearmanr(result.scope.scores[1:], result.kl[1:]).statistic)
    assert "rank correlation" in repr(result)
    assert result.to_dataframe()["kl"].tolist() == result.kl.tolist()
    with pytest.raises(js.InputError, match="logit, log_prob, kl"):
        result.correlation("share")


@pytest.mark.parametrize("replacement", ["two words", None, 10**6, 1.5])
def test_bad_replacement(pocket: Any, replacement: Any) -> None:
    with pytest.raises(js.InputError):
        inspect.unwrap(js.patching.ablate)(pocket, "tom grew", replacement=replacement)


def test_bad_batch_size(pocket: Any) -> None:
    for size in (0, -1, "3"):
        with pytest.raises(js.InputError, match="batch_size"):
            inspect.unwrap(js.patching.ablate)(pocket, "tom grew", batch_size=size)


@pytest.mark.parametrize("scope", ["semantic", "fisher"])
def test_three_runs(llama: Any, scope: str) -> None:
    target = {"target": 3} if scope == "semantic" else {"method": "exact"}
    runs = js.patching.side_by_side(
        llama, TOKENS, CORRUPTED, POINT, [2, 3], scope, at="blocks.2.hook_resid_pre", **target
    )
    clean = js.attribute(llama, TOKENS, scope, at="blocks.2.hook_resid_pre", **target)
    assert torch.equal(runs.clean.scores, clean.scores)
    assert torch.equal(runs.patched.tokens, CORRUPTED)
    torch.testing.assert_close(runs.difference("patched", "corrupted"), runs.patched.scores - runs.corrupted.scores)
    everything = js.patching.side_by_side(
        llama, TOKENS, CORRUPTED, "blocks.0.hook_resid_pre", range(8), scope, at="resid_post", **target
    )
    torch.testing.assert_close(everything.patched.scores, everything.clean.scores, rtol=1e-4, atol=1e-6)
    assert everything.difference("patched", "clean").shape == (3, 8)
    with pytest.raises(js.InputError, match="no 'other'"):
        inspect.unwrap(js.patching.SideBySide.difference)(runs, "other", "clean")


def test_patch_hooks_of_transformer_lens(llama: Any) -> None:
    """A scope under a hook that a user would write for patching."""
    with torch.no_grad():
        _, cache = llama.run_with_cache(TOKENS[None])

    def patch(resid: torch.Tensor, hook: Any) -> torch.Tensor:
        resid[:, 2:4] = cache[hook.name][:, 2:4]  # in place, as TransformerLens' own setters do
        return resid

    result = js.attribute(llama, CORRUPTED, "semantic", target=3, fwd_hooks=[(POINT, patch)])
    runs = js.patching.side_by_side(llama, TOKENS, CORRUPTED, POINT, [2, 3], "semantic", target=3)
    torch.testing.assert_close(result.scores, runs.patched.scores)


def test_bad_positions(llama: Any) -> None:
    with pytest.raises(js.InputError, match="outside the prompt"):
        js.patching.side_by_side(llama, TOKENS, CORRUPTED, POINT, [99])


def test_side_branch(kind: str) -> None:
    model = shared_tiny(kind, "llama").model
    if kind == "bridge":
        with pytest.raises(js.InputError, match="would not change the stream"):
            js.patching.side_by_side(model, TOKENS, CORRUPTED, "blocks.1.hook_resid_mid", [2])


def test_it_prints_the_tokens_with_the_largest_effects(pocket: Any) -> None:
    result = js.patching.ablate(pocket, "the keys to the cabinet near the doors", "log_prob", progress=False)
    first = int(result.kl.argmax())
    said = repr(result).splitlines()
    assert len(said) == 2 + 5
    assert said[2].split()[:4] == ["1.", "'", f"{result.scope.str_tokens[first].strip()}'", "at"]
    assert f"at {first} " in said[2]
    assert f"{float(result.kl[first]):.4g} ({float(result.log_prob[first]):+.3g})" in said[2]


def test_it_prints_no_tokens_after_the_explained_one(pocket: Any) -> None:
    result = js.patching.ablate(pocket, "the keys to the cabinet", "log_prob", position=2, progress=False)
    places = [line.partition(" at ")[2].split()[0] for line in repr(result).splitlines()[2:]]
    assert sorted(places) == ["0", "1", "2"]
