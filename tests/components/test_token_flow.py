"""A token's flow against dense Jacobians of a restatement in float64, and the balance that it must keep."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jscope_tl as js
from jscope_tl.views.flow_graph import bundles
from tests import models
from tests.conftest import shared_tiny
from tests.models import ANY_KIND, TOKENS, Tiny, snapshot

TARGET, SOURCE = 44, 3


def dense(flow: js.patching.TokenFlow) -> Tensor:
    """``[layer, head, dest, src]`` from a flow that lists all of its edges."""
    layers, heads = flow.heads.shape
    entries = torch.zeros(layers, heads, len(flow.tokens), len(flow.tokens), dtype=torch.float64)
    for edge in flow.edges:
        entries[edge.layer, edge.head, edge.dest, edge.src] += edge.influence
    return entries


def follow(model: Any, source: int = SOURCE, scope: str = "semantic", **how: Any) -> js.patching.TokenFlow:
    how = {"n_edges": 10_000, **({"target": TARGET} if scope != "entropy" else {}), **how}
    return js.patching.flow(model, TOKENS, source, scope, **how)


def linear_llama(hf: Any) -> tuple[Tensor, Callable[..., dict[str, list[Tensor]]]]:
    """A Llama's embeddings, and its forward pass from them, patterns and norm scales held at those of the prompt; every part by its formula.

    ``z`` given is put in place of the heads' outputs of one layer.
    """
    hf = copy.deepcopy(hf).double()
    with torch.no_grad():
        patterns = [P[0].double() for P in hf(TOKENS[None], output_attentions=True).attentions]
    scales: list[Tensor] = []
    first = True

    def norm(x: Tensor, weight: Tensor, at: int) -> Tensor:
        if first:
            scales.append((x.square().mean(-1, keepdim=True) + hf.config.rms_norm_eps).rsqrt().detach())
        return x * scales[at] * weight

    def forward(x: Tensor, replace: dict[int, Tensor] | None = None) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {"stream": [x], "v": [], "z": []}
        for i, (block, P) in enumerate(zip(hf.model.layers, patterns, strict=True)):
            read = norm(x, block.input_layernorm.weight, 2 * i)
            v = (read @ block.self_attn.v_proj.weight.T).unflatten(-1, (2, 8)).repeat_interleave(2, 1)
            z = torch.stack([P[h] @ v[:, h] for h in range(4)], 1)
            z = z if replace is None or i not in replace else replace[i]
            x = x + z.flatten(1) @ block.self_attn.o_proj.weight.T
            read = norm(x, block.post_attention_layernorm.weight, 2 * i + 1)
            mlp = block.mlp
            gate, up = read @ mlp.gate_proj.weight.T, read @ mlp.up_proj.weight.T
            x = x + (nn.functional.silu(gate) * up) @ mlp.down_proj.weight.T
            for name, value in (("v", v), ("z", z), ("stream", x)):
                found[name].append(value)
        found["logit"] = [norm(x, hf.model.norm.weight, 2 * i + 2)[-1] @ hf.lm_head.weight[TARGET]]
        return found

    embeddings = hf.get_input_embeddings()(TOKENS).detach()
    forward(embeddings)
    first = False
    return embeddings, forward


def test_edges_are_those_of_dense_jacobians(kind: str) -> None:
    """Keys and values are grouped: what an entry carries is told for each head of queries."""
    tiny = shared_tiny(kind, "llama", torch.float64)
    embeddings, forward = linear_llama(tiny.hf)
    flow = follow(tiny.model)
    found = dense(flow)

    def values(x_s: Tensor) -> list[Tensor]:
        return forward(torch.cat([embeddings[:SOURCE], x_s[None], embeddings[SOURCE + 1 :]]))["v"]

    at = forward(embeddings)
    x_s = embeddings[SOURCE]
    with torch.no_grad():
        patterns = [P[0].double() for P in copy.deepcopy(tiny.hf)(TOKENS[None], output_attentions=True).attentions]
    for layer in range(3):
        moved = torch.autograd.functional.jacobian(lambda x, i=layer: values(x)[i], x_s) @ x_s  # [src, head, d]
        row = torch.autograd.functional.jacobian(
            lambda z, i=layer: forward(embeddings, {i: z})["logit"][0], at["z"][layer]
        )  # [dest, head, d]
        expected = patterns[layer] * torch.einsum("dhe,she->hds", row, moved)
        assert float((found[layer] - expected).abs().max() / expected.abs().max()) < 1e-5
    total = torch.autograd.functional.jacobian(
        lambda x: forward(torch.cat([embeddings[:SOURCE], x[None], embeddings[SOURCE + 1 :]]))["logit"][0], x_s
    )
    assert flow.total == pytest.approx(float(total @ x_s), rel=1e-5)


def test_what_stays_is_that_of_dense_jacobians(kind: str) -> None:
    tiny = shared_tiny(kind, "llama", torch.float64)
    embeddings, forward = linear_llama(tiny.hf)
    flow = follow(tiny.model)
    tangent = torch.zeros_like(embeddings)
    tangent[SOURCE] = embeddings[SOURCE]
    moved = torch.autograd.functional.jvp(lambda x: tuple(forward(x)["stream"]), embeddings, tangent)[1]
    leaf = embeddings.clone().requires_grad_()
    at = forward(leaf)
    rows = torch.autograd.grad(at["logit"][0], at["stream"])
    levels = torch.stack([(row * t).sum(-1) for row, t in zip(rows, moved, strict=True)])
    staying = torch.stack([(row * t).sum(-1) for row, t in zip(rows[1:], moved[:-1], strict=True)])
    torch.testing.assert_close(flow.levels.double(), levels, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flow.staying.double(), staying, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scope", ["semantic", "log_prob", "entropy"])
def test_influence_is_nowhere_made_or_lost(tiny: Tiny, scope: str) -> None:
    flow = follow(tiny.model, scope=scope)
    entries, size = dense(flow), float(flow.levels.abs().max())
    assert flow.warnings == []
    assert float((flow.levels.sum(1) - flow.total).abs().max()) < 1e-5 * size
    kept = (flow.staying + flow.mlps).double()
    arrives, leaves = entries.sum((1, 3)), entries.sum((1, 2))
    assert float((flow.levels[1:] - kept - arrives).abs().max()) < 1e-5 * size
    assert float((flow.levels[:-1] - kept - leaves).abs().max()) < 1e-5 * size
    torch.testing.assert_close(flow.heads.double(), entries.sum((2, 3)), rtol=1e-4, atol=1e-6 * size)
    torch.testing.assert_close(flow.sizes.double(), entries.abs().sum((1, 2, 3)), rtol=1e-4, atol=1e-6 * size)
    assert list(flow.by_layer.sum(axis=1)) == pytest.approx([flow.total] * len(flow.heads), abs=1e-5 * size)


def test_all_tokens_together_are_what_frozen_rows_say(tiny: Tiny) -> None:
    """The totals are the entries of input times gradient, with patterns and norms constant."""
    frozen = js.attribute(
        tiny.model, TOKENS, "semantic", target=TARGET, reduction="dot", frozen=("attn", "norm")
    ).scores
    totals = torch.tensor([abs(follow(tiny.model, t, n_edges=1).total) for t in range(len(TOKENS))])
    torch.testing.assert_close(totals, frozen, rtol=1e-4, atol=1e-6)


def test_only_from_the_source_and_to_the_explained_position(tiny: Tiny) -> None:
    flow = follow(tiny.model, position=5)
    first, last = flow.levels[0].nonzero().flatten(), flow.levels[-1].nonzero().flatten()
    assert first.tolist() == [SOURCE]
    assert last.tolist() == [5]
    assert all(SOURCE <= edge.src <= edge.dest <= 5 for edge in flow.edges)
    short = js.patching.flow(tiny.model, TOKENS[:6], SOURCE, "semantic", target=TARGET, n_edges=10_000)
    torch.testing.assert_close(flow.levels[:, :6], short.levels, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not models.has_hooked(), reason="a model without norms and MLPs is made as a HookedTransformer")
def test_exact_where_everything_is_linear() -> None:
    """Attention alone without norms: with its patterns as they were, the model without the token differs by the total."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_heads=2, d_head=8, d_vocab=530, n_ctx=16, attn_only=True, normalization_type=None, seed=0,
        dtype=torch.float64, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(cfg, tokenizer=models.tokenizer()).eval()
    flow = follow(model)
    with torch.no_grad():
        logits, cache = model.run_with_cache(TOKENS[None])
        kept = [(f"blocks.{i}.attn.hook_pattern", lambda P, hook: cache[hook.name]) for i in range(2)]

        def without(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            x[:, SOURCE] = 0
            return x

        other = model.run_with_hooks(TOKENS[None], fwd_hooks=[*kept, ("hook_embed", without)])
    assert flow.total == pytest.approx(float((logits - other)[0, -1, TARGET]), rel=1e-5)
    assert float(flow.mlps.abs().max()) < 1e-6 * abs(flow.total)


def test_fused_attention_has_patterns_too() -> None:
    if ANY_KIND != "bridge":
        pytest.skip("fused attention is a bridge's")
    tiny = models.tiny("bridge", "llama")
    eager = follow(tiny.model)
    tiny.model.original_model.set_attn_implementation("sdpa")
    torch.testing.assert_close(dense(follow(tiny.model)), dense(eager), rtol=1e-4, atol=1e-6)


def test_hooks_of_the_users_are_active(llama: Any) -> None:
    """The stream of one position cut: nothing goes through it any more."""

    def cut(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        x[:, SOURCE] = x[:, SOURCE].detach()
        return x

    flow = follow(llama, fwd_hooks=[("blocks.1.hook_resid_pre", cut)])
    assert not flow.levels[1, SOURCE]
    assert not [edge for edge in flow.edges if edge.layer > 0 and edge.src == SOURCE]
    assert float(flow.levels[1].sum()) == pytest.approx(flow.total, rel=1e-4)


def test_few_edges_are_the_strongest(llama: Any) -> None:
    every, few = follow(llama), follow(llama, n_edges=7)
    assert few.edges == every.edges[:7]
    assert few.top(3) == list(every.edges[:3])
    sizes = [abs(edge.influence) for edge in every.edges]
    assert sizes == sorted(sizes, reverse=True)
    assert list(few.to_dataframe()["influence"]) == [edge.influence for edge in few.edges]
    assert "7 edges are listed" in repr(few)


def test_nothing_of_the_users_is_changed(llama: Any, tmp_path: Path) -> None:
    before = snapshot(llama)
    with torch.inference_mode():
        flow = follow(llama)
    assert snapshot(llama) == before
    assert flow.provenance.n_forward == 1
    assert flow.provenance.n_backward == 4
    again = js.patching.TokenFlow.load(flow.save(tmp_path / "flow.safetensors"))
    assert again.edges == flow.edges
    torch.testing.assert_close(again.levels, flow.levels)
    assert repr(again) == repr(flow)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"source_position": 5, "position": 3}, "comes after the explained position 3"),
        ({"source_position": 50}, "50"),
        ({"scope": "fisher"}, "single cotangent"),
        ({"scope": "spectral"}, "single cotangent"),
        ({"n_edges": 0}, "n_edges is a whole number"),
        ({"frozen": "attn"}, "takes no 'frozen'"),
        ({"at": "blocks.1.hook_resid_pre"}, "takes no 'at'"),
        ({"fwd_hooks": [("blocks.1.attn.hook_z", lambda z, hook: 2 * z)]}, "Leave such hooks out"),
    ],
)
def test_what_cannot_be_followed(llama: Any, how: dict[str, Any], says: str) -> None:
    before = snapshot(llama)
    with pytest.raises(js.InputError, match=says):
        js.patching.flow(llama, TOKENS, **{"source_position": SOURCE, **how})
    assert snapshot(llama) == before


def test_norms_that_cannot_be_held_are_named_without_a_keyword_that_is_not_there(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jscope_tl.engine import norm_rules

    monkeypatch.setattr(norm_rules, "CONSTANT", {})
    with pytest.raises(js.InputError, match="A flow holds attention patterns and norm scales constant") as refused:
        follow(llama)
    assert "out of frozen" not in str(refused.value)


def test_bundles_hold_every_edge_once(llama: Any) -> None:
    edges = follow(llama, n_edges=60).edges
    together = bundles(edges)
    assert sorted(edge.influence for bundle in together for edge in bundle.edges) == sorted(e.influence for e in edges)
    for bundle in together:
        assert len({(e.layer, e.src, e.dest, e.influence > 0) for e in bundle.edges}) == 1
    assert len({(b.layer, b.src, b.dest, b.influence > 0) for b in together}) == len(together)
