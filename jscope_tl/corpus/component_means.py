"""`ComponentMeans`: the effect of changing each component, averaged over prompts."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.components.effects import strongest
from jscope_tl.components.names import layer_of, parts_of
from jscope_tl.errors import InputError, count, whole
from jscope_tl.results.checks import need, need_sizes
from jscope_tl.results.files import Saved
from jscope_tl.results.text import percent, shortened

AXES = {"heads": ("layer", "head"), "attn": ("layer",), "mlps": ("layer",), "neurons": ("layer", "neuron")}
"""Names of the axes for the kinds whose components are the same in every prompt."""


@dataclass(frozen=True)
class MeanEffect:
    """The mean effect of one component.

    Attributes:
        name: TransformerLens' name of the hook point, and the part of its activation: ``blocks.9.attn.hook_z head 6``.
        mean: the mean over prompts of the effect of changing the component.
        stderr: the standard error of the mean; NaN for one prompt.
        low, high: the limits of its 95 % interval.
        absolute: the mean of the absolute effect.
        in_top: the share of prompts in which the component is among the strongest.
        layer, head, unit: the numbers of its layer, head and neuron; None if the kind has no such number.
    """

    name: str
    mean: float
    stderr: float
    low: float
    high: float
    absolute: float
    in_top: float
    layer: int
    head: int | None = None
    unit: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ComponentMeans(Saved):
    """Means over prompts of the effect of changing each component of a model, one at a time.

    Attributes:
        of: the kind of components.
        axes: ``layer head``, ``layer`` or ``layer neuron``.
        mean: the means of the effects, float32 on the CPU; signed for scopes with one cotangent, KL divergences for ``"fisher"``.
        stderr: standard errors of the means; NaN for one prompt.
        low, high: limits of the 95 % interval of the mean, by a bootstrap over prompts; for one prompt both are the mean.
        absolute: the means of the absolute effects, which are larger than ``|mean|`` if effects of both signs cancel.
        in_top: the share of prompts in which a component is among the ``most`` strongest.
        refined: the share of prompts in which its effect is refined or measured, and not a linear prediction.
        n: the number of prompts.
        n_failed: the number of prompts that are left out because they cannot be explained.
        failed: the first of these prompts, by id or number, with the reason.
        most: how many components of a prompt count as the strongest.
        hook_points: one name for each layer.
        source: the activations that replaced those of the components, in words.
        direction: ``"noising"`` or ``"denoising"``.
        scope, options: the name of the scope, and its options that all prompts share.
        unit: the unit of the effects.
        seed: the seed of the bootstrap.
        model: the name of the model.
        warnings: sentences about the limits of these numbers.
    """

    of: str
    axes: tuple[str, ...]
    mean: Float[Tensor, "*axes"]
    stderr: Float[Tensor, "*axes"]
    low: Float[Tensor, "*axes"]
    high: Float[Tensor, "*axes"]
    absolute: Float[Tensor, "*axes"]
    in_top: Float[Tensor, "*axes"]
    refined: Float[Tensor, "*axes"]
    n: int
    n_failed: int
    failed: dict[str, str]
    most: int
    hook_points: tuple[str, ...]
    source: str
    direction: str
    scope: str
    options: dict[str, Any]
    unit: str
    seed: int
    model: str
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together, as in a damaged file."""
        need(AXES.get(self.of) == self.axes and len(self.axes) == self.mean.ndim, f"there are {self.mean.ndim} axes")
        need(
            bool(self.mean.isfinite().all()) and self.n > 0 and self.most > 0,
            "means are finite, over one prompt or more",
        )
        need(bool((self.low <= self.high).all()), "intervals have a lower and an upper limit")
        need(self.n_failed >= len(self.failed), "not more prompts are named than have failed")
        need(len(self.hook_points) == len(self.mean), "each layer has a hook point")
        need_sizes("means of absolute effects and shares", torch.stack([self.absolute, self.in_top, self.refined]))

    @property
    def signed(self) -> bool:
        """Whether any effect is negative on average; KL divergences are never negative."""
        return bool((self.mean < 0).any())

    def top(self, k: int = 10) -> list[MeanEffect]:
        """The ``k`` components with the largest absolute mean, the largest first.

        Raises:
            InputError: ``k`` is not 1 or more.
        """
        if (number := whole(k)) is None or number < 1:
            raise InputError(f"k is how many components to return, 1 or more; got {k!r}.")
        return [self.component(i) for i in strongest(self.mean, number)]

    def component(self, cell: int) -> MeanEffect:
        """The component at one place of the flattened means.

        Args:
            cell: the place.
        """
        cell, n = count("cell", cell, 0), self.mean.numel()
        if cell >= n:
            raise InputError(f"cell is a place in the flattened means, 0 to {n - 1}; got {cell}.")
        at = dict(zip(self.axes, (int(i) for i in np.unravel_index(cell, tuple(self.mean.shape))), strict=True))
        place = {{"neuron": "unit"}.get(name, name): i for name, i in at.items() if name != "layer"}
        hook_point = self.hook_points[at["layer"]]
        numbers: dict[str, Any] = {
            of: float(getattr(self, of).flatten()[cell])
            for of in ("mean", "stderr", "low", "high", "absolute", "in_top")
        }
        return MeanEffect(
            name=" ".join([hook_point, *parts_of(place)]), layer=layer_of(hook_point), **numbers, **place
        )  # fmt: skip

    def to_pandas(self) -> pd.DataFrame:
        """One row for each component, in the order of the layers."""
        frame = pd.DataFrame([vars(self.component(i)) for i in range(self.mean.numel())]).dropna(axis=1, how="all")
        frame.attrs = {"scope": self.scope, "unit": self.unit, "model": self.model, "source": self.source, "n": self.n}
        return frame

    def headline(self) -> str:
        """One line with the explained quantity and the changed components."""
        failed = f" ({self.n_failed} more failed)" if self.n_failed else ""
        return (
            f"{self.scope} scope of {self.model}, mean effects of {self.of} over {self.n} prompts{failed}, source {self.source}, "
            f"in {self.unit}"
        )

    def notes(self) -> list[str]:
        """The number of prompts that failed, with reasons, and the warnings."""
        named = "; ".join(f"{id}: {shortened(reason, 80)}" for id, reason in list(self.failed.items())[:3])
        return [
            *([f"failed: {self.n_failed}, such as {named}"] if self.n_failed else []),
            *(f"warning: {w}" for w in self.warnings),
        ]

    def __repr__(self) -> str:
        lines = [f"ComponentMeans: {self.headline()}"]
        for rank, found in enumerate(self.top(min(8, self.mean.numel())), start=1):
            lines.append(
                f"  {rank}. {found.name:<32} {found.mean:.4g}  [{found.low:.4g}, {found.high:.4g}]  "
                f"in the top {self.most} of {percent(found.in_top)}"
            )
        return "\n".join([*lines, *(f"  {note}" for note in self.notes())])
