"""Vector-Jacobian products: rows of ``C J`` from ``y`` to every position of the hook points, chunk by chunk.

The engine knows neither scopes nor scores. One backward pass gives the row of all positions at once, and rows leave as
they come: nothing here grows with ``d_model² x pos``. Rows of one chunk may start at different explained positions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.engine.memory import LiveBytes, available_bytes, chunk_budget, is_out_of_memory
from jscope_tl.engine.precision import beside, matmul_precision, power_of_two
from jscope_tl.engine.progress import Bar
from jscope_tl.errors import InputError
from jscope_tl.model.running import Passes

MOST_ROWS = 64
"""In one chunk, however small they are."""
ROWS_RECOMPUTED = 8
"""In one chunk, where the layers run again for each."""


@dataclass
class Backward:
    """The backward passes through one forward pass: computed in chunks, counted, the graph freed with the last one.

    The ``of`` of a row says at which explained position it starts: a number for all rows, or one for each. Cotangents
    ``[k, n, d_model]`` start at all of them together. With several hook points rows and squared norms have an axis
    ``layer`` of them; one backward pass serves all.

    Attributes:
        xs: what rows are taken with respect to, ``[1, pos, d_in]`` for each hook point (any further axes, where rows are captured).
        y: the final hidden state at the ``n`` explained ``positions``, ``[n, d_model]``.
        chunk_size: rows at once; None: as many as the memory of the first one allows.
        progress: a bar always (True), never (False), or where the wait is over a second (None).
        arrange: from the rows of every hook point (or layer) to those of every row of a map; None leaves them.
        capture: called with the rows of every chunk, one tensor for each hook point.
        matmul_precision: see `jscope_tl.engine.precision`; the ``rounding`` that it causes is measured on the first row.
        passes: where passes are counted.
        n_prompts: that run side by side: a row that starts at all of them counts once for each.
        recomputed: bytes of the graphs of layers that run again in each backward pass.
        bar: one for all rows; see `Bar.expect`.
        notes: what happened, for the result's warnings.
    """

    xs: Sequence[Float[Tensor, "1 pos ..."]]
    y: Float[Tensor, "n d_model"]
    positions: Sequence[int]
    chunk_size: int | None = None
    progress: bool | None = None
    arrange: Callable[[list[Tensor]], list[Tensor]] | None = None
    capture: Callable[[list[Tensor]], None] | None = None
    matmul_precision: str | None = None
    passes: Passes = field(default_factory=Passes)
    n_prompts: int = 1
    recomputed: float = 0.0
    rounding: float | None = None
    notes: list[str] = field(default_factory=list)
    bar: Bar = field(default_factory=Bar)
    graph_freed: bool = False
    _row_bytes: int = 0  # measured
    _proven: int = 0  # rows at once that were no trouble
    _batched: bool | None = None  # whether this model's backward pass can be batched; None before it was tried

    def elsewhere(
        self, xs: Sequence[Float[Tensor, "1 pos ..."]], y: Float[Tensor, "n d_model"], positions: Sequence[int]
    ) -> "Backward":
        """The backward passes through another forward pass: the same settings, counted together, no bar of their own."""
        return Backward(
            xs, y, positions, self.chunk_size, False,
            matmul_precision=self.matmul_precision, passes=self.passes, n_prompts=len(positions), rounding=self.rounding,
        )  # fmt: skip

    @property
    def dtype(self) -> torch.dtype:
        """Of rows and squared norms: float32, or the model's float64."""
        return torch.promote_types(self.y.dtype, torch.float32)

    def rows(
        self, cotangents: Float[Tensor, "k *n d_model"], retain_graph: bool = False, *, of: int | Int[Tensor, "k"] = 0
    ) -> Iterator[Float[Tensor, "chunk *layer pos d_in"]]:
        """Yield ``C_chunk J`` in order, in float32 at least.

        The graph is freed with the last chunk unless ``retain_graph``.
        """
        for rows in self._rows(cotangents, of, retain_graph):
            yield rows[0] if len(rows) == 1 else torch.stack([row.to(rows[0].device) for row in rows], 1)

    def _rows(
        self, cotangents: Float[Tensor, "k *n d_model"], of: int | Int[Tensor, "k"], retain_graph: bool
    ) -> Iterator[list[Float[Tensor, "chunk pos ..."]]]:
        if self.graph_freed:
            raise RuntimeError(
                "The graph of this run is freed: call rows(..., retain_graph=True) before the last time."
            )
        rest, starts = cotangents.to(self.y.device, self.dtype), self._starts(of, len(cotangents))
        if self.matmul_precision is not None and self.rounding is None:
            self._state_rounding(rest[:1], starts[:1])
        self.bar.expect(max(len(cotangents), self.bar.left), self.progress)
        while len(rest):
            size = min(len(rest), self.rows_at_once())
            # What may still run out of memory needs the graph for another try.
            keep = retain_graph or size < len(rest) or size > max(self._proven, 1)
            try:
                rows = self._scaled_rows(rest[:size], starts[:size], keep)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                self.fewer(size)
                continue
            self.graph_freed = not (retain_graph or size < len(rest))
            self._proven = max(self._proven, size)
            if self.capture is not None:
                self.capture(rows)
            yield rows if self.arrange is None else self.arrange(rows)
            self._count(size, cotangents)
            rest, starts = rest[size:], starts[size:]
            self.bar.update(size)

    def _scaled_rows(
        self, chunk: Float[Tensor, "chunk *n d_model"], starts: Int[Tensor, "chunk"], keep: bool
    ) -> list[Float[Tensor, "chunk pos ..."]]:
        """One chunk; where more follow, the first tells how much memory a row takes."""
        scale = power_of_two(chunk)
        placed = self._placed((chunk / beside(scale, chunk)).to(self.y.dtype), starts)
        measured = not keep or self._row_bytes or self.chunk_size is not None
        with nullcontext() if measured else LiveBytes() as meter, matmul_precision(self.matmul_precision):
            found = self._unscaled_rows(placed, keep)
        if meter is not None:
            self._row_bytes = max(1, meter.peak // len(chunk))
        return [rows[:, 0].to(self.dtype) * beside(scale, rows[:, 0]) for rows in found]

    def _state_rounding(self, row: Float[Tensor, "1 *n d_model"], start: Int[Tensor, "1"]) -> None:
        """Pull the first row in full precision too, and say how far the faster one is from it."""
        fast, self.matmul_precision = self.matmul_precision, None
        full = torch.cat([part.flatten() for part in self._scaled_rows(row, start, True)])
        self.matmul_precision = fast
        rounded = torch.cat([part.flatten() for part in self._scaled_rows(row, start, True)])
        self._count(2, row)
        self.rounding = float((rounded - full).norm() / full.norm().clamp_min(torch.finfo(full.dtype).tiny))
        self.notes.append(
            f"Backward rows were computed with matmul_precision={fast!r}: the first differs by {self.rounding:.1e} of its norm "
            "from full precision."
        )

    def _count(self, n_rows: int, cotangents: Float[Tensor, "k *n d_model"]) -> None:
        """Rows that start at several prompts side by side count once for each."""
        self.passes.n_backward += n_rows * (self.n_prompts if cotangents.ndim == 3 else 1)

    def rows_at_once(self) -> int:
        """Rows at once: ``chunk_size``, or what fits the memory; the first one alone, whose memory is measured."""
        if self.chunk_size is not None:
            return self.chunk_size
        if not self._row_bytes:
            return 1
        if self.recomputed:  # the layers run again once for each chunk
            return max(1, int(min(ROWS_RECOMPUTED, available_bytes(self.y.device) / 4 / self._row_bytes)))
        return max(1, min(MOST_ROWS, chunk_budget(self.y.device) // self._row_bytes))

    def fewer(self, size: int) -> None:
        """Memory ran out with so many at once."""
        self.chunk_size = size // 2
        self.notes.append(f"Memory ran out with {size} backward rows at once; {size // 2} were taken instead.")
        if self.y.is_cuda:
            torch.cuda.empty_cache()

    def squared_norms(
        self, cotangents: Float[Tensor, "k *n d_model"], retain_graph: bool = False, *, of: int | Int[Tensor, "k"] = 0
    ) -> Float[Tensor, "k *layer pos"]:
        """``‖C_i J_t‖²`` for every row ``i`` and position ``t``, in float32 at least; 0 after the explained position."""
        return self._each(lambda row: row.square().sum(-1), cotangents, retain_graph, of)

    def positive_parts(
        self, cotangents: Float[Tensor, "k *n d_model"], retain_graph: bool = False, *, of: int | Int[Tensor, "k"] = 0
    ) -> Float[Tensor, "k *layer pos"]:
        """The sum of the positive numbers in every row ``C_i J_t``; else as `squared_norms`."""
        return self._each(lambda row: row.relu().sum(-1), cotangents, retain_graph, of)

    def sums(
        self, cotangents: Float[Tensor, "k *n d_model"], retain_graph: bool = False
    ) -> Float[Tensor, "k *layer pos"]:
        """The sum of the numbers in every row ``C_i J_t``; else as `squared_norms`."""
        return self._each(lambda row: row.sum(-1), cotangents, retain_graph, 0)

    def _each(
        self,
        number: Callable[[Float[Tensor, "chunk pos d_in"]], Float[Tensor, "chunk pos"]],
        cotangents: Float[Tensor, "k *n d_model"],
        retain_graph: bool,
        of: int | Int[Tensor, "k"],
    ) -> Float[Tensor, "k *layer pos"]:
        # x lives elsewhere than y where a model is spread over devices.
        chunks = [
            torch.stack([number(row).to(self.y.device) for row in rows], 1)
            for rows in self._rows(cotangents, of, retain_graph)
        ]
        values = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
        if cotangents.ndim == 2:  # rows that start at several positions: the caller knows what comes after
            last = torch.tensor(self.positions, device="cpu")[self._starts(of, len(cotangents))]
            later = torch.arange(values.shape[-1], device="cpu") > rearrange(last, "k -> k 1")
            values = values.masked_fill(rearrange(later, "k pos -> k 1 pos").to(values.device), 0)
        return values[:, 0] if values.shape[1] == 1 else values

    def _starts(self, of: int | Int[Tensor, "k"], k: int) -> Int[Tensor, "k"]:
        return of.cpu() if isinstance(of, Tensor) else torch.full((k,), of, device="cpu")

    def _placed(
        self, chunk: Float[Tensor, "chunk *starts d_model"], starts: Int[Tensor, "chunk"]
    ) -> Float[Tensor, "chunk n d_model"]:
        """Each row at the explained position where it starts, nothing at the others."""
        if chunk.ndim == 3:
            return chunk
        if len(self.y) == 1:
            return rearrange(chunk, "chunk d_model -> chunk 1 d_model")
        placed = chunk.new_zeros(len(chunk), *self.y.shape)
        placed[torch.arange(len(chunk), device="cpu"), starts] = chunk
        return placed

    def _unscaled_rows(
        self, chunk: Float[Tensor, "chunk n d_model"], keep: bool
    ) -> list[Float[Tensor, "chunk 1 pos ..."]]:
        if len(chunk) > 1 and self._batched is not False:
            try:
                # The first time the graph is kept, for the row-by-row way if this one fails.
                rows = self._grad(chunk, keep or self._batched is None, is_grads_batched=True)
                self._batched = True
                return rows
            except RuntimeError as error:
                if self._batched or is_out_of_memory(error):
                    raise
                self._batched = False
                reason = str(error).partition("\n")[0][:200]
                self.notes.append(
                    f"Backward rows were computed one by one, which is slow: in batches they failed ({reason})."
                )
        # One row needs no vmap, which costs more than it saves.
        single = [self._grad(v, keep or i + 1 < len(chunk)) for i, v in enumerate(chunk)]
        return [torch.stack(rows) for rows in zip(*single, strict=True)]

    def _grad(
        self, cotangents: Float[Tensor, "*chunk n d_model"], keep: bool, **how: bool
    ) -> list[Float[Tensor, "*rows"]]:
        rows = torch.autograd.grad(self.y, self.xs, cotangents, retain_graph=keep, allow_unused=True, **how)
        if all(row is None for row in rows):
            raise InputError(
                "The prediction does not depend on the hook point: a hook between them replaces everything."
            )
        chunk = cotangents.shape[:-2]
        return [x.new_zeros(*chunk, *x.shape) if row is None else row for row, x in zip(rows, self.xs, strict=True)]
