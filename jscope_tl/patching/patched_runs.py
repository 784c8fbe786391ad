"""Patched runs: predictions of a prompt with some activations of another prompt, with as few runs as possible.

A patch whose activations are equal to those of the base run has no effect and is not run. If no hooks of the user are active (they may
need whole runs), prompts run in batches that start at the first patched block, because the blocks before it compute the same as in the
base run. Unpatched prompts in the batches check that this gives the right result on this model.
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
"""The number of a hook point, and the positions whose activations are replaced by those of the source run."""
Ended = tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch"]]
"""The final hidden states ``y`` of runs, and the values of the effect function for them."""


@dataclass(frozen=True)
class Patched:
    """The effects of patches.

    Attributes:
        effects: the effect of patching each cell, relative to the base run; 0 if the patch changes nothing, NaN if the cell was not
            requested.
        ran: the cells that were run.
        joint: the effect of patching all requested cells of a hook point together.
        total: the effect of replacing the whole prompt by the source prompt.
        n_forward: forward passes; a run that starts at a later block counts as the fraction of blocks that ran.
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
    """The effects of the ``asked`` patches, measured by ``effect`` at the explained position. Patches after that position have no effect."""
    with ONE_AT_A_TIME:  # waits until the hooks of another thread's run are removed
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
    """A hook that replaces the activations at some positions by those of the source run."""
    taken = rearrange(where, "batch pos -> batch pos 1").to(activation.device)
    return torch.where(taken, source.to(activation), activation)


@dataclass(frozen=True)
class _Base:
    """The run that is patched: its ``y``, its value, where it differs from the source run, and the outputs of its blocks."""

    y: Float[Tensor, "1 d_model"]
    value: Float[Tensor, "1"]
    differs: Bool[Tensor, "layer pos"]
    blocks: list[Any]


@dataclass
class _Runs:
    """Runs of the two prompts. They are counted in forward passes."""

    view: ModelView
    pair: Pair
    source: dict[str, Float[Tensor, "1 pos d_in"]]
    ends: Ends
    effect: Effect
    n_forward: float = 0.0

    def whole(self, tokens: Int[Tensor, "pos"]) -> Ended:
        """A run of one unpatched prompt."""
        return self._ended(rearrange(tokens, "pos -> 1 pos"), 1.0)

    def base(self) -> _Base:
        """The base run, compared with the source run at the hook points of the patches."""
        differs: dict[str, Tensor] = {}

        def compare(name: str, activation: Float[Tensor, "1 pos d_in"], hook: Any) -> None:
            differs[name] = (self.source[name].to(activation) != activation)[0].any(-1).cpu()

        hooks = [(name, partial(compare, name)) for name in self.source]
        with hooked(self.view, [], hooks), recorded_blocks(self.view) as blocks:
            y, value = self.whole(self.pair.base)
        return _Base(y, value, torch.stack([differs[name] for name in self.source]), blocks)

    def patched(self, patches: Sequence[Patch], blocks: list[Any] | None) -> Ended:
        """The base prompt with each patch, in one batch, which starts at the first patched block if ``blocks`` are given."""
        start = min(self.block(patch) for patch in patches) if blocks else 0
        replayed = blocks_replayed(self.view, blocks or [], range(start), len(patches))
        with hooked(self.view, [], self._hooks(patches)), replayed:
            rows = repeat(self.pair.base, "pos -> batch pos", batch=len(patches))
            return self._ended(rows, 1 - start / self.n_blocks)

    def block(self, patch: Patch) -> int:
        """The number of the block that is patched."""
        return block_of(list(self.source)[patch[0]])

    @property
    def n_blocks(self) -> int:
        """The number of blocks of the model."""
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
    """Effects by the first of the ``ways`` (batch size, and outputs of blocks) that works on this model; else by whole runs one at a time."""
    if not patches:
        return torch.zeros(0, dtype=torch.float64, device="cpu")
    for at_once, blocks in ways:
        with suppress(
            Exception
        ):  # a model that accepts one prompt only, or whose blocks share more than the residual stream
            return _side_by_side(runs, base, patches, at_once, blocks, progress)
    return _swept(runs, patches, 1, None, progress)[1] - base.value


def _side_by_side(
    runs: _Runs, base: _Base, patches: Sequence[Patch], at_once: int, blocks: list[Any] | None, progress: bool | None
) -> Float[Tensor, "patches"]:
    """Effects from batches in the order of the blocks, between two unpatched prompts. Effects are relative to the first of these."""
    order = sorted(range(len(patches)), key=lambda i: runs.block(patches[i]))
    rows = [patches[i] for i in order]
    unpatched = [[(patch[0], ())] for patch in rows[:1] + rows[-1:]]
    y, values = _swept(runs, [*unpatched[0], *rows, *unpatched[-1]], at_once, blocks, progress)
    allowed = torch.finfo(base.y.dtype).eps ** 0.5
    if not ((y[[0, -1]] - base.y).norm(dim=-1) <= allowed * base.y.norm()).all():
        raise RuntimeError("Unpatched prompts give another result in a batch, or when they start at a later block.")
    effects = torch.empty(len(patches), dtype=torch.float64, device="cpu")
    effects[order] = values[1:-1] - values[0]
    return effects


def _swept(
    runs: _Runs, patches: Sequence[Patch], at_once: int, blocks: list[Any] | None, progress: bool | None
) -> Ended:
    """Runs of all patches. The progress bar counts blocks, which all take the same time."""
    n_blocks = [runs.n_blocks - (runs.block(patch) if blocks else 0) for patch in patches]

    def run(part: slice) -> Ended:
        ended = runs.patched(patches[part], blocks)
        bar.update(sum(n_blocks[part]))
        return ended

    with progress_bar(progress, "patched runs", "block", total=sum(n_blocks)) as bar:
        y, values = zip(*in_batches(run, len(patches), at_once), strict=True)
    return torch.cat(y), torch.cat(values)
