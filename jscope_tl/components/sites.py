"""Where components are: their hook points, which part of an activation is one component, and what replaces it.

Three kinds of sites: parts of activations (heads, attention and MLP outputs, neurons), edges of attention patterns
(`edges`), and features of an autoencoder (`features`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.engine.run import Run
from jscope_tl.errors import InputError
from jscope_tl.model.hooks import hooked
from jscope_tl.model.replay import block_of
from jscope_tl.model.view import ModelView


class Sites(ABC):
    """All components of one kind in a prompt, arranged as the cells of an array.

    Attributes:
        of: the kind, a value of the parameter ``of``.
        points: the names of the hook points, in the order of the blocks.
        axes, shape: the names of the axes of the array, and its shape.
        index: the component at each place of the last axis, if that is not its place number.
    """

    of: ClassVar[str]
    points: tuple[str, ...]
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    index: Int[Tensor, "*some"] | None = None

    @abstractmethod
    def moved(self, rows: Sequence[Float[Tensor, "chunk pos ..."]]) -> Float[Tensor, "chunk *axes"]:
        """The product of each row with the change that each component makes, from the rows at the hook points."""

    @abstractmethod
    def changed(self, view: ModelView, cells: Sequence[int | None]) -> Any:
        """A context manager: in runs inside it, the ``i``-th of these components is changed in the ``i``-th prompt (None: no component)."""

    def block(self, cell: int) -> int:
        """The number of the block that has the component."""
        return block_of(self.points[self._layer(cell)])

    def _layer(self, cell: int) -> int:
        return cell // max(1, prod(self.shape[1:])) if self.axes[0] == "layer" else 0


@dataclass(frozen=True)
class Part:
    """Which parts of an activation ``[1, pos, *unit, d]`` are components.

    Attributes:
        hook: the last part of the hook points' names.
        unit: the name of the axis of components after ``pos``; None: the whole vector is one component.
        vector: whether each component is a vector, and not a number.
    """

    hook: str
    unit: str | None
    vector: bool


PARTS = {
    "heads": Part("attn.hook_z", "head", True),
    "attn": Part("hook_attn_out", None, True),
    "mlps": Part("hook_mlp_out", None, True),
    "neurons": Part("mlp.hook_post", "neuron", False),
}


@dataclass(frozen=True)
class ActivationParts(Sites):
    """Heads, attention or MLP outputs, neurons.

    Attributes:
        kind: a key of `PARTS`.
        source: the replacing activations by hook point, ``[pos, *unit, d]``.
        deltas: ``source`` minus the activations of the run.
        each: whether every position is a separate component.
    """

    kind: str
    points: tuple[str, ...]
    source: dict[str, Float[Tensor, "pos ..."]]
    deltas: dict[str, Float[Tensor, "pos ..."]]
    each: bool

    @property
    def of(self) -> str:  # type: ignore[override]
        """The kind, a value of the parameter ``of``."""
        return self.kind

    @property
    def part(self) -> Part:
        """What is one component."""
        return PARTS[self.kind]

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """``layer``, the unit, and ``pos`` if every position is a separate component."""
        return ("layer", *([self.part.unit] if self.part.unit else []), *(["pos"] if self.each else []))

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of the array of components."""
        pos, *unit = self.deltas[self.points[0]].shape
        units = unit[:-1] if self.part.vector else unit
        return (len(self.points), *units, *([pos] if self.each else []))

    def moved(self, rows: Sequence[Float[Tensor, "chunk pos ..."]]) -> Float[Tensor, "chunk *axes"]:
        """``C J δ``, summed over positions or for each position."""
        device = rows[0].device  # layers may be on several devices
        pairs = zip(rows, self.points, strict=True)
        return torch.stack([self._moved(row, self.deltas[name]).to(device) for row, name in pairs], 1)

    def _moved(
        self, row: Float[Tensor, "chunk pos ..."], delta: Float[Tensor, "pos ..."]
    ) -> Float[Tensor, "chunk *cell"]:
        product = row * delta.to(row)
        product = product.sum(-1) if self.part.vector else product
        return rearrange(product, "chunk pos ... -> chunk ... pos") if self.each else product.sum(1)

    @contextmanager
    def changed(self, view: ModelView, cells: Sequence[int | None]) -> Iterator[None]:
        """Hooks that replace one component in each prompt by the source."""
        own = []
        for layer, name in enumerate(self.points):
            where = [(row, cell) for row, cell in enumerate(cells) if cell is not None and self._layer(cell) == layer]
            if where:
                places = [(row, *self._inside(cell)) for row, cell in where]
                own.append((name, partial(_replaced, self.source[name], places)))
        with hooked(view, [], own):
            yield

    def _inside(self, cell: int) -> tuple[Any, ...]:
        """The place of a component in ``[pos, *unit]``."""
        at = torch.unravel_index(torch.tensor(cell), self.shape)
        place = dict(zip(self.axes, (int(i) for i in at), strict=True))
        unit = (place[self.part.unit],) if self.part.unit else ()
        return (place.get("pos", slice(None)), *unit)


