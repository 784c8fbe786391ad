"""Entries of attention patterns as the input of the Jacobian: their rows, arranged by the source token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError, nearest

PATTERN = "pattern"
"""The value of ``at=`` that selects attention patterns."""
PER = ("layer", "head")


@dataclass(frozen=True)
class PatternEntries:
    """Rows ``P ⊙ ∂q/∂P`` of all layers, together or separately.

    Attributes:
        per: ``"layer"`` or ``"head"``: separate scores for each; None: all entries of a token together.
    """

    per: str | None = None
    unit: ClassVar[str] = "positive parts of pattern x gradient"

    def __post_init__(self) -> None:
        if self.per is not None and (not isinstance(self.per, str) or self.per not in PER):
            raise InputError(
                f"per is 'layer', 'head', or None for all together; got {self.per!r}.{nearest(str(self.per), PER)}"
            )

    def arranged(
        self, rows: Sequence[Float[Tensor, "chunk src head_dest"]], dest: int
    ) -> list[Float[Tensor, "chunk src entries"]]:
        """One tensor for each row of the map, from the tensors of each layer."""
        if self.per == "layer":
            return list(rows)
        if self.per is None:
            return [torch.cat([row.to(rows[0].device) for row in rows], -1)]
        heads = [rearrange(row, "chunk src (head dest) -> head chunk src dest", dest=dest) for row in rows]
        return [of_head for of_layer in heads for of_head in of_layer]

    def labels(self, layers: Sequence[int], heads: int) -> tuple[str, ...]:
        """The names of the rows of the map; empty if all entries are taken together."""
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
        if self.per == "head":
            return tuple(f"{name} head {head}" for name in names for head in range(heads))
        return tuple(names) if self.per else ()
