"""Patched runs: what a prompt predicts with activations of another one at some places, and which runs can be spared.

A patch that puts in what is there already has no effect. Where no hook of the user's may count on one whole run, prompts run side by
side, and only from the first patched block on: before it, they are the base run. Unpatched prompts among them tell whether this
model allows it.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jscope_tl.engine.batches import in_batches
from jscope_tl.engine.progress import progress_bar
from jscope_tl.model.hooks import hooked
from jscope_tl.model.pairs import Pair
from jscope_tl.model.replay import block_of, blocks_replayed, recorded_blocks
from jscope_tl.model.running import ONE_AT_A_TIME, Ends, Passes, ends_at, undisturbed
from jscope_tl.model.view import ModelView
from jscope_tl.scopes.base import Effect

Patch = tuple[int, tuple[int, ...]]
"""A hook point by its number, and the positions that are taken from the source run there."""
Ended = tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch"]]
"""The ``y`` of runs, and how far their predictions are from the base run's."""


@dataclass(frozen=True)
class Patched:
    """What patches do.

    Attributes:
        effects: how far each cell's patch moves the prediction from the base run's; 0 where it changes nothing, NaN where it was
            not asked for.
        ran: the cells that were run.
        joint: the same of all cells of a hook point that were asked for.
        total: the same of the whole source prompt, run as it is.
        n_forward: forward passes; one from a later block on counts as the share of blocks that ran.
    """

    effects: Float[Tensor, "layer pos"]
    ran: Bool[Tensor, "layer pos"]
    joint: Float[Tensor, "layer"] | None
    total: float
    n_forward: float


def patched_effects(
    view: ModelView,
    pair: Pair,
    source: dict[str, Float[Tensor, "1 pos d_in"]],
    position: int,
    effect: Effect,
    fwd_hooks: Sequence[Any],
    asked: Bool[Tensor, "layer pos"],
    jointly: bool,
    progress: bool | None,
) -> Patched:
    """What the patches that are asked for do, measured by ``effect`` at the explained position, behind which none has an effect."""
    with ONE_AT_A_TIME:  # the hooks of another thread's run are gone by then
        is_hooked, at_once = view.is_hooked(fwd_hooks), view.prompts_at_once(len(pair.base), fwd_hooks)
    with undisturbed(view, fwd_hooks), ends_at(view, fwd_hooks, position) as ends:
        runs = _Runs(view, pair, source, ends, effect)
        base = runs.base()
        total = float(runs.whole(pair.source)[1] - base.value)
        ran = asked & base.differs
        ran[:, position + 1 :] = False
        cells = [(layer, (t,)) for layer, t in ran.nonzero().tolist()]
        together = [(layer, tuple(row.nonzero().flatten().tolist())) for layer, row in enumerate(ran) if row.any()]
        ways = [] if is_hooked else [(at_once, base.blocks), (at_once, None)]
        found = _effects(runs, base, [*cells, *(together if jointly else [])], ways, progress)
    effects = torch.zeros(asked.shape, dtype=torch.float64, device="cpu").masked_fill(~asked, torch.nan)
    joint = torch.zeros(len(asked), dtype=torch.float64, device="cpu")
    effects[ran] = found[: len(cells)]
    joint[ran.any(1) & jointly] = found[len(cells) :]
    return Patched(effects, ran, joint if jointly else None, total, runs.n_forward)


def put(
    source: Float[Tensor, "1 pos d_in"],
    where: Bool[Tensor, "batch pos"],
    activation: Float[Tensor, "batch pos d_in"],
    hook: Any,
) -> Float[Tensor, "batch pos d_in"]:
    """A hook that takes some positions from the source run."""
    taken = rearrange(where, "batch pos -> batch pos 1").to(activation.device)
    return torch.where(taken, source.to(activation), activation)


@dataclass(frozen=True)
class _Base:
    """The run that is patched: its ``y``, its own measure, where it differs from the source run, and what its blocks return."""

    y: Float[Tensor, "1 d_model"]
    value: Float[Tensor, "1"]
    differs: Bool[Tensor, "layer pos"]
    blocks: list[Any]