def _replaced(
    source: Float[Tensor, "pos ..."],
    places: Sequence[tuple[Any, ...]],
    activation: Float[Tensor, "batch pos ..."],
    hook: Any,
) -> Float[Tensor, "batch pos ..."]:
    changed = activation.clone()
    shown = changed.view(*changed.shape[:2], *source.shape[1:])
    for row, *place in places:
        shown[row][tuple(place)] = source[tuple(place)].to(shown)
    return changed


def points_of(view: ModelView, kind: str) -> tuple[str, ...]:
    """The hook points of `PARTS`, one for each block that has one.

    Raises:
        InputError: there are none.
    """
    names = [f"blocks.{layer}.{PARTS[kind].hook}" for layer in range(int(view.cfg.n_layers))]
    found = tuple(name for name in names if name in view.points)
    if kind in ("mlps", "neurons") and getattr(view.cfg, "attn_only", False):
        raise InputError(f"{view.name} has attention layers only, and no {kind}. Use of='heads', 'edges' or 'attn'.")
    if not found:
        others = [other for other in PARTS if any(f"blocks.0.{PARTS[other].hook}" == name for name in view.points)]
        raise InputError(
            f"{view.name} has no hook point {names[0]!r}, which {kind} need. It has the hook points of {', '.join(others) or 'no components'}."
        )
    return found


def shaped(view: ModelView, kind: str, name: str, activation: Float[Tensor, "1 pos ..."]) -> Float[Tensor, "pos ..."]:
    """An activation in which heads have their own axis.

    Raises:
        InputError: the shape of the activation does not allow that.
    """
    part, shown = PARTS[kind], activation[0]
    heads = int(view.cfg.n_heads)
    if part.unit == "head" and shown.ndim == 2 and shown.shape[-1] % heads == 0:
        shown = rearrange(shown, "pos (head d) -> pos head d", head=heads)
    if shown.ndim != 1 + part.vector + (part.unit is not None):
        raise InputError(
            f"{view.name} has an activation of shape {list(activation.shape)} at {name!r}, in which {kind} cannot be told apart."
        )
    return shown


def heads_alike(view: ModelView, kind: str, activations: dict[str, Float[Tensor, "pos ..."]]) -> None:
    """Refuse layers that differ in the number of components, which do not form an array."""
    sizes = {tuple(found.shape) for found in activations.values()}
    if len(sizes) > 1:
        raise InputError(
            f"Layers of {view.name} differ in the shape of their {kind} ({sorted(sizes)}), which do not form an array of effects."
        )


def base_activations(view: ModelView, kind: str, forward: Run) -> dict[str, Float[Tensor, "pos ..."]]:
    """The activations of a run at the hook points of a kind of `PARTS`."""
    found = {name: shaped(view, kind, name, forward.watched[name].detach()) for name in points_of(view, kind)}
    heads_alike(view, kind, found)
    return found
