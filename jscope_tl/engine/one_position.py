"""`VJP`: the vector-Jacobian products that a scope can use, for the position that it scores; `SpanVJP`: for several positions."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.jvp import jvp
from jscope_tl.engine.vjp import Backward


@dataclass(frozen=True)
class VJP:
    """Vector-Jacobian products with ``J = ∂y/∂x`` for one explained position, and Jacobian-vector products.

    The graph is freed after a call without ``retain_graph``, unless another explained position needs it.

    Attributes:
        backward: the backward passes that compute the products.
        i: the number of the explained position.
    """

    backward: Backward
    i: int = 0

    def rows(
        self, cotangents: Float[Tensor, "k *n d_model"], retain_graph: bool = False
    ) -> Float[Tensor, "k *layer pos d_in"]:
        """``C J_t``, all rows at once, for a small number of rows; 0 after the explained position."""
        rows = torch.cat(list(self.backward.rows(self.placed(cotangents), self._retain(retain_graph), of=self.i)))
        rows[..., self.position + 1 :, :] = 0
        return rows

    def chunks(
        self, cotangents: Float[Tensor, "k d_model"], retain_graph: bool = False
    ) -> Iterator[Float[Tensor, "chunk *layer seen d_in"]]:
        """`rows` chunk by chunk, for a large number of rows; only positions up to the explained one."""
        for rows in self.backward.rows(self.placed(cotangents), self._retain(retain_graph), of=self.i):
            yield rows[..., : self.position + 1, :]

    def squared_norms(
        self, cotangents: Float[Tensor, "k *n d_model"], retain_graph: bool = False
    ) -> Float[Tensor, "k *layer pos"]:
        """``‖C_i J_t‖²`` for every row ``i`` and position ``t``."""
        return self.backward.squared_norms(self.placed(cotangents), self._retain(retain_graph), of=self.i)

    def positive_parts(
        self, cotangents: Float[Tensor, "k *n d_model"], retain_graph: bool = False
    ) -> Float[Tensor, "k *layer pos"]:
        """The sum of the positive entries of every row ``C_i J_t``."""
        return self.backward.positive_parts(self.placed(cotangents), self._retain(retain_graph), of=self.i)

    def jvp(self, tangents: Float[Tensor, "m pos d_in"]) -> Float[Tensor, "m d_model"] | None:
        """``Σ_t J_t δ_t``, or None if it is not available; see `jscope_tl.engine.jvp`."""
        return jvp(self.backward, tangents, self.i)

    def expect(self, rows: int) -> None:
        """Set the number of remaining rows of this position in the progress bar; later positions count as having as many."""
        self.backward.bar.expect(rows * (len(self.backward.positions) - self.i), self.backward.progress)

    @property
    def position(self) -> int:
        """The explained position."""
        return self.backward.positions[self.i]

    @property
    def d_output(self) -> int:
        """The length of a cotangent."""
        return self.backward.y.shape[-1]

    def placed(self, cotangents: Float[Tensor, "k *n d_model"]) -> Float[Tensor, "k *n d_model"]:
        """Cotangents in the form that the backward pass takes."""
        return cotangents

    def _retain(self, retain_graph: bool) -> bool:
        return retain_graph or self.i + 1 < len(self.backward.positions)


@dataclass(frozen=True)
class SpanVJP(VJP):
    """A `VJP` for the ``m`` explained positions of a span together, whose outputs are concatenated, ``[m d_model]``.

    A cotangent is the concatenation of the cotangents of all positions, and its row is the sum of their rows.

    Attributes:
        n: the number of positions, starting at the ``i``-th.
        last: whether no other span needs the graph.
    """

    n: int = 1
    last: bool = True

    @property
    def span(self) -> slice:
        """The range of the explained positions."""
        return slice(self.i, self.i + self.n)

    @property
    def position(self) -> int:
        """The last explained position."""
        return max(self.backward.positions[self.span])

    @property
    def d_output(self) -> int:
        """The length of a cotangent."""
        return self.n * self.backward.y.shape[-1]

    def jvp(self, tangents: Float[Tensor, "m pos d_in"]) -> Float[Tensor, "m d_output"] | None:
        """``Σ_t J_t δ_t`` at all positions, concatenated, or None if it is not available; see `jscope_tl.engine.jvp`."""
        moved = jvp(self.backward, tangents, self.span)
        return None if moved is None else rearrange(moved, "m n d_model -> m (n d_model)")

    def placed(self, cotangents: Float[Tensor, "k *n d"]) -> Float[Tensor, "k all d_model"]:
        """Cotangents at the positions of the span, and 0 at the others."""
        placed = cotangents.new_zeros(len(cotangents), *self.backward.y.shape)
        placed[:, self.span] = cotangents.reshape(len(cotangents), self.n, -1).to(placed)
        return placed

    def _retain(self, retain_graph: bool) -> bool:
        return retain_graph or not self.last
