"""Layer maps: all hook points from one forward and one backward pass, each as it would be alone."""

import inspect
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

import jscope_tl as js
from jscope_tl.views.terminal import show
from tests import models, oracles
from tests.conftest import shared_tiny
from tests.models import TOKENS, Tiny, snapshot

NEED = {"contrastive": {"target": 5, "baseline": 9}, "fisher": {"method": "exact"}, "semantic": {"target": 3}}
PROMPT = "tom grew up in the south and goes to columbia . at school he is a"


def points(name: str, n: int = 3) -> list[str]:
    return [f"blocks.{layer}.hook_{name}" for layer in range(n)]


@pytest.mark.slow
@pytest.mark.parametrize("scope", oracles.SCOPES)
@pytest.mark.parametrize("name", ["resid_pre", "resid_post"])
def test_each_row_is_what_it_is_alone(tiny: Tiny, scope: str, name: str) -> None:
    options = NEED.get(scope, {})
    result = js.attribute(tiny.model, TOKENS, scope, at=name, **options)
    assert result.scores.shape == (3, len(TOKENS))
    assert result.hook_points == tuple(points(name))
    for layer, at in enumerate(points(name)):
        alone = js.attribute(tiny.model, TOKENS, scope, at=at, **options)
        torch.testing.assert_close(result.scores[layer], alone.scores, rtol=2e-4, atol=2e-5 * float(alone.scores.max()))
        assert result.layer(at).provenance.hook_point == at
        assert torch.equal(result.layer(layer).scores, result.scores[layer])


@pytest.mark.parametrize("scope", oracles.SCOPES)
def test_the_first_row_is_the_embeddings(tiny: Tiny, scope: str) -> None:
    """Nothing is added between them but what does not depend on the embedding."""
    options = NEED.get(scope, {})
    if scope == "fisher_input":  # multiplies by the activation, which has the positions in it
        options = {**options, "reduction": "row_norm"}
    result = js.attribute(tiny.model, TOKENS, scope, at="resid_pre", **options)
    embedding = js.attribute(tiny.model, TOKENS, scope, **options)
    torch.testing.assert_close(result.scores[0], embedding.scores, rtol=2e-4, atol=2e-5 * float(embedding.scores.max()))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_between_attention_and_mlp(kind: str, family: str) -> None:
    """The gradient at ``resid_mid`` is that at what attention adds to the stream: HuggingFace's own, by autograd."""
    tiny = shared_tiny(kind, family)
    result = js.attribute(tiny.model, TOKENS, "semantic", target=3, at="resid_mid")
    added: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        added.append(output[0] if isinstance(output, tuple) else output)

    blocks = tiny.hf.transformer.h if family == "gpt2" else tiny.hf.model.layers
    attends = {"gpt2": "attn", "llama": "self_attn", "gemma2": "post_attention_layernorm"}[family]
    handles = [getattr(block, attends).register_forward_hook(keep) for block in blocks]
    logit = tiny.hf(TOKENS[None]).logits[0, -1, 3]
    for handle in handles:
        handle.remove()
    wanted = torch.stack([g[0].norm(dim=-1) for g in torch.autograd.grad(logit, added)])
    torch.testing.assert_close(result.scores, wanted, rtol=1e-4, atol=1e-5)
    for layer in range(3):
        alone = js.attribute(tiny.model, TOKENS, "semantic", target=3, at=f"blocks.{layer}.hook_resid_mid")
        torch.testing.assert_close(alone.scores, wanted[layer], rtol=1e-4, atol=1e-5)


def test_no_stream_between_parallel_branches(kind: str) -> None:
    with pytest.raises(js.InputError, match=r"in parallel|has no hook point"):
        js.attribute(shared_tiny(kind, "pythia").model, TOKENS, at="resid_mid")


def test_one_forward_and_one_backward(llama: Any) -> None:
    calls = []
    handle = llama.unembed.register_forward_hook(lambda *_: calls.append(1))
    result = js.attribute(llama, TOKENS, "log_prob", at="resid_pre")
    handle.remove()
    assert len(calls) == 1
    assert result.provenance.n_backward == 1


def test_any_points_in_any_order(llama: Any) -> None:
    at = ["blocks.2.hook_resid_post", "hook_embed", "blocks.1.hook_resid_mid"]
    result = js.attribute(llama, TOKENS, "entropy", at=at)
    for layer, name in enumerate(at):
        alone = js.attribute(llama, TOKENS, "entropy", at=name)
        torch.testing.assert_close(result.scores[layer], alone.scores, rtol=1e-4, atol=1e-6)
    assert result.scores[0, :-1].count_nonzero() == 0  # after the last block other positions count no more
    one = js.attribute(llama, TOKENS, "entropy", at=[at[1]])
    assert one.scores.shape == (1, len(TOKENS))


