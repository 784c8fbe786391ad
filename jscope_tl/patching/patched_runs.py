"""Patched runs: one forward pass for each (hook point, position), by `transformer_lens.patching` where it can."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.forward import undisturbed
from jscope_tl.model.view import ModelView
from jscope_tl.patching.pairs import Pair
from jscope_tl.engine.progress import bar
from jscope_tl.scopes.base import Effect

Cells = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Patches:
    """The base run of a pair with activations of the source run, and what that does to the prediction at ``position``."""

    view: ModelView
    pair: Pair
    source: dict[str, Float[Tensor, "1 pos d_in"]]
    position: int
    effect: Effect
    fwd_hooks: list[Any]
    progress: bool | None

    @contextmanager
    def measuring(self) -> Iterator["Sweep"]:
        """One base run, against which every patched run is then measured."""
        seen: list[Tensor] = []

        def watch(module: Any, args: tuple[Tensor, ...]) -> None:
            seen[:] = [args[0][0, self.position]]

        def measure(logits: Tensor) -> Float[Tensor, ""]:
            return self.effect(seen[0], logits[0, self.position]).double().cpu()

        with undisturbed(self.view, self.fwd_hooks):
            handle = self.view.model.unembed.register_forward_pre_hook(watch)
            try:
                # In the setting of the patched runs, so that a patch that changes nothing has no effect at all.
                unpatched = measure(self.view.model(self.pair.base.unsqueeze(0), return_type="logits"))
                yield Sweep(self, lambda logits: measure(logits) - unpatched)
            finally:
                handle.remove()

    def run(self, places: Sequence[tuple[str, int]]) -> Float[Tensor, "1 pos d_vocab"]:
        """Logits of the base run with the source's activations at these (hook point, position) places."""
        hooks = [(name, partial(put, self.source[name], t)) for name, t in places]
        return self.view.model.run_with_hooks(self.pair.base.unsqueeze(0), fwd_hooks=hooks, return_type="logits")


@dataclass(frozen=True)
class Sweep:
    """Patched runs and their ``metric``: how far the run that has just given its logits is from the base run."""

    patches: Patches
    metric: Callable[[Tensor], Float[Tensor, ""]]

    def each(self, cells: Cells) -> Float[Tensor, "cells"]:
        """The effect of patching each ``(layer, position)`` cell by itself."""
        points = list(self.patches.source)
        name = _activation_name(self.patches.view, points)
        if name is not None:
            return self._by_transformer_lens(cells, name)
        runs = (self.patches.run([(points[layer], t)]) for layer, t in _watched(cells, self.patches.progress))
        return torch.stack([self.metric(logits) for logits in runs])

    def together(self, cells: Cells) -> Float[Tensor, "layer"]:
        """The effect of all chosen cells of a hook point in one run."""
        places = [[(name, t) for at, t in cells if at == layer] for layer, name in enumerate(self.patches.source)]
        return torch.stack(
            [self.metric(self.patches.run(of_one)) for of_one in _watched(places, self.patches.progress)]
        )

    def whole(self) -> float:
        """The effect of the whole source run."""
        return float(self.metric(self.patches.view.model(self.patches.pair.source.unsqueeze(0), return_type="logits")))

    def _by_transformer_lens(self, cells: Cells, name: str) -> Float[Tensor, "cells"]:
        import pandas as pd
        from transformer_lens import patching

        values: list[Tensor] = []  # in double precision, which transformer_lens would round

        def keep(logits: Tensor) -> Tensor:
            values.append(self.metric(logits))
            return values[-1]

        sweep: Any = patching.generic_activation_patch
        index = pd.DataFrame(cells, columns=["layer", "pos"])
        patches = self.patches
        with _own_bar(patching, patches.progress):
            sweep(
                patches.view.model,
                patches.pair.base.unsqueeze(0),
                patches.source,
                keep,
                _put_cell,
                name,
                index_df=index,
            )
        return torch.stack(values)


def put(source: Tensor, t: int, activation: Tensor, hook: Any) -> Tensor:
    """A hook that takes one position from the source run."""
    patched = activation.clone()
    patched[:, t] = source[:, t].to(patched)
    return patched


def _put_cell(activation: Tensor, index: Sequence[int], source: Tensor) -> Tensor:
    """`put` as transformer_lens' sweep calls it."""
    return put(source, index[1], activation, None)


def _activation_name(view: ModelView, points: list[str]) -> str | None:
    """What `transformer_lens.patching` calls these points, if they are one of each layer."""
    name = points[0].rpartition("hook_")[2]
    every = [f"blocks.{layer}.hook_{name}" for layer in range(int(view.cfg.n_layers))]
    return name if points == every else None


@contextmanager
def _own_bar(patching: Any, progress: bool | None) -> Iterator[None]:
    """transformer_lens' sweep always shows a bar; ours can be switched off."""
    theirs = patching.tqdm
    patching.tqdm = partial(_watched, progress=progress)
    try:
        yield
    finally:
        patching.tqdm = theirs


_watched = partial(bar, desc="patched runs", unit="run")
