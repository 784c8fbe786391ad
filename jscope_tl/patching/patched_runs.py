"""Patched runs: one forward pass for each (hook point, position)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.progress import progress_bar
from jscope_tl.model.running import Passes, logits_of, undisturbed
from jscope_tl.model.view import ModelView
from jscope_tl.patching.pairs import Pair
from jscope_tl.scopes.base import Effect

Cells = Sequence[tuple[int, int]]
Metric = Callable[[Float[Tensor, "1 seen d_vocab"]], Float[Tensor, ""]]


@dataclass(frozen=True)
class PatchedRuns:
    """Runs of a base prompt with activations of a source prompt, and how far the prediction then is from the base run's.

    Attributes:
        view, pair: the model, and the two prompts.
        source: the source run's activation at each hook point.
        metric: from the logits of the run that has just ended to how far it is from the base run.
        progress: of the bars.
        passes: where forward passes are counted.
    """

    view: ModelView
    pair: Pair
    source: dict[str, Float[Tensor, "1 pos d_in"]]
    metric: Metric
    progress: bool | None
    passes: Passes

    def each(self, cells: Cells) -> Float[Tensor, "cells"]:
        """The effect of patching each ``(layer, position)`` cell by itself."""
        points = list(self.source)
        return torch.stack([self._patched([(points[layer], t)]) for layer, t in self._bar(cells)])

    def together(self, cells: Cells) -> Float[Tensor, "layer"]:
        """The effect of all chosen cells of a hook point in one run."""
        places = [[(name, t) for at, t in cells if at == layer] for layer, name in enumerate(self.source)]
        return torch.stack([self._patched(of_one) for of_one in self._bar(places)])

    def whole(self) -> float:
        """The effect of the whole source prompt, run as it is."""
        return float(self.metric(logits_of(self.view, rearrange(self.pair.source, "pos -> 1 pos"), self.passes)))

    def _patched(self, places: Sequence[tuple[str, int]]) -> Float[Tensor, ""]:
        """The effect of the source's activations at these (hook point, position) places."""
        hooks = [(name, partial(put, self.source[name], t)) for name, t in places]
        with self.view.model.hooks(fwd_hooks=hooks):
            return self.metric(logits_of(self.view, rearrange(self.pair.base, "pos -> 1 pos"), self.passes))

    def _bar(self, items: Any) -> Any:
        return progress_bar(self.progress, "patched runs", "run", items)


@contextmanager
def patched_runs(
    view: ModelView,
    pair: Pair,
    source: dict[str, Float[Tensor, "1 pos d_in"]],
    position: int,
    effect: Effect,
    fwd_hooks: Sequence[Any],
    progress: bool | None,
) -> Iterator[PatchedRuns]:
    """One base run, against which every patched run is then measured by ``effect`` at the explained position."""
    y: list[Tensor] = []
    passes = Passes()

    def capture(module: Any, args: tuple[Tensor, ...]) -> None:
        y[:] = [args[0][0, position]]

    def measure(logits: Float[Tensor, "1 seen d_vocab"]) -> Float[Tensor, ""]:
        return effect(y[0], logits[0, position]).double().cpu()

    with undisturbed(view, fwd_hooks):
        handle = view.model.unembed.register_forward_pre_hook(capture)
        try:
            # In the setting of the patched runs, so that a patch that changes nothing has no effect at all.
            unpatched = measure(logits_of(view, rearrange(pair.base, "pos -> 1 pos"), passes))
            yield PatchedRuns(view, pair, source, lambda logits: measure(logits) - unpatched, progress, passes)
        finally:
            handle.remove()


def put(source: Float[Tensor, "1 pos d_in"], t: int, activation: Float[Tensor, "1 pos d_in"], hook: Any) -> Tensor:
    """A hook that takes one position from the source run."""
    patched = activation.clone()
    patched[:, t] = source[:, t].to(patched)
    return patched
