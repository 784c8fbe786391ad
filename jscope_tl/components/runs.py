"""Runs of a prompt with one component changed in each: whole ones that are measured, and a few blocks of them."""

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
"""Of each prompt what tells whether an unchanged one came out as it should, and what is looked for."""
Run: TypeAlias = Callable[[int, Sequence[int | None]], Checked]
"""From a block and some of its components to as many prompts, each with one of them changed, or none (None)."""
Expected: TypeAlias = Callable[[int], tuple[Float[Tensor, "*end"], Float[Tensor, "*found"]]]
"""From a block to how the unchanged prompt comes out there."""


@dataclass(frozen=True)
class Unchanged:
    """What the prompt ends in as it is, at the explained position, and its residual stream behind each block, by hook point."""

    y: Float[Tensor, "d_model"]
    logits: Float[Tensor, "d_vocab"]
    streams: dict[str, Float[Tensor, "pos d_model"]]


@dataclass
class ComponentRuns:
    """Runs without gradients, counted in forward passes; one through some of the blocks counts as that share of one.

    Attributes:
        sites: the components.
        tokens, position: the prompt and the explained position.
        hooks: the user's; where any are active, whole prompts run one by one.
    """

    view: ModelView
    sites: Sites
    tokens: Int[Tensor, "pos"]
    position: int
    hooks: Sequence[Any]
    n_forward: float = 0.0
    _blocks: list[Any] = field(default_factory=list)
    _unchanged: "Unchanged | None" = None
    _checked: tuple[int, int] = (0, 0)  # components whose batches have an unchanged prompt too

    @property
    def n_blocks(self) -> int:
        """Of the model."""
        return int(self.view.cfg.n_layers)

    def is_hooked(self) -> bool:
        """Whether hooks of the user's may count on whole runs."""
        with ONE_AT_A_TIME:  # the hooks of another thread's run are gone by then
            return self.view.is_hooked(self.hooks)

    def effects(self, cells: Sequence[int], effect: Effect, progress: bool | None) -> Float[Tensor, "cells"]:
        """What changing each of the components does."""

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
        """How the residual stream changes behind the ``n``-th block, counted from that of each component, which is the first.

        With each the size of the largest change up to the explained position, as a fraction of what is there.
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
        """Whether the unchanged prompt ended in this final hidden state."""
        there = self._unchanged
        return there is None or bool((there.y - y).norm() <= torch.finfo(y.dtype).eps ** 0.5 * y.norm())

    def end(self, cell: int, n: int) -> int:
        """The ``n``-th block from that of a component on, or the last one."""
        return self._end(self.sites.block(cell), n)

    def _end(self, block: int, n: int) -> int:
        return min(block + n, self.n_blocks) - 1

    def _point(self, block: int, n: int) -> str:
        return f"blocks.{self._end(block, n)}.hook_resid_post"

    @contextmanager
    def _ready(self) -> Iterator[tuple[Ends, "Unchanged"]]:
        """The model is free for runs, and the unchanged prompt was run once."""
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
        """Less what an unchanged prompt has, by the first of the ways that works on this model: from the changed block on, several
        prompts side by side, or one whole prompt after the other."""
        at_once = self.view.prompts_at_once(len(self.tokens), self.hooks)
        for size, some in [] if self.is_hooked() else [(at_once, n), (at_once, None)]:
            with suppress(Exception):  # a model that takes one prompt only, or whose blocks share more than the stream
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
        """Side by side, through ``n`` blocks from the changed one on, or all; an unchanged prompt is in the first batch and the last."""
        replayed = [] if n is None else [i for i in range(self.n_blocks) if not block <= i < block + n]
        check, (there, base) = bool({*self._checked} & {*cells}), expected(block)
        with blocks_replayed(self.view, self._blocks, replayed, len(cells) + check):
            checks, values = run(block, [*cells, None] if check else cells)
        self.n_forward += (1 - len(replayed) / self.n_blocks) * (len(cells) + check)
        if check and not (checks[-1] - there).norm() <= torch.finfo(checks.dtype).eps ** 0.5 * there.norm():
            raise RuntimeError("An unchanged prompt ends elsewhere in batches.")
        return (values[: len(cells)] - base).to(self.tokens.device)  # blocks may be on several

    def _one(self, run: Run, block: int, cells: Sequence[int]) -> Float[Tensor, "cells *found"]:
        """A prompt by itself, and the unchanged one, which a hook of the user's may have made another."""
        self.n_forward += len(cells) + 1
        return (torch.cat([run(block, [cell])[1] for cell in cells]) - run(block, [None])[1]).to(self.tokens.device)


def _of_part(
    batch: Callable[[int, Sequence[int]], Tensor], block: int, cells: Sequence[int], part: slice
) -> Float[Tensor, "cells *found"]:
    return batch(block, cells[part])
