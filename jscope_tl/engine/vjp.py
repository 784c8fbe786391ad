"""What a scope has of the engine: rows, energies and products with ``J`` for the position that it scores."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.backward import Puller


@dataclass(frozen=True)
class Pull:
    """What a scope has of the engine: rows, energies and products with ``J`` for the explained position that it scores.

    The graph is freed after a call without ``more_to_come``, where no other explained position needs it.
    """

    puller: Puller
    i: int = 0

    def rows(
        self, cotangents: Float[Tensor, "k *n d_model"], more_to_come: bool = False
    ) -> Float[Tensor, "k *layer pos d_in"]:
        """``C J_t``, all rows at once: for a few of them. 0 after the explained position."""
        rows = torch.cat(list(self.puller.rows(cotangents, self._keep(more_to_come), of=self.i)))
        rows[..., self.position + 1 :, :] = 0
        return rows

    def chunks(
        self, cotangents: Float[Tensor, "k d_model"], more_to_come: bool = False
    ) -> Iterator[Float[Tensor, "chunk *layer seen d_in"]]:
        """`rows` as they come, for many of them; only positions up to the explained one."""
        for rows in self.puller.rows(cotangents, self._keep(more_to_come), of=self.i):
            yield rows[..., : self.position + 1, :]

    def energies(
        self, cotangents: Float[Tensor, "k *n d_model"], more_to_come: bool = False
    ) -> Float[Tensor, "k *layer pos"]:
        """``‖C_i J_t‖²`` for every row ``i`` and position ``t``; also by calling the object itself."""
        return self.puller.energies(cotangents, self._keep(more_to_come), of=self.i)

    __call__ = energies

    def push(self, tangents: Float[Tensor, "m pos d_in"]) -> Float[Tensor, "m d_model"] | None:
        """``Σ_t J_t δ_t``; see `Puller.push`."""
        return self.puller.push(tangents, self.i)

    @property
    def position(self) -> int:
        """The explained position."""
        return self.puller.positions[self.i]

    def _keep(self, more_to_come: bool) -> bool:
        return more_to_come or self.i + 1 < len(self.puller.positions)
