"""`ComponentAgreement`: predicted effects of components beside the measured effects, and the cost of each method."""

from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jscope_tl.components.effects import ComponentEffects
from jscope_tl.results.checks import need, need_finite
from jscope_tl.results.cost import Cost
from jscope_tl.results.files import Saved
from jscope_tl.results.ranks import spearman

FEW, MORE, TWICE = 5, 10, 20
"""How many of the strongest components are compared."""


@dataclass(frozen=True)
class MethodAgreement:
    """How well the effects that one method predicts agree with the measured ones. Absolute values are compared.

    Attributes:
        method: the name of the method.
        spearman: rank correlation with the measured effects.
        top5: the share of the five strongest measured components that are among the five strongest predicted ones.
        top10: the same for ten.
        top10_in_20: the share of the ten strongest measured components that are among the twenty strongest predicted ones.
        cost: the cost of the method, in passes and seconds.
    """

    method: str
    spearman: float
    top5: float
    top10: float
    top10_in_20: float
    cost: Cost


@dataclass(frozen=True, eq=False, kw_only=True)
class ComponentAgreement(Saved):
    """Measured effects of components, and the predictions of several methods.

    Attributes:
        effects: the effects that the scope predicts, refined; they are measured for the components in `compared`.
        predictions: for each method, by its name, the predicted effects in the shape of ``effects``; signed if the method has signs.
        costs: the cost of each method, and of ``"measuring"``.
        notes: methods that were not compared, and why.
    """

    effects: ComponentEffects
    predictions: dict[str, Float[Tensor, "*axes"]]
    costs: dict[str, Cost]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together, as in a damaged file."""
        need(self.effects.measured is not None and bool(self.compared.any()), "some effects are measured")
        need(self.costs.keys() >= {*self.predictions, "measuring"}, "each method has a cost")
        for name, values in self.predictions.items():
            need(values.shape == self.effects.predicted.shape, f"{name} has an effect for each component")
            need_finite(name, values)

    @property
    def compared(self) -> Bool[Tensor, "*axes"]:
        """Which components are compared: those that were measured."""
        measured = self.effects.measured
        return torch.zeros(0, dtype=torch.bool) if measured is None else ~measured.isnan()

    def rows(self) -> list[MethodAgreement]:
        """The agreement of each method."""
        kept = self.compared
        assert self.effects.measured is not None  # for mypy: __post_init__ refuses it
        measured = self.effects.measured[kept].double().abs()
        return [
            _agreement(name, values[kept].double().abs(), measured, self.costs[name])
            for name, values in self.predictions.items()
        ]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each method: its agreement, and its cost in passes (a backward pass counts as a forward pass) and seconds.

        The last row is the cost of measuring. Effects by component are in ``effects.to_dataframe()`` and ``predictions``.
        """
        rows = [
            {**{name: value for name, value in vars(row).items() if name != "cost"}, "passes": row.cost.forward_equivalents,
             "seconds": row.cost.seconds}
            for row in self.rows()
        ]  # fmt: skip
        spent = self.costs["measuring"]
        rows.append({"method": "measuring", "passes": spent.forward_equivalents, "seconds": spent.seconds})
        frame = pd.DataFrame(rows).set_index("method")
        frame.attrs = {
            "scope": self.effects.scope,
            "unit": self.effects.unit,
            "model": self.effects.provenance.model_name,
        }
        return frame

    def __repr__(self) -> str:
        n, spent = int(self.compared.sum()), self.costs["measuring"]
        wide = max(len(name) for name in self.predictions)
        lines = [
            f"ComponentAgreement: {self.effects.headline()}; {n} measured",
            f"  {'':<{wide}}  rank corr.  5 in 5  10 in 10  10 in 20  passes  seconds",
        ]
        for row in self.rows():
            lines.append(
                f"  {row.method:<{wide}}  {row.spearman:+10.3f}  {row.top5:6.0%}  {row.top10:8.0%}  {row.top10_in_20:8.0%}  "
                f"{row.cost.forward_equivalents:6.1f}  {row.cost.seconds:7.2f}"
            )
        lines.append(f"  {'measuring':<{wide}}  {'':36}  {spent.forward_equivalents:8.1f}  {spent.seconds:7.2f}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def _agreement(name: str, sizes: Float[Tensor, "n"], measured: Float[Tensor, "n"], cost: Cost) -> MethodAgreement:
    n = len(measured)

    def among(strongest: int, candidates: int) -> float:
        """The share of the strongest measured components that are among the ``candidates`` strongest predicted ones."""
        k = min(strongest, n)
        of_both = {*measured.topk(k).indices.tolist()} & {*sizes.topk(min(candidates, n)).indices.tolist()}
        return len(of_both) / k

    correlation = float(spearman(sizes.numpy(), measured.numpy()))
    return MethodAgreement(name, correlation, among(FEW, FEW), among(MORE, MORE), among(MORE, TWICE), cost)
