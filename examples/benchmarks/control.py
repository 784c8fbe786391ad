"""The command `python examples/benchmarks control MODEL GROUND_TRUTH`: how far the scores of a scope differ from those of a random direction.

Spearman's correlation of each scope's scores with those of a random direction, attention sinks left out: the mean over prompts with a 95 %
bootstrap interval, on the first prompts of each family in the held-out half. Two random directions show what a question without content gives.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

import jscope_tl as js
from jscope_tl.faithfulness.results import mean_of
from jscope_tl.model.loading import load_model
from jscope_tl.results.ranks import spearman

Scores = Callable[[Any, Int[Tensor, "pos"], Any], js.Attribution]


def by_scope(name: str, **options: Any) -> Scores:
    """A scope without a target of its own: that of the most probable token."""
    return lambda model, tokens, prompt: js.attribute(model, tokens, name, progress=False, **options)


def contrastive(model: Any, tokens: Int[Tensor, "pos"], prompt: Any) -> js.Attribution:
    """The difference between the answer and its known alternative."""
    return js.attribute(model, tokens, "contrastive", target=prompt.target, baseline=prompt.baseline, progress=False)


def explain(model: Any, tokens: Int[Tensor, "pos"], prompt: Any) -> js.Attribution:
    """With the known alternative."""
    return js.explain(model, tokens, prompt.target, prompt.baseline, progress=False)


METHODS: dict[str, Scores] = {
    "another random direction": by_scope("random_direction", seed=1),
    "semantic": by_scope("semantic"),
    "log_prob": by_scope("log_prob"),
    "contrastive": contrastive,
    "temperature": by_scope("temperature"),
    "entropy": by_scope("entropy"),
    "fisher, rank 4": by_scope("fisher", method="low_rank", rank=4),
    "explain": explain,
}


def correlations(model: Any, prompts: list[Any]) -> dict[str, list[float]]:
    """Of each method, one for each prompt."""
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    for prompt in prompts:
        tokens = torch.tensor(prompt.tokens)
        control = js.attribute(model, tokens, "random_direction", seed=0, progress=False)
        kept = [t for t in range(control.position + 1) if t not in control.off_scale]
        for name, scores in METHODS.items():
            own = scores(model, tokens, prompt).scores
            found[name].append(float(spearman(own[kept].numpy(), control.scores[kept].numpy())))
    return found


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python examples/benchmarks control", description=__doc__)
    parser.add_argument("model", help="a HuggingFace name or a local folder")
    parser.add_argument("ground_truth", type=Path, help="a file of js.ground_truth")
    parser.add_argument("--n", type=int, default=6, help="prompts of each family (default: 6)")
    given = parser.parse_args(arguments)
    truth = js.GroundTruth.load(given.ground_truth).report
    prompts = [prompt for family in truth.yields for prompt in truth.family(family)[: given.n]]
    print(f"{len(prompts)} prompts\n\n| method | rank correlation with a random direction |\n|---|---|")
    for name, values in correlations(load_model(given.model), prompts).items():
        mean = mean_of(np.array(values))
        print(f"| {name} | {mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}] |")
