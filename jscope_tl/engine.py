"""Rows of ``C J``: cotangents pulled back from ``y`` to every position of the hook point, chunk by chunk.

The engine knows neither scopes nor scores. One backward pass gives the row of all positions at once, and rows leave as
they come: nothing here grows with ``d_model² x pos``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError, whole
from jscope_tl.state import State

CHUNK_BYTES = 256 * 2**20
"""Memory that one chunk of backward rows may take by default (an estimate; ``chunk_size`` overrides it)."""


def default_chunk_size(pos: int, d_model: int, element_size: int) -> int:
    """Rows per chunk within `CHUNK_BYTES`, at about 16 live tensors of ``[pos, d_model]`` a row in a backward pass."""
    return max(1, min(64, CHUNK_BYTES // (16 * pos * d_model * element_size)))


def check_chunk_size(chunk_size: Any) -> int | None:
    """A chunk size that can be used, or a refusal."""
    size = whole(chunk_size)
    if chunk_size is not None and (size is None or size < 1):
        raise InputError(f"chunk_size is how many backward rows to compute at once, 1 or more; got {chunk_size!r}.")
    return size


@dataclass
class Puller:
    """Pulls cotangents back through one `State`, counts the backward passes, and lets go of the graph at the end."""

    state: State
    chunk_size: int | None = None
    progress: bool | None = None
    n_backward: int = 0
    notes: list[str] = field(default_factory=list)
    _released: bool = False
    _batched: bool | None = None  # whether this model's backward pass can be batched; None before it was tried

    def rows(
        self, cotangents: Float[Tensor, "k d_model"], more_to_come: bool = False
    ) -> Iterator[Float[Tensor, "chunk pos d_in"]]:
        """Yield ``C_chunk J`` in order, in float32 at least.

        The graph is freed with the last chunk unless ``more_to_come``.
        """
        if self._released:
            raise RuntimeError("The graph of this run is gone: call rows(..., more_to_come=True) before the last time.")
        k, d_model = cotangents.shape
        pos = self.state.x.shape[0]
        size = self.chunk_size or default_chunk_size(pos, d_model, self.state.x.element_size())
        chunks = cotangents.to(self.state.y.device, self.state.dtype).split(size)
        for i, chunk in enumerate(self._watch(chunks, k)):
            keep = more_to_come or i + 1 < len(chunks)
            self._released = not keep
            scale = _power_of_two(chunk)
            rows = self._pull((chunk / scale).to(self.state.y.dtype), keep)
            yield rows.to(self.state.dtype) * scale.to(rows.device).unsqueeze(-1)
            self.n_backward += len(chunk)

    def energies(self, cotangents: Float[Tensor, "k d_model"], more_to_come: bool = False) -> Float[Tensor, "k pos"]:
        """``‖C_i J_t‖²`` for every row ``i`` and position ``t``, in float32 at least; 0 after the explained position."""
        squares = [self._energy(rows) for rows in self.rows(cotangents, more_to_come)]
        return squares[0] if len(squares) == 1 else torch.cat(squares)

    def _energy(self, rows: Float[Tensor, "chunk pos d_in"]) -> Float[Tensor, "chunk pos"]:
        energy = rows.square().sum(-1)
        energy[:, self.state.position + 1 :] = 0
        return energy.to(self.state.logits.device)  # x lives elsewhere where a model is spread over devices

    def _pull(self, chunk: Float[Tensor, "chunk d_model"], keep: bool) -> Float[Tensor, "chunk pos d_in"]:
        if len(chunk) > 1 and self._batched is not False:
            try:
                # The first time the graph is kept, for the row-by-row way if this one fails.
                rows = self._grad(chunk, keep or self._batched is None, is_grads_batched=True)
                self._batched = True
                return rows
            except RuntimeError as error:
                if self._batched:
                    raise
                self._batched = False
                reason = str(error).partition("\n")[0][:200]
                self.notes.append(
                    f"Backward rows were computed one by one, which is slow: in batches they failed ({reason})."
                )
        # One row needs no vmap, which costs more than it saves.
        return torch.stack([self._grad(v, keep or i + 1 < len(chunk)) for i, v in enumerate(chunk)])

    def _grad(
        self, cotangents: Float[Tensor, "*chunk d_model"], keep: bool, **how: bool
    ) -> Float[Tensor, "*chunk pos d_in"]:
        y, x = self.state.y, self.state.x
        (rows,) = torch.autograd.grad(y, x, cotangents, retain_graph=keep, allow_unused=True, **how)
        if rows is None:
            raise InputError(
                "The prediction does not depend on the hook point: a hook between them replaces everything."
            )
        return rows

    def _watch(self, chunks: tuple[Tensor, ...], k: int) -> Iterator[Tensor]:
        """The chunks, with a progress bar that appears by itself only where the wait is over a second."""
        if self.progress is False or (self.progress is None and len(chunks) == 1):
            yield from chunks
            return
        from tqdm.auto import tqdm  # warns on import in notebooks without ipywidgets: not before a bar is needed

        with tqdm(total=k, desc="backward passes", unit="row", delay=0 if self.progress else 1, leave=False) as bar:
            for chunk in chunks:
                yield chunk
                bar.update(len(chunk))


def _power_of_two(rows: Float[Tensor, "k d_model"]) -> Float[Tensor, "k 1"]:
    """The size of each row, to be taken out and put back without rounding: half precision has no room for small rows."""
    largest = rows.abs().amax(1, keepdim=True)
    return torch.where(largest > 0, torch.exp2(largest.log2().floor()), torch.ones_like(largest))