def test_estimates_have_errors_everywhere(llama: Any) -> None:
    result = js.attribute(llama, TOKENS, "fisher", at="resid_pre", method="sampled", rank=2, probes=6)
    exact = js.attribute(llama, TOKENS, "fisher", at="resid_pre", method="exact")
    assert result.stderr is not None
    assert result.stderr.shape == (3, len(TOKENS))
    assert ((result.scores - exact.scores).abs() <= 6 * result.stderr + 1e-4 * exact.scores).all()
    auto = js.attribute(llama, TOKENS, "fisher", at="resid_pre", rtol=0.2)
    assert auto.scores.shape == (3, len(TOKENS))


def test_what_a_hook_cuts_off_counts_nothing(llama: Any) -> None:
    hooks = [("blocks.1.hook_resid_pre", lambda resid, hook: resid.detach().clone())]
    result = js.attribute(llama, TOKENS, "semantic", at="resid_pre", fwd_hooks=hooks)
    assert result.scores[0].count_nonzero() == 0
    assert result.scores[1].count_nonzero() == len(TOKENS)


def test_everything_is_left_as_it_was(kind: str) -> None:
    model = models.tiny(kind, "llama").model
    js.attribute(model, TOKENS)
    before = snapshot(model)
    js.attribute(model, TOKENS, at="resid_mid")
    js.attribute(model, TOKENS, "fisher", at=["hook_embed", "blocks.1.hook_resid_post"])
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("at", "cure"),
    [([], "no hook point"), (["hook_embed", "hook_embed"], "once"), (["hook_embed", "blocks.0.attn.hook_q"], "not in the"),
     (["hook_embed", 3], "no hook point 3"), ("resid_pres", "Did you mean|'resid_pre' for all"), (None, "no hook point")],
)  # fmt: skip
def test_bad_points(llama: Any, at: Any, cure: str) -> None:
    with pytest.raises(js.InputError, match=cure):
        inspect.unwrap(js.attribute)(llama, TOKENS, at=at)


def test_one_point_where_one_is_needed(llama: Any) -> None:
    for call in (js.jacobian, js.influence_pattern):
        with pytest.raises(js.InputError, match="One hook point is needed"):
            inspect.unwrap(call)(llama, TOKENS, at="resid_pre")


@pytest.fixture(scope="module")
def layer_map(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, PROMPT, "fisher", at="resid_pre", method="sampled")


def test_top_cells(layer_map: js.Attribution) -> None:
    best = layer_map.top(3)
    values = layer_map.scores[:, 1:].flatten().topk(3).values.tolist()
    assert [token.score for token in best] == values
    assert layer_map.scores[layer_map.hook_points.index(best[1].hook_point), best[1].position] == best[1].score
    for token in layer_map.top(10**6, include_bos=True):
        assert token.stderr is not None
    assert len(layer_map.top(10**6, include_bos=True)) == layer_map.scores.numel()


def test_data_frame(layer_map: js.Attribution) -> None:
    frame = layer_map.to_dataframe()
    assert isinstance(frame.index, pd.MultiIndex)
    assert frame.loc[("blocks.2.hook_resid_pre", 5), "score"] == float(layer_map.scores[2, 5])


def test_saved_and_loaded(layer_map: js.Attribution, tmp_path: Path) -> None:
    loaded = js.Attribution.load(layer_map.save(tmp_path / "map"))
    assert torch.equal(loaded.scores, layer_map.scores)
    assert torch.equal(loaded.stderr, layer_map.stderr)
    assert loaded.hook_points == layer_map.hook_points
    assert repr(loaded) == repr(layer_map)


def test_layers_by_number_and_name(layer_map: js.Attribution) -> None:
    assert torch.equal(layer_map.layer(-1).scores, layer_map.scores[3])
    for bad in (4, -5, "hook_embed", None, 1.0):
        with pytest.raises(js.InputError, match="no layer"):
            inspect.unwrap(js.Attribution.layer)(layer_map, bad)
    with pytest.raises(js.InputError, match="not a layer map"):
        layer_map.layer(0).layer(0)


@pytest.mark.slow
def test_views(layer_map: js.Attribution, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "blocks.0.hook_resid_pre" in repr(layer_map)
    html = layer_map._repr_html_()
    assert "image/svg+xml" in html
    assert len(html) < 50_000
    axis = js.views.heatmap(layer_map).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(layer_map.hook_points)
    show(layer_map, Console(width=150))
    assert "blocks.3.hook_resid_pre" in capsys.readouterr().out
    page = js.report(layer_map, tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<tr>") > layer_map.scores.numel()
    js.views.prediction(layer_map)
    for view in (js.views.tokens, js.views.series, js.views.attention):
        with pytest.raises(js.InputError, match=r"layer map of 4.*result.layer"):
            view(layer_map)
    with pytest.raises(js.InputError, match="in its own axes"):
        js.views.heatmap([layer_map, layer_map])
