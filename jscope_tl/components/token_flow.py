"""`TokenFlow`: the heads through which one token's influence reaches a prediction."""

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
    """The influence that one head carries from one position to another.

    Attributes:
        layer, head: the layer and the number of the head.
        dest, src: the position that the head writes to, and the position that it reads from.
        influence: signed, in the unit of the flow.
    """

    layer: int
    head: int
    dest: int
    src: int
    influence: float

    @property
    def name(self) -> str:
        """The usual short name of the head, such as ``L9H6``."""
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenFlow(Saved):
    """The influence of one token on a prediction, followed through the layers of the model as `flow` linearises it.

    The influence is conserved: at each level of the residual stream (before layer 0, between layers, after the last layer) it adds up to
    the same ``total`` over positions. After a layer, the influence at a position is the sum of what stays in the residual stream, what the
    MLP passes on, and what heads carry there.

    Attributes:
        edges: the strongest entries of attention patterns, the largest ``|influence|`` first.
        heads: ``[layer, head]``, the influence that all entries of a head carry together.
        levels: ``[level, pos]``, the influence at each position before layer 0, before layer 1, ..., and after the last layer.
        staying: ``[layer, pos]``, the influence that stays in the residual stream at a position and bypasses attention and MLP.
        mlps: ``[layer, pos]``, the influence that the MLP passes on from the stream before the layer. Influence that heads of the same
            layer carry to the MLP's input counts for the heads.
        sizes: ``[layer]``, the sum of ``|influence|`` over all entries of a layer's patterns, listed or not.
        total: ``x_s · ∂q/∂x_s``.
        source_position: the position of the token whose influence is followed.
        position: the explained position.
        scope, asked, options: the name of the scope; the target as text, such as ``, target ' Mary'``; the options of the scope.
        unit: the unit of all influences.
        tokens, str_tokens, bos_positions: the prompt.
        prediction: the explained next-token distribution.
        provenance: the model, versions, and cost.
        warnings: sentences about the limits of these numbers.
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
        """Refuse fields that do not fit together, as in a damaged file."""
        layers, n_heads = self.heads.shape
        pos = len(self.str_tokens)
        for name in ("heads", "levels", "staying", "mlps", "sizes"):
            need_finite(name, getattr(self, name))
        need(self.levels.shape == (layers + 1, pos), f"levels are [{layers + 1}, {pos}]")
        need(self.staying.shape == self.mlps.shape == (layers, pos), f"staying and mlps are [{layers}, {pos}]")
        need(len(self.sizes) == layers and len(self.tokens) == pos, "each layer has a size, each token a text")
        need(
            0 <= self.source_position <= self.position < pos,
            f"positions are below {pos}, and the source is not after the explained one",
        )
        for edge in self.edges:
            inside = 0 <= edge.layer < layers and 0 <= edge.head < n_heads and 0 <= edge.src <= edge.dest < pos
            need(inside and abs(edge.influence) < float("inf"), "edges go from a position to a later one, or to itself")

    @property
    def by_layer(self) -> pd.DataFrame:
        """The influence that attention, the MLP and the residual stream carry through each layer, over all positions; each row adds up to `total`."""
        columns = {"attention": self.heads, "mlp": self.mlps, "staying": self.staying}
        frame = pd.DataFrame({name: values.double().sum(1).numpy() for name, values in columns.items()})
        frame.index.name = "layer"
        return frame

    def top(self, k: int = 10) -> list[FlowEdge]:
        """The ``k`` strongest edges, the largest ``|influence|`` first.

        Args:
            k: how many of the listed edges.

        Raises:
            InputError: ``k`` is not 1 or more.
        """
        if (count := whole(k)) is None or count < 1:
            raise InputError(f"k is how many edges to return, 1 or more; got {k!r}.")
        return list(self.edges[:count])

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each listed edge: layer, head, both positions and their tokens, and influence."""
        rows = [
            {"layer": e.layer, "head": e.head, "dest": e.dest, "src": e.src, "dest_token": self.str_tokens[e.dest],
             "src_token": self.str_tokens[e.src], "influence": e.influence}
            for e in self.edges
        ]  # fmt: skip
        frame = pd.DataFrame(rows)
        frame.attrs = {"scope": self.scope, "unit": self.unit, "model": self.provenance.model_name}
        return frame

    def said(self, edge: FlowEdge) -> str:
        """An edge as text: its head, both tokens with their positions, and its influence.

        Args:
            edge: an edge of this flow.
        """
        src, dest = (f"{visible(self.str_tokens[t])!r} {t}" for t in (edge.src, edge.dest))
        return f"{edge.name}: {src} -> {dest}  {edge.influence:+.4g}"

    def headline(self) -> str:
        """One line with the source token, the explained position and the total influence."""
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
