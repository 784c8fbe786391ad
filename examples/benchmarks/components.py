"""The command `python examples/benchmarks components MODEL GROUND_TRUTH`: how near predicted effects of components are to measured ones.

Prompts are those of the ground truth that nothing was chosen on, family by family in turn. Of each all heads and MLPs are taken away, and
two samples of edges: any, and some of those that are predicted to do most.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import jscope_tl as js
from jscope_tl.faithfulness.ground_truth import GroundTruth
from jscope_tl.model.loading import load_model
from jscope_tl.results.ranks import spearman

SAMPLE, STRONGEST = 200, 2000
"""Edges that are measured, of all and of those that are predicted to do most."""


def prompts_of(path: Path, n: int) -> list[Any]:
    """Prompts of the held-out half, one of each family after the other."""
    families: dict[str, list[Any]] = {}
    for prompt in GroundTruth.load(path).report:
        families.setdefault(prompt.family, []).append(prompt)
    longest = max(map(len, families.values()))
    turns = [prompts[i] for i in range(longest) for prompts in families.values() if i < len(prompts)]
    return turns[:n]


def compared(predicted: Any, measured: Any) -> dict[str, float]:
    """Rank correlation, and how many of the ten strongest are among the ten and the twenty predicted highest."""
    order, true = predicted.flatten().abs(), measured.flatten().abs()
    best = set(true.topk(min(10, len(true))).indices.tolist())
    among = [len(best & set(order.topk(min(k, len(order))).indices.tolist())) for k in (10, 20)]
    return {"rho": float(spearman(order.numpy(), true.numpy())), "of 10 in 10": among[0], "of 10 in 20": among[1]}


def heads_or_mlps(model: Any, tokens: Any, of: str) -> list[dict[str, Any]]:
    """All of them: predicted, without refinement, behind twenty measurements, and first-order attribution patching."""
    how: dict[str, Any] = dict(of=of, progress=False)
    effects = js.patching.components(model, tokens, **how)
    every = effects.measure(effects.predicted.numel(), progress=False)
    first_order = js.patching.components(model, tokens, "log_prob", refine=0, **how)
    linear = js.patching.components(model, tokens, refine=0, **how)
    ways = {
        "predicted": effects,
        "not refined": linear,
        "20 measured": effects.measure(20, progress=False),
        "first order": first_order,
    }
    share = {
        way: sum(cost.forward_equivalents for cost in found.costs.values()) / effects.predicted.numel()
        for way, found in ways.items()
    }
    return [
        {"of": of, "way": way, **compared(found.values, every.measured), "cost": share[way]}
        for way, found in ways.items()
    ]


def edges(model: Any, tokens: Any, seed: int) -> list[dict[str, Any]]:
    """Two samples."""
    effects = js.patching.components(model, tokens, of="edges", progress=False)
    generator = torch.Generator().manual_seed(seed)
    alive = torch.ones(effects.predicted.shape, dtype=torch.bool).tril()
    alive[:, :, effects.position + 1 :] = False
    places = alive.flatten().nonzero().flatten()
    strongest = effects.predicted.flatten().abs().topk(min(STRONGEST, len(places))).indices
    rows = []
    for way, cells in (("any", places), ("strongest", strongest)):
        sample = cells[torch.randperm(len(cells), generator=generator)[:SAMPLE]].tolist()
        measured = effects.measure(cells=sample, progress=False).measured.flatten()[sample]
        found = compared(effects.values.flatten()[sample], measured)
        rows.append(
            {"of": "edges", "way": way, **found, "cost": effects.costs["prediction"].forward_equivalents / SAMPLE}
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Means over prompts, and the smallest rank correlation."""
    frame = pd.DataFrame(rows)
    grouped = frame.groupby(["of", "way"], sort=False)
    means = grouped.mean(numeric_only=True)
    means.insert(1, "least rho", grouped["rho"].min())
    means.insert(0, "prompts", grouped.size())
    return means


def main(argv: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python examples/benchmarks components", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("model", help="a HuggingFace name or a local folder")
    parser.add_argument("ground_truth", type=Path, help="a file of js.ground_truth")
    parser.add_argument("--n", type=int, default=10, help="prompts")
    given = parser.parse_args(argv)
    model, rows = load_model(given.model), list[dict[str, Any]]()
    for seed, prompt in enumerate(prompts_of(given.ground_truth, given.n)):
        tokens = list(prompt.tokens)
        rows += [
            *heads_or_mlps(model, tokens, "heads"),
            *heads_or_mlps(model, tokens, "mlps"),
            *edges(model, tokens, seed),
        ]
        print(f"{seed + 1} of {given.n}: {prompt.text!r}", flush=True)
    print(table(rows).round(3).to_string())
