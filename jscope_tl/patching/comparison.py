"""`Comparison`: the scores and predictions of a scope beside the effects of activation patching, with their agreement and cost."""

import math
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from jscope_tl.components.effects import strongest
from jscope_tl.errors import InputError, whole
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.checks import need, need_finite
from jscope_tl.results.cost import Cost
from jscope_tl.results.files import Saved
from jscope_tl.results.ranks import spearman
from jscope_tl.results.text import visible

EFFECTLESS = 0.01
"""The fraction of the largest effect below which a cell is not ranked."""


@dataclass(frozen=True)
class Agreement:
    """The agreement with the absolute effects of patching, at one hook point or over all of them.

    Attributes:
        hook_point: the name of the hook point; ``"all"`` for all cells together.
        score: Spearman's correlation of the scope's scores with the effects.
        predicted: Spearman's correlation of the absolute predicted effects with the effects.
        top_score: the share of the ``k`` highest scores that are among the ``k`` largest effects.
        top_predicted: the share of the ``k`` largest predicted effects that are among the ``k`` largest effects.
        k: the requested number, or the number of cells whose effect is more than a hundredth of the largest, if that is less: the
            order of cells without an effect has no meaning.
        n: the number of cells.
    """

    hook_point: str
    score: float
    predicted: float
    top_score: float
    top_predicted: float
    k: int
    n: int


