"""Runs of a prompt with one component changed in each: whole runs for measuring, and runs of a few blocks for refining."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.components.sites import Sites
from jscope_tl.engine.batches import in_batches
from jscope_tl.engine.progress import progress_bar
from jscope_tl.model.hooks import hooked
from jscope_tl.model.replay import blocks_replayed, recorded_blocks
from jscope_tl.model.running import ONE_AT_A_TIME, Ends, Passes, ends_at, undisturbed
from jscope_tl.model.view import ModelView
from jscope_tl.scopes.base import Effect

Checked: TypeAlias = tuple[Float[Tensor, "batch *end"], Float[Tensor, "batch *found"]]
"""For each prompt a state that is compared with that of an unchanged run, as a check of the batching, and the values of interest."""
Run: TypeAlias = Callable[[int, Sequence[int | None]], Checked]
"""A function from a block and some of its components to the results of as many prompts, each with one component changed (None: with none)."""
Expected: TypeAlias = Callable[[int], tuple[Float[Tensor, "*end"], Float[Tensor, "*found"]]]
"""A function from a block to the state and the values of the unchanged prompt."""


@dataclass(frozen=True)
class Unchanged:
    """The unchanged prompt's final hidden state and logits at the explained position, and its residual stream after each block, by hook point."""

    y: Float[Tensor, "d_model"]
    logits: Float[Tensor, "d_vocab"]
    streams: dict[str, Float[Tensor, "pos d_model"]]


