"""Edges: each entry of each head's attention pattern as a component. Layers are processed one at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.components.sites import Sites
from jscope_tl.engine.precision import beside, power_of_two
from jscope_tl.engine.ruled_pass import HeldConstant
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.run import Run
from jscope_tl.engine.under_rules import under_rules
from jscope_tl.model.view import ModelView
from jscope_tl.scopes.effects import EffectRows

MOST_BYTES = 2**28
"""Memory for the products of all rows with the changes of all edges; for longer prompts the strongest edges of each head are kept."""


@dataclass(frozen=True)
class Edges(Sites):
    """The entries of attention patterns. If ``kept`` is given, only these are cells of the array.

    Attributes:
        layers: the numbers of the blocks.
        deltas: ``P' - P`` by layer, ``[head, dest, src]``.
        kept: the kept entries as ``dest * pos + src``, ``[layer, head, entry]``.
    """

    points: tuple[str, ...]
    layers: tuple[int, ...]
    deltas: dict[int, Float[Tensor, "head dest src"]]
    kept: Int[Tensor, "layer head entry"] | None = None
    of = "edges"

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The axes of all entries, or of those that are kept."""
        return ("layer", "head", "dest", "src") if self.kept is None else ("layer", "head", "entry")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of the array of components."""
        if self.kept is not None:
            return tuple(self.kept.shape)
        return (len(self.layers), *self.deltas[self.layers[0]].shape)

    @property
    def index(self) -> Int[Tensor, "layer head entry"] | None:  # type: ignore[override]
        """The kept entries."""
        return self.kept

    def moved(self, rows: Sequence[Float[Tensor, "chunk pos ..."]]) -> Float[Tensor, "chunk *axes"]:
        """Patterns are differentiated layer by layer: see `predicted_edges`."""
        raise NotImplementedError

    @contextmanager
    def changed(self, view: ModelView, cells: Sequence[int | None]) -> Iterator[None]:
        """Where patterns are computed, one entry is changed in each prompt."""
        places = [None if cell is None else self._edge(cell) for cell in cells]

        def change(layer: int, pattern: Float[Tensor, "batch head dest src"]) -> Float[Tensor, "batch head dest src"]:
            pattern = pattern.clone()
            for row, place in enumerate(places):
                if place is not None and place[0] == layer:
                    _, head, dest, src = place
                    pattern[row, head, dest, src] += self.deltas[layer][head, dest, src].to(pattern)
            return pattern

        pos = next(iter(self.deltas.values())).shape[1]
        with under_rules(view, Rules(), HeldConstant(), pos, len(cells), with_patterns=True, change=change):
            yield

    def _edge(self, cell: int) -> tuple[int, int, int, int]:
        at = [int(i) for i in torch.unravel_index(torch.tensor(cell), self.shape)]
        if self.kept is not None:
            pos = self.deltas[self.layers[0]].shape[1]
            at = [*at[:2], *divmod(int(self.kept[tuple(at)]), pos)]
        return self.layers[at[0]], at[1], at[2], at[3]


def patterns_of(run: Run) -> dict[str, Float[Tensor, "dest head src"]]:
    """The attention patterns of a run by layer, destinations first."""
    dest = len(run.tokens)
    return {
        str(layer): rearrange(entries[0], "src (head dest) -> dest head src", dest=dest)
        for layer, entries in run.entries.items()
    }


def predicted_edges(
    sites: Edges, run: Run, rows: Sequence[Float[Tensor, "k pos ..."]], effect: EffectRows
) -> tuple[Edges, Float[Tensor, "k *axes"]]:
    """The edges of each head that are kept, and the products of the rows with their changes.

    Gradients go from a layer's ``z`` to the entries of the pattern of the same layer, so that the gradients of all layers are never in
    memory at once.
    """
    most = max(1, MOST_BYTES // (4 * len(effect.rows) * len(sites.layers) * sites.shape[1]))
    layers = [_Layer(sites, run, layer, row) for layer, row in zip(sites.layers, rows, strict=True)]
    if len(run.tokens) ** 2 <= most:
        return sites, _stacked([torch.cat(list(layer.chunks())) for layer in layers])
    order = [layer.leading_order(effect).flatten(1).abs().topk(most, dim=1).indices for layer in layers]
    moved = [layer.moved(kept) for layer, kept in zip(layers, order, strict=True)]
    found = Edges(sites.points, sites.layers, sites.deltas, torch.stack([one.cpu() for one in order]))
    return found, _stacked(moved)


def _stacked(moved: Sequence[Float[Tensor, "k *axes"]]) -> Float[Tensor, "k layer *axes"]:
    """One tensor on one device; layers may be on several."""
    return torch.stack([one.to(moved[0].device) for one in moved], 1)


@dataclass(frozen=True)
class _Layer:
    """The part of a run from a layer's pattern to its ``z``, and the rows at ``z``."""

    sites: Edges
    run: Run
    layer: int
    rows: Float[Tensor, "k pos ..."]

    def chunks(self) -> Iterator[Float[Tensor, "1 head dest src"]]:
        """``∂q/∂P ⊙ (P' - P)``, row by row."""
        z = self.run.watched[self.sites.points[self.sites.layers.index(self.layer)]]
        leaf, entries = (self.run.patterns or {})[self.layer], self.run.entries[self.layer]
        delta, dest = self.sites.deltas[self.layer], len(self.run.tokens)
        share = torch.where(entries != 0, rearrange(delta, "head dest src -> 1 src (head dest)") / entries, 0)
        for row in self.rows.split(1):
            scale = power_of_two(row)
            (grad,) = torch.autograd.grad(z, leaf, (row / beside(scale, row)).to(z).view_as(z), retain_graph=True)
            yield rearrange(
                (grad * share).to(row) * beside(scale, grad).to(row), "1 src (head dest) -> 1 head dest src", dest=dest
            )

    def leading_order(self, effect: EffectRows) -> Float[Tensor, "head dest src"]:
        """The leading-order effects of all entries, added up row by row."""
        parts = (effect.squares(chunk, i) for i, chunk in enumerate(self.chunks()))
        return sum(parts, torch.zeros(()))

    def moved(self, kept: Int[Tensor, "head entry"]) -> Float[Tensor, "k head entry"]:
        """The products of the rows with the changes of the kept entries."""
        return torch.cat([chunk.flatten(2).gather(2, kept.unsqueeze(0)) for chunk in self.chunks()])
