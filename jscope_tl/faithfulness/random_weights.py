"""A check whether scores depend on the trained weights: the same methods on the same prompts, with the weights shuffled."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from jscope_tl.engine.progress import progress_bar
from jscope_tl.errors import count
from jscope_tl.faithfulness.cases import to_cases
from jscope_tl.faithfulness.methods import Explainer, contrasted, resolve_methods
from jscope_tl.faithfulness.results import Mean, mean_of
from jscope_tl.model.running import ONE_AT_A_TIME
from jscope_tl.model.view import ModelView
from jscope_tl.results.ranks import spearman


@dataclass(frozen=True, eq=False)
class WeightDependence:
    """The similarity of scores with trained and with shuffled weights.

    Attributes:
        methods: the names of the methods.
        spearman: ``[method, prompt]``, rank correlation over the ranked tokens. Near 1, scores depend on the prompt and the architecture
            only; near 0, they depend on the weights.
        model: the name of the model.
        seed: the seed of the shuffling.
    """

    methods: tuple[str, ...]
    spearman: Float[np.ndarray, "method prompt"]
    model: str
    seed: int

    def mean(self, method: str) -> Mean:
        """The mean over prompts, with the 95 % interval of a bootstrap."""
        return mean_of(self.spearman[self.methods.index(method)])

    def __repr__(self) -> str:
        lines = [
            f"WeightDependence: {self.model}, {self.spearman.shape[1]} prompts, weights shuffled with seed {self.seed}"
        ]
        for method in self.methods:
            found = self.mean(method)
            lines.append(f"  {method:<24} {found.mean:5.2f} [{found.low:.2f}, {found.high:.2f}]")
        return "\n".join(
            [
                *lines,
                "  rank correlation of scores with trained and with shuffled weights; it should be near 0",
            ]
        )


def weight_dependence(
    model: Any, prompts: Any, methods: Any = None, *, seed: int = 0, progress: bool | None = None
) -> WeightDependence:
    """Compare each method's scores with its scores after all weights are shuffled (Adebayo et al. 2018, "Sanity checks").

    The entries of every weight matrix are permuted, so that their distribution stays the same and everything learned is lost. Scores that
    stay the same do not depend on what the model has learned. Afterwards the original weights are restored exactly; until then, weights
    take twice the memory.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, which should not be used elsewhere during the call.
        prompts: prompts as for `evaluate`.
        methods: names of `METHODS`, or a mapping, as for `evaluate`.
        seed: the seed of the shuffling.
        progress: a progress bar over prompts always (True), never (False), or if the call takes more than a second (None).

    Raises:
        InputError: the cases in which `evaluate` raises it.

    Example:
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), js.pocket_prompts("assistant", 3)
        >>> found = js.faithfulness.weight_dependence(model, prompts, ["log_prob", "random"])
        >>> round(found.mean("random").mean, 6)  # random scores do not depend on the model
        1.0
    """
    view, chosen, start = ModelView(model), resolve_methods(methods), count("seed", seed, 0)
    cases = to_cases(view, prompts, with_causes=False)
    chosen = contrasted(chosen, [case.alternative for case in cases], methods is None)

    def scores(title: str) -> list[dict[str, Any]]:
        given = progress_bar(progress, title, "prompt", cases)
        found = (Explainer(view, chosen).all(case.tokens, case.target, case.alternative) for case in given)
        return [{name: explained.scores for name, explained in of_one.items()} for of_one in found]

    trained = scores("trained weights")
    with _shuffled(view, start):
        shuffled = scores("shuffled weights")
    table = [
        [
            float(spearman(a[name][kept].numpy(), b[name][kept].numpy()))
            for a, b, kept in zip(trained, shuffled, (case.candidates(False) for case in cases), strict=True)
        ]
        for name in chosen
    ]
    return WeightDependence(tuple(chosen), np.array(table), view.name, start)


@contextmanager
def _shuffled(view: ModelView, seed: int) -> Iterator[None]:
    """A context manager in which the entries of all weights with two or more axes are permuted; biases and gains stay the same."""
    generator = torch.Generator("cpu").manual_seed(seed)
    matrices = [weight for weight in view.parameters if weight.ndim > 1]
    kept = [weight.detach().clone() for weight in matrices]
    with ONE_AT_A_TIME:
        try:
            with torch.no_grad():
                for weight, own in zip(matrices, kept, strict=True):
                    order = torch.randperm(own.numel(), generator=generator, device="cpu").to(own.device)
                    weight.copy_(own.flatten()[order].view_as(own))
            yield
        finally:
            with torch.no_grad():
                for weight, own in zip(matrices, kept, strict=True):
                    weight.copy_(own)
