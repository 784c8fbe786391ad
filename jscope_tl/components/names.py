"""`ComponentEffect`: one component by TransformerLens' names, and its effect."""

from dataclasses import dataclass
from typing import Any

ERROR = -1
"""In place of a feature's number: what an autoencoder leaves unexplained."""


@dataclass(frozen=True)
class ComponentEffect:
    """The effect of one component.

    Attributes:
        name: TransformerLens' name of the hook point, and which part of its activation it is: ``blocks.9.attn.hook_z head 6``.
        effect: of changing it, in the unit of the effects.
        stderr: standard error of the linear prediction, where it is an estimate.
        how: ``"predicted"`` from backward rows; ``"refined"``, the same behind a few blocks that were run with the change; ``"measured"``.
        hook_point, layer: where it is.
        head: of the layer; None where it is no head.
        unit: the number of a neuron or a feature (-1: the error of the autoencoder); None for others.
        pos: the position that is changed; None: all of them.
        dest, src: of an edge.
    """

    name: str
    effect: float
    stderr: float | None
    how: str
    hook_point: str
    layer: int
    head: int | None = None
    unit: int | None = None
    pos: int | None = None
    dest: int | None = None
    src: int | None = None

    def node(self) -> Any:
        """TransformerLens' name of it, a ``Node`` of its attribution patching, by which its results have their scores.

        None for what is no node there: what is changed at all positions together, edges, neurons, features; and where this line of
        TransformerLens has none.
        """
        kind = {"hook_z": "attn_head_out", "hook_mlp_out": "mlp_out"}.get(self.hook_point.rpartition(".")[2])
        try:
            from transformer_lens.tools.analysis.attribution_patching import Node
        except ImportError:
            return None
        if kind is None or self.pos is None:
            return None
        return Node(kind=kind, position=self.pos, layer=self.layer, head=self.head)  # type: ignore[arg-type]  # both are kinds


def layer_of(hook_point: str) -> int:
    """The first number in the name of a hook point, whatever its stack of blocks is called."""
    numbers = [int(part) for part in hook_point.split(".") if part.isdecimal()]
    return numbers[0] if numbers else 0


def parts_of(place: dict[str, int]) -> list[str]:
    """The parts of a component's name behind its hook point."""
    said = [f"head {place['head']}"] if "head" in place else []
    if "unit" in place:
        said.append("error" if place["unit"] == ERROR else f"unit {place['unit']}")
    if "pos" in place:
        said.append(f"pos {place['pos']}")
    if "dest" in place:
        said.append(f"{place['dest']} <- {place['src']}")
    return said
