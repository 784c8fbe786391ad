"""`ComponentEffect`: the effect of one component, which is named as in TransformerLens."""

from dataclasses import dataclass
from typing import Any

ERROR = -1
"""The number of the component that stands for an autoencoder's error."""


@dataclass(frozen=True)
class ComponentEffect:
    """The effect of one component.

    Attributes:
        name: TransformerLens' name of the hook point, and the part of its activation: ``blocks.9.attn.hook_z head 6``.
        effect: the effect of changing the component, in the unit of the `ComponentEffects`.
        stderr: standard error of the linear prediction, if it is an estimate.
        how: ``"predicted"`` from backward passes; ``"refined"``, predicted after the change went through a few blocks of the model; or
            ``"measured"``.
        hook_point, layer: the hook point and the number of its layer.
        head: the number of the head in its layer; None for components without heads.
        unit: the number of a neuron or a feature (-1: the error of the autoencoder); None for other kinds.
        pos: the position that is changed; None: all positions.
        dest, src: the destination and source position of an edge; None for other kinds.
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
        """The component as a ``Node`` of TransformerLens' attribution patching, whose results have their scores by node.

        None for components that have no node there (those changed at all positions together, edges, neurons, features), and if the
        installed version of TransformerLens has no nodes.
        """
        kind = {"hook_z": "attn_head_out", "hook_mlp_out": "mlp_out"}.get(self.hook_point.rpartition(".")[2])
        try:
            from transformer_lens.tools.analysis.attribution_patching import Node
        except ImportError:
            return None
        if kind is None or self.pos is None:
            return None
        return Node(kind=kind, position=self.pos, layer=self.layer, head=self.head)  # type: ignore[arg-type]  # both values are kinds of nodes


def layer_of(hook_point: str) -> int:
    """The first number in the name of a hook point, independent of what the model calls its blocks."""
    numbers = [int(part) for part in hook_point.split(".") if part.isdecimal()]
    return numbers[0] if numbers else 0


def parts_of(place: dict[str, int]) -> list[str]:
    """The parts of a component's name after its hook point."""
    parts = [f"head {place['head']}"] if "head" in place else []
    if "unit" in place:
        parts.append("error" if place["unit"] == ERROR else f"unit {place['unit']}")
    if "pos" in place:
        parts.append(f"pos {place['pos']}")
    if "dest" in place:
        parts.append(f"{place['dest']} <- {place['src']}")
    return parts
