"""`TokenFlow`: through which heads one token's influence reaches a prediction."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError, whole
from jscope_tl.results.attribution import Prediction
from jscope_tl.results.base import Provenance
from jscope_tl.results.checks import need, need_finite
from jscope_tl.results.files import Saved
from jscope_tl.results.text import visible


@dataclass(frozen=True)
class FlowEdge:
    """What one head carries from one position to another.

    Attributes:
        layer, head: of the head.
        dest, src: the position that it writes to, and the one that it reads.
        influence: in the unit of the flow, signed.
    """

    layer: int
    head: int
    dest: int
    src: int
    influence: float

    @property
    def name(self) -> str:
        """``L9H6``, as TransformerLens' users write it."""
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenFlow(Saved):
    """One token's influence on a prediction on its way through the layers, in the linear picture of `flow`.

    Influence is nowhere made or lost: at each level (the stream before layer 0, between layers, behind the last one) it adds up to the same
    ``total`` over positions. In a layer, what a position has is what stays in the stream, what its MLP passes on, and what heads bring.

    Attributes:
        edges: the strongest entries of attention patterns, the largest ``|influence|`` first.
        heads: ``[layer, head]``, what all entries of a head carry together.
        levels: ``[level, pos]``, the influence at each position before layer 0, ..., and behind the last layer.
        staying: ``[layer, pos]``, what stays at a position, in the stream, past attention and MLP.
        mlps: ``[layer, pos]``, what the MLP passes on of what is at its position already before the layer; what it does with what heads
            bring in the same layer counts as the heads'.
        sizes: ``[layer]``, the sum of ``|influence|`` over all entries of a layer's patterns: what is listed and what is not.
        total: ``x_s · ∂q/∂x_s``.
        source_position: of the token whose influence it is.
        position: the explained one.
        scope, asked, options: what is explained; the target, as ``, target ' Mary'``; options of the scope.
        unit: of all influences.
        tokens, str_tokens, bos_positions: the prompt.
        prediction: the distribution that is explained.
        provenance: model, versions, cost.
        warnings: doubts about these numbers, in sentences.
    """

    edges: tuple[FlowEdge, ...]
    heads: Float[Tensor, "layer head"]
    levels: Float[Tensor, "level pos"]
    staying: Float[Tensor, "layer pos"]
    mlps: Float[Tensor, "layer pos"]
    sizes: Float[Tensor, "layer"]
    total: float
    source_position: int
    position: int
    scope: str
    asked: str
    options: dict[str, Any]
    unit: str
    tokens: Int[Tensor, "pos"]
    str_tokens: list[str]
    bos_positions: tuple[int, ...]
    prediction: Prediction
    provenance: Provenance
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together, as a damaged file may hold."""
        layers, n_heads = self.heads.shape
        pos = len(self.str_tokens)
        for name in ("heads", "levels", "staying", "mlps", "sizes"):
            need_finite(name, getattr(self, name))
        need(self.levels.shape == (layers + 1, pos), f"levels are [{layers + 1}, {pos}]")
        need(self.staying.shape == self.mlps.shape == (layers, pos), f"staying and mlps are [{layers}, {pos}]")
        need(len(self.sizes) == layers and len(self.tokens) == pos, "each layer has a size, each token a text")
        need(0 <= self.source_position <= self.position < pos, f"positions are below {pos}, the source's first")
        for edge in self.edges:
            inside = 0 <= edge.layer < layers and 0 <= edge.head < n_heads and 0 <= edge.src <= edge.dest < pos
            need(inside and abs(edge.influence) < float("inf"), "edges go from a position to a later one, or to itself")

    @property
    def by_layer(self) -> pd.DataFrame:
        """What attention, the MLP and the stream carry through each layer, over all positions; each row adds up to `total`."""
        columns = {"attention": self.heads, "mlp": self.mlps, "staying": self.staying}
        frame = pd.DataFrame({name: values.double().sum(1).numpy() for name, values in columns.items()})
        frame.index.name = "layer"
        return frame

    def top(self, k: int = 10) -> list[FlowEdge]:
        """The ``k`` strongest edges, the largest ``|influence|`` first.

        Args:
            k: how many, of those that the flow lists.

        Raises:
            InputError: ``k`` is not 1 or more.
        """
        if (count := whole(k)) is None or count < 1:
            raise InputError(f"k is how many edges to return, 1 or more; got {k!r}.")
        return list(self.edges[:count])

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each listed edge: layer, head, positions and their tokens, influence."""
        rows = [
            {"layer": e.layer, "head": e.head, "dest": e.dest, "src": e.src, "dest_token": self.str_tokens[e.dest],
             "src_token": self.str_tokens[e.src], "influence": e.influence}
            for e in self.edges
        ]  # fmt: skip
        frame = pd.DataFrame(rows)
        frame.attrs = {"scope": self.scope, "unit": self.unit, "model": self.provenance.model_name}
        return frame

    def said(self, edge: FlowEdge) -> str:
        """An edge in words: its head, both tokens with their positions, its influence.

        Args:
            edge: of this flow.
        """
        src, dest = (f"{visible(self.str_tokens[t])!r} {t}" for t in (edge.src, edge.dest))
        return f"{edge.name}: {src} -> {dest}  {edge.influence:+.4g}"

    def headline(self) -> str:
        """Whose influence it is, on what, and how large, in one line."""
        s, t = self.source_position, self.position
        return (
            f"flow of {visible(self.str_tokens[s])!r} at {s} to the prediction at {t}, {self.scope} scope{self.asked}: {self.total:+.4g} "
            f"{self.unit} (linear picture: attention and norms constant, MLPs by their derivative)"
        )

    def __repr__(self) -> str:
        listed = float(sum(abs(edge.influence) for edge in self.edges)) / (float(self.sizes.sum()) or 1.0)
        lines = [f"TokenFlow: {self.headline()}", *(f"  {self.said(edge)}" for edge in self.top(5))]
        lines.append(f"  {len(self.edges)} edges are listed, {listed:.0%} of the sum of all edges' sizes")
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])