@dataclass
class ComponentRuns:
    """Runs without gradients, counted in forward passes; a run of some of the blocks counts as the corresponding fraction.

    Attributes:
        sites: the components.
        tokens, position: the prompt, and the explained position.
        hooks: the user's hooks; if any are active, whole prompts run one at a time.
    """

    view: ModelView
    sites: Sites
    tokens: Int[Tensor, "pos"]
    position: int
    hooks: Sequence[Any]
    n_forward: float = 0.0
    _blocks: list[Any] = field(default_factory=list)
    _unchanged: "Unchanged | None" = None
    _checked: tuple[int, int] = (0, 0)  # components whose batches also have an unchanged prompt

    @property
    def n_blocks(self) -> int:
        """The number of blocks of the model."""
        return int(self.view.cfg.n_layers)

    def is_hooked(self) -> bool:
        """Whether the user's hooks are active, which may need whole runs."""
        with ONE_AT_A_TIME:  # waits until the hooks of another thread's run are removed
            return self.view.is_hooked(self.hooks)

    def effects(self, cells: Sequence[int], effect: Effect, progress: bool | None) -> Float[Tensor, "cells"]:
        """The effect of changing each of the components."""

        def run(ends: Ends, block: int, part: Sequence[int | None]) -> Checked:
            with self.sites.changed(self.view, part):
                y, logits = ends(self._prompts(len(part)), Passes())
            return y, torch.stack([effect(*one).double().cpu() for one in zip(y, logits, strict=True)])

        with self._ready() as (ends, unchanged):
            base = unchanged.y, effect(unchanged.y, unchanged.logits).double().cpu()
            return self._swept(cells, self.n_blocks, partial(run, ends), lambda block: base, "changed runs", progress)

    def streams(
        self, cells: Sequence[int], n: int, progress: bool | None
    ) -> tuple[Float[Tensor, "cells pos d_model"], Float[Tensor, "cells"]]:
        """The change of the residual stream after ``n`` blocks, the first of which is the block of the component.

        For each component also the largest ratio of the norm of the change to the norm of the stream, over positions up to the explained one.
        """

        def run(ends: Ends, block: int, part: Sequence[int | None]) -> Checked:
            kept: list[Tensor] = []

            def keep(activation: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
                kept[:] = [activation.detach()]

            with self.sites.changed(self.view, part), hooked(self.view, [], [(self._point(block, n), keep)]):
                ends(self._prompts(len(part)), Passes())
            return kept[0], kept[0]

        with self._ready() as (ends, unchanged):

            def expected(block: int) -> tuple[Tensor, Tensor]:
                return (unchanged.streams[self._point(block, n)],) * 2

            changes = self._swept(cells, n, partial(run, ends), expected, "refined effects", progress)
        there = torch.stack([expected(self.sites.block(cell))[0].to(changes) for cell in cells])
        sizes = changes.norm(dim=-1) / there.norm(dim=-1).clamp_min(torch.finfo(there.dtype).tiny)
        return changes, sizes[:, : self.position + 1].amax(1)

    def ends_like(self, y: Float[Tensor, "d_model"]) -> bool:
        """Whether this is the final hidden state of the unchanged prompt."""
        there = self._unchanged
        return there is None or bool((there.y - y).norm() <= torch.finfo(y.dtype).eps ** 0.5 * y.norm())

    def end(self, cell: int, n: int) -> int:
        """The last of the ``n`` blocks that start with the block of a component, or the last block of the model."""
        return self._end(self.sites.block(cell), n)

    def _end(self, block: int, n: int) -> int:
        return min(block + n, self.n_blocks) - 1

    def _point(self, block: int, n: int) -> str:
        return f"blocks.{self._end(block, n)}.hook_resid_post"

    @contextmanager
    def _ready(self) -> Iterator[tuple[Ends, "Unchanged"]]:
        """A context manager in which no other run uses the model; the unchanged prompt runs on first use."""
        with undisturbed(self.view, self.hooks), ends_at(self.view, self.hooks, self.position) as ends:
            self._unchanged = self._unchanged or self._run_unchanged(ends)
            yield ends, self._unchanged

    def _run_unchanged(self, ends: Ends) -> "Unchanged":
        streams: dict[str, Tensor] = {}

        def keep(name: str, activation: Float[Tensor, "1 pos d_model"], hook: Any) -> None:
            streams[name] = activation.detach()[0].clone()

        names = [f"blocks.{block}.hook_resid_post" for block in range(self.n_blocks)]
        own = [(name, partial(keep, name)) for name in names if name in self.view.points]
        with hooked(self.view, [], own), recorded_blocks(self.view) as self._blocks:
            (y,), (logits,) = ends(self._prompts(1), Passes())
        self.n_forward += 1
        return Unchanged(y, logits, streams)

    def _prompts(self, n: int) -> Int[Tensor, "batch pos"]:
        return repeat(self.tokens, "pos -> batch pos", batch=n)

    def _swept(
        self, cells: Sequence[int], n: int, run: Run, expected: Expected, what: str, progress: bool | None
    ) -> Any:
        """The values minus those of an unchanged prompt, by the first method that works for this model: batches that start at the changed
        block, batches of whole runs, or whole runs one at a time."""
        at_once = self.view.prompts_at_once(len(self.tokens), self.hooks)
        for size, some in [] if self.is_hooked() else [(at_once, n), (at_once, None)]:
            with suppress(
                Exception
            ):  # a model that accepts one prompt only, or whose blocks share more than the residual stream
                return self._sweep(cells, partial(self._batch, run, expected, some), size, what, progress)
        return self._sweep(cells, partial(self._one, run), 1, what, progress)

    def _sweep(
        self,
        cells: Sequence[int],
        batch: Callable[[int, Sequence[int]], Tensor],
        size: int,
        what: str,
        progress: bool | None,
    ) -> Float[Tensor, "cells *found"]:
        found: list[Tensor] = []
        order = sorted(cells, key=self.sites.block)
        self._checked = order[0], order[-1]
        with progress_bar(progress, what, "component", total=len(cells)) as bar:
            for block, group in groupby(order, key=self.sites.block):
                some = list(group)
                for part in in_batches(partial(_of_part, batch, block, some), len(some), size):
                    found += part
                    bar.update(len(part))
        by_cell = dict(zip(order, found, strict=True))
        return torch.stack([by_cell[cell] for cell in cells])

    def _batch(
        self, run: Run, expected: Expected, n: int | None, block: int, cells: Sequence[int]
    ) -> Float[Tensor, "cells *found"]:
        """A batch through ``n`` blocks from the changed one on (None: all blocks). The first and the last batch have an unchanged prompt too."""
        replayed = [] if n is None else [i for i in range(self.n_blocks) if not block <= i < block + n]
        check, (there, base) = bool({*self._checked} & {*cells}), expected(block)
        with blocks_replayed(self.view, self._blocks, replayed, len(cells) + check):
            checks, values = run(block, [*cells, None] if check else cells)
        self.n_forward += (1 - len(replayed) / self.n_blocks) * (len(cells) + check)
        if check and not (checks[-1] - there).norm() <= torch.finfo(checks.dtype).eps ** 0.5 * there.norm():
            raise RuntimeError("An unchanged prompt gives another result in a batch.")
        return (values[: len(cells)] - base).to(self.tokens.device)  # blocks may be on several devices

    def _one(self, run: Run, block: int, cells: Sequence[int]) -> Float[Tensor, "cells *found"]:
        """One prompt at a time, and the unchanged prompt again, because a hook of the user may keep state between runs."""
        self.n_forward += len(cells) + 1
        return (torch.cat([run(block, [cell])[1] for cell in cells]) - run(block, [None])[1]).to(self.tokens.device)


def _of_part(
    batch: Callable[[int, Sequence[int]], Tensor], block: int, cells: Sequence[int], part: slice
) -> Float[Tensor, "cells *found"]:
    return batch(block, cells[part])
