"""`Stacked`: the factors of several predictions as one factor, for their joint Fisher information."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.model.turns import cached_property
from jscope_tl.scopes.factor import Factor, FisherFactor


@dataclass(frozen=True)
class Stacked(Factor):
    """A factor of the block-diagonal matrix of several matrices, from the factors of these, each scaled relative to ``size``.

    Args:
        blocks: one factor for each explained position.
    """

    blocks: tuple[FisherFactor, ...]

    @cached_property
    def size(self) -> float:
        """The size of all blocks together."""
        return sum(block.size**2 for block in self.blocks) ** 0.5

    @property
    def n(self) -> int:  # type: ignore[override]
        """The number of tokens of the vocabulary times the number of blocks."""
        return sum(block.n for block in self.blocks)

    @property
    def d_model(self) -> int:  # type: ignore[override]
        """The dimension of the concatenated ``y`` of all blocks."""
        return sum(block.d_model for block in self.blocks)

    @property
    def n_directions(self) -> int:
        """Upper bound of the number of singular values that are not 0."""
        return sum(block.n_directions for block in self.blocks)

    def left(self, V: Float[Tensor, "m d_model"]) -> Float[Tensor, "m n"]:
        """``V S^T``."""
        parts = zip(self._weighted(), V.chunk(len(self.blocks), 1), strict=True)
        return torch.cat([S.left(v) * w for (S, w), v in parts], 1)

    def right(self, U: Float[Tensor, "m n"]) -> Float[Tensor, "m d_model"]:
        """``U S``."""
        parts = zip(self._weighted(), U.chunk(len(self.blocks), 1), strict=True)
        return torch.cat([S.right(u) * w for (S, w), u in parts], 1)

    def gram(self) -> Float[Tensor, "d_model d_model"]:
        """``S^T S``."""
        return torch.block_diag(*(S.gram() * w**2 for S, w in self._weighted()))

    def likely(self) -> Float[Tensor, "some d_model"]:
        """The likely rows of all blocks."""
        return torch.block_diag(*(S.likely() * w for S, w in self._weighted()))

    def principal(self) -> Float[Tensor, "rank d_model"]:
        """The principal rows of all blocks: each lies in one block."""
        return _largest(torch.block_diag(*(S.principal() * w for S, w in self._weighted())))

    def leading(self, rank: int) -> Float[Tensor, "rank d_model"]:
        """The largest among the leading rows of all blocks."""
        rows = (S.leading(min(rank, S.n_directions)) * w for S, w in self._weighted())
        return _largest(torch.block_diag(*rows))[:rank]

    def leading_directions(self, rank: int) -> Float[Tensor, "rank n"]:
        """The largest among the leading directions of all blocks."""
        found = [(S, w, S.leading_directions(min(rank, S.n_directions))) for S, w in self._weighted()]
        sizes = torch.cat([S.right(some).norm(dim=1) * w for S, w, some in found])
        return torch.block_diag(*(some for _, _, some in found))[sizes.argsort(descending=True, stable=True)[:rank]]

    def _weighted(self) -> Iterator[tuple[FisherFactor, float]]:
        for block in self.blocks:
            yield block, block.size / self.size


def _largest(rows: Float[Tensor, "k d_model"]) -> Float[Tensor, "k d_model"]:
    return rows[rows.norm(dim=1).argsort(descending=True, stable=True)]