@dataclass
class _Runs:
    """Runs of the two prompts, measured and counted."""

    view: ModelView
    pair: Pair
    source: dict[str, Float[Tensor, "1 pos d_in"]]
    ends: Ends
    effect: Effect
    n_forward: float = 0.0

    def whole(self, tokens: Int[Tensor, "pos"]) -> Ended:
        """A prompt by itself, as it is."""
        return self._ended(rearrange(tokens, "pos -> 1 pos"), 1.0)

    def base(self) -> _Base:
        """The base run, compared with the source run where the patches will be."""
        differs: dict[str, Tensor] = {}

        def compare(name: str, activation: Float[Tensor, "1 pos d_in"], hook: Any) -> None:
            differs[name] = (self.source[name].to(activation) != activation)[0].any(-1).cpu()

        hooks = [(name, partial(compare, name)) for name in self.source]
        with hooked(self.view, [], hooks), recorded_blocks(self.view) as blocks:
            y, value = self.whole(self.pair.base)
        return _Base(y, value, torch.stack([differs[name] for name in self.source]), blocks)

    def patched(self, patches: Sequence[Patch], blocks: list[Any] | None) -> Ended:
        """The base prompt under each patch, side by side; from the first patched block on where ``blocks`` are given."""
        start = min(self.block(patch) for patch in patches) if blocks else 0
        replayed = blocks_replayed(self.view, blocks or [], range(start), len(patches))
        with hooked(self.view, [], self._hooks(patches)), replayed:
            rows = repeat(self.pair.base, "pos -> batch pos", batch=len(patches))
            return self._ended(rows, 1 - start / self.n_blocks)

    def block(self, patch: Patch) -> int:
        """The block that a patch is in."""
        return block_of(list(self.source)[patch[0]])

    @property
    def n_blocks(self) -> int:
        """Of the model."""
        return int(self.view.cfg.n_layers)

    def _hooks(self, patches: Sequence[Patch]) -> list[Any]:
        hooks = []
        for layer, (name, theirs) in enumerate(self.source.items()):
            where = torch.zeros(len(patches), theirs.shape[1], dtype=torch.bool, device="cpu")
            for row, (at, places) in zip(where, patches, strict=True):
                row[list(places)] = at == layer
            hooks += [(name, partial(put, theirs, where))] if where.any() else []
        return hooks

    def _ended(self, tokens: Int[Tensor, "batch pos"], share: float) -> Ended:
        self.n_forward += share * len(tokens)
        y, logits = self.ends(tokens, Passes())
        return y, torch.stack([self.effect(*one).double().cpu() for one in zip(y, logits, strict=True)])


def _effects(
    runs: _Runs,
    base: _Base,
    patches: Sequence[Patch],
    ways: Sequence[tuple[int, list[Any] | None]],
    progress: bool | None,
) -> Float[Tensor, "patches"]:
    """By the first of the ways (how many at once, and what blocks return) in which the model works; else whole runs one by one."""
    if not patches:
        return torch.zeros(0, dtype=torch.float64, device="cpu")
    for at_once, blocks in ways:
        with suppress(Exception):  # a model that takes one prompt only, or whose blocks share more than the stream
            return _side_by_side(runs, base, patches, at_once, blocks, progress)
    return _swept(runs, patches, 1, None, progress)[1] - base.value


def _side_by_side(
    runs: _Runs, base: _Base, patches: Sequence[Patch], at_once: int, blocks: list[Any] | None, progress: bool | None
) -> Float[Tensor, "patches"]:
    """In the order of the blocks, between two prompts without a patch: the first is what the others are measured against."""
    order = sorted(range(len(patches)), key=lambda i: runs.block(patches[i]))
    rows = [patches[i] for i in order]
    unpatched = [[(patch[0], ())] for patch in rows[:1] + rows[-1:]]
    y, values = _swept(runs, [*unpatched[0], *rows, *unpatched[-1]], at_once, blocks, progress)
    allowed = torch.finfo(base.y.dtype).eps ** 0.5
    if not ((y[[0, -1]] - base.y).norm(dim=-1) <= allowed * base.y.norm()).all():
        raise RuntimeError("Unpatched prompts end elsewhere in batches, or from a later block on.")
    effects = torch.empty(len(patches), dtype=torch.float64, device="cpu")
    effects[order] = values[1:-1] - values[0]
    return effects


def _swept(
    runs: _Runs, patches: Sequence[Patch], at_once: int, blocks: list[Any] | None, progress: bool | None
) -> Ended:
    """All of them, with a bar in blocks, which take the same time each."""
    n_blocks = [runs.n_blocks - (runs.block(patch) if blocks else 0) for patch in patches]

    def run(part: slice) -> Ended:
        ended = runs.patched(patches[part], blocks)
        bar.update(sum(n_blocks[part]))
        return ended

    with progress_bar(progress, "patched runs", "block", total=sum(n_blocks)) as bar:
        y, values = zip(*in_batches(run, len(patches), at_once), strict=True)
    return torch.cat(y), torch.cat(values)