@dataclass(frozen=True, eq=False)
class Comparison(Saved):
    """The scores and predictions of a scope beside the effects of activation patching, for each cell (hook point and position).

    Attributes:
        scope: the layer map of the base run's scores.
        effects: ``[layer, pos]``, measured effect of patching each cell, in `effect_unit`; NaN for cells that ``only_top`` left out,
            and 0 where there cannot be an effect: both runs have the same activation, or the cell is after the explained position.
        predicted: ``[layer, pos]``, the effect that the scope predicts, to first order (Fisher: second).
        total: the effect of replacing the whole prompt by the source prompt.
        joint: ``[layer]``, effect of patching the ``only_top`` cells of a hook point together; None without ``only_top``.
        effect_unit: unit of effects, which are signed except for Fisher, whose effect is a KL divergence.
        direction: ``"noising"`` (corrupted activations into the clean run) or ``"denoising"``.
        str_tokens: text of the base run's tokens.
        source_str_tokens: text of the source run's tokens.
        costs: the cost of the ``"scope"`` with its predictions, and of ``"patching"``.
    """

    scope: Attribution
    effects: Float[Tensor, "layer pos"]
    predicted: Float[Tensor, "layer pos"]
    total: float
    joint: Float[Tensor, "layer"] | None
    effect_unit: str
    direction: str
    str_tokens: list[str]
    source_str_tokens: list[str]
    costs: dict[str, Cost]

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together, as in a damaged file."""
        shape = self.scope.scores.shape
        need(self.effects.shape == self.predicted.shape == shape and len(shape) == 2, "each score has an effect")
        need(self.joint is None or len(self.joint) == shape[0], "joint effects are one for each hook point")
        need(len(self.str_tokens) == len(self.source_str_tokens) == shape[1], "both prompts have a text for each score")
        need(not self.effects.isinf().any() and math.isfinite(self.total), "effects are not infinite")
        need_finite("predicted effects", self.predicted)
        need({"scope", "patching"} <= self.costs.keys(), "there are costs of the scope and of patching")

    @property
    def held(self) -> Float[Tensor, "layer"] | None:
        """The joint effect of the ``only_top`` cells of each hook point as a share of the total effect; None without ``only_top``."""
        return None if self.joint is None else self.joint / self.total

    def agreement(self, k: int = 5) -> list[Agreement]:
        """The agreement of scores and predictions with patching, for each hook point, and for all cells together as the last entry.

        It covers the requested cells up to the explained position, without BOS.

        Args:
            k: how many of the highest cells are compared.
        """
        if whole(k) is None or k < 1:
            raise InputError(f"k is how many of the highest cells to compare, 1 or more; got {k!r}.")
        rows = [self._agreement(name, [i], k) for i, name in enumerate(self.scope.hook_points)]
        return [*rows, self._agreement("all", list(range(len(rows))), k)]

    def _agreement(self, name: str, layers: list[int], k: int) -> Agreement:
        kept = self.effects[layers].isfinite()
        kept[:, self.scope.position + 1 :] = False
        kept[:, list(self.scope.bos_positions)] = False
        effects, predicted, scores = (
            values[layers][kept].double().abs() for values in (self.effects, self.predicted, self.scope.scores)
        )
        n = min(k, int((effects > EFFECTLESS * effects.max()).sum())) if len(effects) else 0

        def correlation(values: Tensor) -> float:
            return float(spearman(values.numpy(), effects.numpy())) if len(effects) else 0.0

        return Agreement(
            name,
            score=correlation(scores),
            predicted=correlation(predicted),
            top_score=_overlap(scores, effects, n),
            top_predicted=_overlap(predicted, effects, n),
            k=n,
            n=len(effects),
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row per cell: score, predicted and actual effect."""
        frame = self.scope.to_dataframe()
        frame["predicted"] = self.predicted.flatten().numpy()
        frame["effect"] = self.effects.flatten().numpy()
        frame["source_str_token"] = self.source_str_tokens * len(self.scope.hook_points)
        frame.attrs["effect_unit"] = self.effect_unit
        return frame

    def __repr__(self) -> str:
        overall = self.agreement()[-1]
        costs = "; ".join(
            f"{name} {cost.forward_equivalents:g} forward passes, {cost.seconds:.2f} s"
            for name, cost in self.costs.items()
        )
        n_skipped = self.costs["patching"].n_skipped
        skipped = f"; {n_skipped} cells not run, they cannot have an effect" if n_skipped else ""
        lines = [
            f"Comparison: {self.scope.scope} scope{self.scope.asked}, and {self.direction} patching of {overall.n} cells, effects "
            f"in {self.effect_unit} (whole source run: {self.total:.4g}){self.scope.prepended}",
            f"  rank correlation with the effect: score {overall.score:.2f}, predicted {overall.predicted:.2f}; of the "
            f"{overall.k} highest: {overall.top_score:.0%}, {overall.top_predicted:.0%}",
            *self._largest(5),
            f"  cost: {costs}{skipped}",
        ]
        if self.held is not None:
            shares = ", ".join(f"{share:.0%}" for share in self.held.tolist())
            lines.append(
                f"  joint effect of the patched cells of each hook point, as a share of the whole effect: {shares}"
            )
        return "\n".join(lines)

    def _largest(self, k: int) -> list[str]:
        """A heading, and one line for each of the ``k`` largest effects; empty if there are none."""
        effects = self.effects.nan_to_num()
        cells = [divmod(i, effects.shape[1]) for i in strongest(effects, k) if effects.flatten()[i]]
        lines = [f"  {rank}. {self._cell(layer, t)}" for rank, (layer, t) in enumerate(cells, 1)]
        return ["  largest effects (predicted):", *lines] if lines else []

    def _cell(self, layer: int, t: int) -> str:
        own, other = (visible(texts[t]) for texts in (self.str_tokens, self.source_str_tokens))
        token = repr(own) if own == other else f"{own!r} ({other!r})"
        effect, predicted = (float(values[layer, t]) for values in (self.effects, self.predicted))
        return f"{f'{token} at {t}, {self.scope.hook_points[layer]}':52} {effect:>9.4g} ({predicted:.4g})"


def _overlap(a: Float[Tensor, "n"], b: Float[Tensor, "n"], k: int) -> float:
    """The share of the ``k`` highest values of one that are among the ``k`` highest of the other."""
    return len(set(a.topk(k).indices.tolist()) & set(b.topk(k).indices.tolist())) / max(k, 1)
