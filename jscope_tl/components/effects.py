"""`ComponentEffects`: the effect of changing each component of a model on a prediction."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jscope_tl.components.names import ComponentEffect, layer_of, parts_of
from jscope_tl.errors import InputError, whole
from jscope_tl.results.attribution import Prediction
from jscope_tl.results.base import Provenance
from jscope_tl.results.checks import need
from jscope_tl.results.cost import Cost
from jscope_tl.results.files import Saved
from jscope_tl.results.text import score_text

KINDS = ("heads", "edges", "attn", "mlps", "neurons", "features")
"""The values of the parameter ``of``."""
HOW = ("predicted", "refined", "measured")


@dataclass(frozen=True, eq=False, kw_only=True)
class ComponentEffects(Saved):
    """The effect of changing each component of a model, one at a time, on the quantity that a scope explains.

    Attributes:
        of: the kind of components, of `KINDS`.
        axes: names of the axes: ``layer head``, ``layer head pos``, ``layer head dest src``, ``layer``, ``layer neuron``, ``feature``, ...
            Edges of long prompts have the axes ``layer head entry``, with the strongest entries of each head.
        predicted: the predicted effects, float32 on the CPU; signed for scopes with one cotangent, a KL divergence for ``"fisher"``.
        stderr: standard errors of the linear prediction, if it is an estimate. They do not include the error of the linear
            approximation itself.
        refined: which predictions are refined: the change went through a few blocks of the model before it was taken to be linear.
        measured: the effects of running the model with the change, NaN where it was not run; None before `measure`.
        index: the component at each place of the last axis, if that is not its place number: ids of features (-1: the error of the
            autoencoder), ``dest * pos + src`` for edges.
        hook_points: one name for each layer; for features a single name.
        source: the activations that replaced those of the components, in words.
        direction: ``"noising"`` or ``"denoising"``.
        scope, asked: the name of the scope; the target as text, such as ``, target ' Mary'``.
        options: the options of the scope, and the values chosen automatically under ``"resolved"``.
        unit: the unit of the effects.
        tokens, str_tokens, position, bos_positions: the prompt that was run, and the explained position.
        source_str_tokens: the tokens of the other prompt, if the source is one.
        prediction: the explained next-token distribution.
        provenance: the model, versions, and the cost of the prediction.
        costs: the cost of the ``"prediction"``, and after `measure` of ``"measuring"``.
        warnings: sentences about the limits of these numbers.
    """

    of: str
    axes: tuple[str, ...]
    predicted: Float[Tensor, "*axes"]
    stderr: Float[Tensor, "*axes"] | None
    refined: Bool[Tensor, "*axes"]
    measured: Float[Tensor, "*axes"] | None
    index: Int[Tensor, "*some"] | None
    hook_points: tuple[str, ...]
    source: str
    direction: str
    scope: str
    asked: str
    options: dict[str, Any]
    unit: str
    tokens: Int[Tensor, "pos"]
    str_tokens: list[str]
    position: int
    bos_positions: tuple[int, ...]
    source_str_tokens: list[str] | None
    prediction: Prediction
    provenance: Provenance
    costs: dict[str, Cost]
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together, as in a damaged file."""
        shape, pos = self.predicted.shape, len(self.str_tokens)
        need(
            self.of in KINDS and len(self.axes) == len(shape),
            f"there are {len(shape)} axes of one of {', '.join(KINDS)}",
        )
        need(bool(self.predicted.isfinite().all()), "predicted effects are finite")
        for other in (self.stderr, self.refined, self.measured):
            need(other is None or other.shape == shape, f"all effects have the shape {list(shape)}")
        need(self.measured is None or not bool(self.measured.isinf().any()), "measured effects are not infinite")
        need(len(self.hook_points) == (shape[0] if self.axes[0] == "layer" else 1), "each layer has a hook point")
        need(len(self.tokens) == pos and 0 <= self.position < pos, f"positions are below {pos}")
        need(
            (self.index is None) == (self.axes[-1] not in ("entry",) and self.of != "features"),
            "features and listed edges have an index, other components have none",
        )
        need({"prediction"} <= self.costs.keys(), "costs have that of the prediction")

    @cached_property
    def values(self) -> Float[Tensor, "*axes"]:
        """The measured effect of each component that was measured, and the predicted effect of the others."""
        if self.measured is None:
            return self.predicted
        return torch.where(self.measured.isnan(), self.predicted, self.measured)

    @property
    def signed(self) -> bool:
        """Whether any effect is negative; KL divergences are never negative."""
        return bool((self.values < 0).any())

    def top(self, k: int = 10) -> list[ComponentEffect]:
        """The ``k`` components with the largest absolute effect, the largest first.

        Args:
            k: how many components.

        Raises:
            InputError: ``k`` is not 1 or more.
        """
        if (count := whole(k)) is None or count < 1:
            raise InputError(f"k is how many components to return, 1 or more; got {k!r}.")
        return [self.component(i) for i in strongest(self.values, count)]

    def component(self, cell: int) -> ComponentEffect:
        """The component at one place of the flattened effects.

        Args:
            cell: the place.
        """
        cell = self._cell(cell)
        at = dict(
            zip(self.axes, (int(i) for i in torch.unravel_index(torch.tensor(cell), self.predicted.shape)), strict=True)
        )
        hook_point = self.hook_points[at.get("layer", 0)]
        measured = self.measured is not None and not bool(self.measured.flatten()[cell].isnan())
        place = self._place(at)
        return ComponentEffect(
            name=" ".join([hook_point, *parts_of(place)]),
            effect=float(self.values.flatten()[cell]),
            stderr=None if measured or self.stderr is None else float(self.stderr.flatten()[cell]),
            how=HOW[2 if measured else int(self.refined.flatten()[cell])],
            hook_point=hook_point,
            layer=layer_of(hook_point),
            **place,
        )

    def _place(self, at: dict[str, int]) -> dict[str, int]:
        place: dict[str, int] = {name: at[name] for name in ("head", "pos", "dest", "src") if name in at}
        if "neuron" in at:
            place["unit"] = at["neuron"]
        if "feature" in at and self.index is not None:
            place["unit"] = int(self.index[at["feature"]])
        if "entry" in at and self.index is not None:
            edge = int(self.index[at["layer"], at["head"], at["entry"]])
            place |= {"dest": edge // len(self.tokens), "src": edge % len(self.tokens)}
        return place

    def measure(
        self, only_top: int = 20, *, cells: Sequence[int] | None = None, progress: bool | None = None
    ) -> "ComponentEffects":
        """Run the model with the components changed whose effects are the largest, one change per run, and record the measured effects.

        Runs are batched and start at the changed block. A further call measures further components.

        Args:
            only_top: how many components, by the absolute values of their effects so far.
            cells: the components to measure instead, as places in the flattened effects. A random sample shows how accurate the
                predictions are.
            progress: a progress bar always (True), never (False), or if the call takes more than a second (None).

        Returns:
            The same effects with ``measured``; `top` and the views mark the measured ones.

        Raises:
            InputError: ``only_top`` is not 1 or more, a place does not exist, or the model is not available: effects that were loaded
                from a file have no model.

        Example:
            >>> import jscope_tl as js
            >>> model = js.load_pocket_model()
            >>> effects = js.patching.components(model, "the keys to the cabinet near the doors")
            >>> [found.how for found in effects.measure(only_top=2).top(2)]
            ['measured', 'measured']
        """
        if (count := whole(only_top)) is None or count < 1:
            raise InputError(f"only_top is how many components to measure, 1 or more; got {only_top!r}.")
        return measured_at(self, strongest(self.values, count) if cells is None else self._cells(cells), progress)

    def _cells(self, cells: Any) -> list[int]:
        if not isinstance(cells, Iterable):
            raise InputError(f"cells is a list of places in the flattened effects; got {cells!r}.")
        return [self._cell(cell) for cell in cells]

    def _cell(self, cell: Any) -> int:
        n, number = self.predicted.numel(), whole(cell)
        if number is None or not 0 <= number < n:
            raise InputError(f"cells are places in the flattened effects, 0 to {n - 1}; got {cell!r}.")
        return number

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each component: its name and place, its effect and standard error, and how the effect was found."""
        rows = [vars(self.component(i)) for i in range(self.predicted.numel())]
        frame = pd.DataFrame(rows).dropna(axis=1, how="all")
        frame.attrs = {
            "scope": self.scope,
            "unit": self.unit,
            "model": self.provenance.model_name,
            "source": self.source,
        }
        return frame

    def headline(self) -> str:
        """One line with the explained quantity and the changed components."""
        shape = " x ".join(str(n) for n in self.predicted.shape)
        return f"{self.scope} scope{self.asked}, {self.of} [{', '.join(self.axes)}] = {shape}, source {self.source}, effects in {self.unit}"

    def __repr__(self) -> str:
        lines = [f"ComponentEffects: {self.headline()}"]
        shown = self.top(min(5, self.predicted.numel()))
        for rank, found in enumerate(shown, start=1):
            lines.append(f"  {rank}. {found.name:<36} {score_text(found.effect, found.stderr)}  {found.how}")
        if any(found.how != "measured" for found in shown):
            lines.append(f"  {PREDICTED}: .measure({len(shown)}) measures the strongest")
        spent = "; ".join(
            f"{name} {cost.forward_equivalents:.1f} passes, {cost.seconds:.2f} s" for name, cost in self.costs.items()
        )
        return "\n".join([*lines, f"  cost: {spent}", *(f"  warning: {warning}" for warning in self.warnings)])


PREDICTED = "effects that are not measured are predictions, which can be wrong by a factor of ten"
"""For lists of effects. Without refinement SmolLM2's strongest heads are predicted at 0.03 to 0.8 of their measured effect."""
Measurer = Callable[[ComponentEffects, list[int], bool | None], tuple[Float[Tensor, "cells"], Cost]]
"""A function from effects and some of their places to the measured effects at these places, and the cost."""


def measurable(effects: ComponentEffects, measurer: Measurer) -> ComponentEffects:
    """The effects with a measurer, so that `ComponentEffects.measure` works. It is no field, because files cannot contain it."""
    object.__setattr__(effects, "_measurer", measurer)
    return effects


def measured_at(effects: ComponentEffects, cells: Sequence[int], progress: bool | None) -> ComponentEffects:
    """The same effects, measured at further places.

    Raises:
        InputError: the model is not available.
    """
    measurer: Measurer | None = getattr(effects, "_measurer", None)
    if measurer is None:
        raise InputError(
            "These effects come from a file, which has no model to measure with. Call js.patching.components again, and "
            "measure its result."
        )
    known = torch.full_like(effects.predicted, torch.nan) if effects.measured is None else effects.measured.clone()
    new = [i for i in dict.fromkeys(cells) if bool(known.flatten()[i].isnan())]
    found, cost = measurer(effects, new, progress)
    known.view(-1)[new] = found
    before = effects.costs.get("measuring", Cost(0, 0, 0.0))
    total = Cost(before.n_forward + cost.n_forward, 0, before.seconds + cost.seconds)
    return measurable(replace(effects, measured=known, costs={**effects.costs, "measuring": total}), measurer)


def unmeasured(effects: ComponentEffects) -> ComponentEffects:
    """The effects without measurements, also for components that `components` measured because no linear prediction holds for them."""
    return measurable(replace(effects, measured=None), effects._measurer)  # type: ignore[attr-defined]


def strongest(values: Float[Tensor, "*axes"], k: int) -> list[int]:
    """The places of the ``k`` largest absolute values, the largest first."""
    sizes = values.flatten().abs()
    return sizes.topk(min(k, len(sizes))).indices.tolist()
