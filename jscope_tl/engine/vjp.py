"""Vector-Jacobian products: rows of ``C J`` from ``y`` to every position of the hook points, chunk by chunk.

The engine does not depend on scopes or scores. One backward pass gives the row of all positions at once. Rows are yielded chunk by
chunk, so that memory does not grow with ``d_model² x pos``. Rows of one chunk may start at different explained positions.
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
"""Maximum number of rows in one chunk."""
ROWS_RECOMPUTED = 8
"""Maximum number of rows in one chunk if layers are recomputed."""


@dataclass
class Backward:
    """The backward passes through one forward pass: they run in chunks and are counted, and the last one frees the graph.

    The argument ``of`` is the number of the explained position at which a row starts: one number for all rows, or one for each.
    Cotangents ``[k, n, d_model]`` start at all explained positions together. With several hook points, rows and squared norms have an
    axis ``layer`` for them; one backward pass serves all hook points.

    Attributes:
        xs: the variables of the rows, ``[1, pos, d_in]`` for each hook point (with any further axes if rows are captured).
        y: the final hidden state at the ``n`` explained ``positions``, ``[n, d_model]``.
        chunk_size: the number of rows at once; None: as many as fit into memory, estimated from the first row.
        progress: show a bar always (True), never (False), or if it takes more than a second (None).
        arrange: a function from the rows of every hook point (or layer) to those of every row of a map; None: unchanged.
        capture: a function that is called with the rows of every chunk, one tensor for each hook point.
        matmul_precision: see `jscope_tl.engine.precision`; the ``rounding`` error that it causes is measured on the first row.
        passes: the counter of passes.
        n_prompts: the number of prompts in the batch; a row that starts at all of them counts once for each.
        recomputed: the size in bytes of the graphs of layers that run again in each backward pass.
        bar: one progress bar for all rows; see `Bar.expect`.
        notes: notes for the result's warnings.
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
    _row_bytes: int = 0  # memory of one row, measured
    _proven: int = 0  # largest number of rows at once that has succeeded
    _batched: bool | None = None  # whether this model's backward pass can be batched; None: not tried yet

    def elsewhere(
        self, xs: Sequence[Float[Tensor, "1 pos ..."]], y: Float[Tensor, "n d_model"], positions: Sequence[int]
    ) -> "Backward":
        """The backward passes through another forward pass, with the same settings and counters, and without a bar."""
        return Backward(
            xs, y, positions, self.chunk_size, False,
            matmul_precision=self.matmul_precision, passes=self.passes, n_prompts=len(positions), rounding=self.rounding,
        )  # fmt: skip

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of rows and squared norms: float32, or float64 for float64 models."""
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
            # A chunk that may run out of memory keeps the graph for another attempt.
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
        """One chunk of rows; if more follow, the memory of a row is measured on the first."""
        scale = power_of_two(chunk)
        placed = self._placed((chunk / beside(scale, chunk)).to(self.y.dtype), starts)
        measured = not keep or self._row_bytes or self.chunk_size is not None
        with nullcontext() if measured else LiveBytes() as meter, matmul_precision(self.matmul_precision):
            found = self._unscaled_rows(placed, keep)
        if meter is not None:
            self._row_bytes = max(1, meter.peak // len(chunk))
        return [rows[:, 0].to(self.dtype) * beside(scale, rows[:, 0]) for rows in found]

    def _state_rounding(self, row: Float[Tensor, "1 *n d_model"], start: Int[Tensor, "1"]) -> None:
        """Compute the first row in full precision too, and note its relative difference from the faster one."""
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
        """Count the rows; a row that starts at several prompts of a batch counts once for each."""
        self.passes.n_backward += n_rows * (self.n_prompts if cotangents.ndim == 3 else 1)

    def rows_at_once(self) -> int:
        """The number of rows at once: ``chunk_size``, or as many as fit into memory; 1 for the first row, whose memory is measured."""
        if self.chunk_size is not None:
            return self.chunk_size
        if not self._row_bytes:
            return 1
        if self.recomputed:  # the layers run again once for each chunk
            return max(1, int(min(ROWS_RECOMPUTED, available_bytes(self.y.device) / 4 / self._row_bytes)))
        return max(1, min(MOST_ROWS, chunk_budget(self.y.device) // self._row_bytes))

    def fewer(self, size: int) -> None:
        """Reduce the number of rows at once, after memory ran out with ``size`` rows."""
        self.chunk_size = size // 2
        self.notes.append(
            f"Memory ran out with {size} backward rows at once; {size // 2} were computed at once instead."
        )
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
        """The sum of the positive entries of every row ``C_i J_t``, with the arguments of `squared_norms`."""
        return self._each(lambda row: row.relu().sum(-1), cotangents, retain_graph, of)

    def sums(
        self, cotangents: Float[Tensor, "k *n d_model"], retain_graph: bool = False
    ) -> Float[Tensor, "k *layer pos"]:
        """The sum of the entries of every row ``C_i J_t``, with the arguments of `squared_norms`."""
        return self._each(lambda row: row.sum(-1), cotangents, retain_graph, 0)

    def _each(
        self,
        number: Callable[[Float[Tensor, "chunk pos d_in"]], Float[Tensor, "chunk pos"]],
        cotangents: Float[Tensor, "k *n d_model"],
        retain_graph: bool,
        of: int | Int[Tensor, "k"],
    ) -> Float[Tensor, "k *layer pos"]:
        # x and y are on different devices if the model is distributed over several.
        chunks = [
            torch.stack([number(row).to(self.y.device) for row in rows], 1)
            for rows in self._rows(cotangents, of, retain_graph)
        ]
        values = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
        if cotangents.ndim == 2:  # for rows that start at several positions, the caller masks later ones
            last = torch.tensor(self.positions, device="cpu")[self._starts(of, len(cotangents))]
            later = torch.arange(values.shape[-1], device="cpu") > rearrange(last, "k -> k 1")
            values = values.masked_fill(rearrange(later, "k pos -> k 1 pos").to(values.device), 0)
        return values[:, 0] if values.shape[1] == 1 else values

    def _starts(self, of: int | Int[Tensor, "k"], k: int) -> Int[Tensor, "k"]:
        return of.cpu() if isinstance(of, Tensor) else torch.full((k,), of, device="cpu")

    def _placed(
        self, chunk: Float[Tensor, "chunk *starts d_model"], starts: Int[Tensor, "chunk"]
    ) -> Float[Tensor, "chunk n d_model"]:
        """Each row at the explained position where it starts, and 0 at the others."""
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
                # The graph is kept the first time, to compute row by row if batching fails.
                rows = self._grad(chunk, keep or self._batched is None, is_grads_batched=True)
                self._batched = True
                return rows
            except RuntimeError as error:
                if self._batched or is_out_of_memory(error):
                    raise
                self._batched = False
                reason = str(error).partition("\n")[0][:200]
                self.notes.append(
                    f"Backward rows were computed one by one, which is slow, because batches failed ({reason})."
                )
        # One row needs no vmap, which would only add overhead.
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
