"""The influence that heads carry, layer by layer: a vector-Jacobian product, a Jacobian-vector product, and the attention pattern between them."""

from contextlib import suppress
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from jscope_tl.components.token_flow import FlowEdge
from jscope_tl.engine.at_points import rows_at, tangents_at
from jscope_tl.engine.run import Run
from jscope_tl.errors import InputError
from jscope_tl.model.view import ModelView

SAME = (1e-3, 0.03)
"""The largest allowed difference of ``z`` and ``P v``, relative to the largest entry, in full and in half precision."""


@dataclass(frozen=True)
class Carried:
    """The numbers of a `TokenFlow`, under its field names, in float32 on the CPU."""

    total: float
    edges: tuple[FlowEdge, ...]
    heads: Float[Tensor, "layer head"]
    levels: Float[Tensor, "level pos"]
    staying: Float[Tensor, "layer pos"]
    mlps: Float[Tensor, "layer pos"]
    sizes: Float[Tensor, "layer"]


def flow_points(view: ModelView) -> tuple[list[str], list[str], list[str]]:
    """Names of the hook points that a flow needs: the residual stream at every level, and values and outputs of the heads of every layer.

    Raises:
        InputError: the model lacks one.
    """
    n = int(view.cfg.n_layers)
    stream = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(n)), f"blocks.{n - 1}.hook_resid_post"]
    values, zs = ([f"blocks.{layer}.attn.hook_{kind}" for layer in range(n)] for kind in ("v", "z"))
    missing = [name for name in (*stream, *values, *zs) if name not in view.points]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{view.name} has no hook point {missing[0]!r}{more}, and a flow needs the heads of all layers. Use a model with softmax attention "
            "in every layer."
        )
    return stream, values, zs


def carried(forward: Run, cotangent: Float[Tensor, "d_model"], source: int, n_edges: int) -> Carried:
    """Follow the vector of one token through a run with one explained position. The run must have patterns, watch `flow_points`, and have
    rules under which attention and norms are linear."""
    stream, values, zs = ([forward.watched[name] for name in names] for names in flow_points(forward.view))
    x = forward.xs[0]
    tangent = torch.zeros_like(x, dtype=cotangent.dtype)
    tangent[0, source] = x.detach()[0, source].to(tangent)
    n = len(stream)
    row, *rows = rows_at(forward, [x, *stream, *zs], cotangent)
    tangents = tangents_at(forward, [*stream, *values], tangent)
    edges: list[FlowEdge] = []
    heads, into, sizes = [], [], []
    for layer, (z, v) in enumerate(zip(zs, values, strict=True)):
        P = _pattern(forward, layer, z, v)
        found = _entries(P.to(cotangent.dtype), rows[n + layer], tangents[n + layer])
        edges = _strongest([*edges, *_listed(layer, found, n_edges)], n_edges)
        heads.append(found.sum((1, 2)).cpu())
        into.append(found.sum((0, 2)).cpu())
        sizes.append(found.abs().sum().cpu())
    levels = torch.stack([_along(r, t) for r, t in zip(rows[:n], tangents[:n], strict=True)])
    staying = torch.stack([_along(r, t) for r, t in zip(rows[1:n], tangents[: n - 1], strict=True)])
    mlps = levels[1:] - staying - torch.stack(into)
    numbers = (torch.stack(heads), levels, staying, mlps, torch.stack(sizes))
    total = float(row[0, source] @ tangent[0, source])
    return Carried(total, tuple(edges), *(values.float() for values in numbers))


def _along(row: Float[Tensor, "1 pos d"], tangent: Float[Tensor, "1 pos d"]) -> Float[Tensor, "pos"]:
    return (row * tangent.to(row.device))[0].sum(-1).cpu()


def _entries(
    P: Float[Tensor, "head dest src"], row: Float[Tensor, "1 pos ..."], tangent: Float[Tensor, "1 pos ..."]
) -> Float[Tensor, "head dest src"]:
    """The influence that each entry of a pattern carries."""
    r = by_head(row, len(P))
    t = _for_each_head(tangent, len(P), r.shape[-1])
    return P * einsum(r, t.to(r.device), "dest head d, src head d -> head dest src")


def by_head(z: Float[Tensor, "1 pos ..."], n_heads: int) -> Float[Tensor, "pos head d_head"]:
    """The head outputs of one prompt with a separate axis for heads, whether or not ``z`` has that axis."""
    return rearrange(z[0].flatten(1), "pos (head d) -> pos head d", head=n_heads)


def _for_each_head(v: Float[Tensor, "1 pos ..."], n_heads: int, d_head: int) -> Float[Tensor, "pos head d_head"]:
    """The values that each query head reads; with grouped-query attention several query heads share them."""
    kept = rearrange(v[0].flatten(1), "pos (group d) -> pos group d", d=d_head)
    return repeat(kept, "pos group d -> pos (group each) d", each=n_heads // kept.shape[1])


def _pattern(
    forward: Run, layer: int, z: Float[Tensor, "1 pos ..."], v: Float[Tensor, "1 pos ..."]
) -> Float[Tensor, "head dest src"]:
    """The layer's attention pattern, if ``z`` is exactly the values weighted by it.

    Raises:
        InputError: it is not.
    """
    entries, off = forward.entries.get(layer), float("inf")
    if entries is not None:
        pattern = rearrange(entries[0], "src (head dest) -> head dest src", dest=z.shape[1])
        with suppress(RuntimeError, ValueError):  # sizes that do not fit each other
            off = _difference(pattern.float(), z.detach().float(), v.detach().float())
    if not off <= SAME[z.dtype in (torch.float16, torch.bfloat16)]:
        raise InputError(
            f"In layer {layer} of {forward.view.name} the output of heads is not the values weighted by an attention pattern: hook_z differs from "
            "the pattern times hook_v, because of a gate, a norm, a projection or a hook between them. The influence of single entries is not "
            "defined. Leave such hooks out, or use js.patching.components(model, prompt, scope, of='edges') for the effect of each entry."
        )
    return pattern


def _difference(
    P: Float[Tensor, "head dest src"], z: Float[Tensor, "1 pos ..."], v: Float[Tensor, "1 pos ..."]
) -> float:
    """The largest difference of ``z`` and ``P v``, relative to the largest entry."""
    expected = by_head(z, len(P))
    mixed = einsum(P, _for_each_head(v, len(P), expected.shape[-1]), "head dest src, src head d -> dest head d")
    return float((mixed - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(z.dtype).tiny))


def _listed(layer: int, found: Float[Tensor, "head dest src"], n: int) -> list[FlowEdge]:
    """The ``n`` strongest entries of a layer."""
    strongest = found.abs().flatten().topk(min(n, found.numel())).indices
    places = torch.stack(torch.unravel_index(strongest, found.shape), 1).tolist()
    sizes = found.flatten()[strongest].tolist()
    return [
        FlowEdge(layer, head, dest, src, size) for (head, dest, src), size in zip(places, sizes, strict=True) if size
    ]


def _strongest(edges: list[FlowEdge], n: int) -> list[FlowEdge]:
    return sorted(edges, key=lambda edge: -abs(edge.influence))[:n]
