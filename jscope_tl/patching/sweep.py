"""The patching sweep: one forward pass for each (hook point, position), by `transformer_lens.patching` where it can."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.model import ModelView
from jscope_tl.patching.pairs import Pair, watched_output

Effect = Callable[[Float[Tensor, "d_model"], Float[Tensor, "d_vocab"]], Float[Tensor, ""]]
"""What a run that ended in ``y`` and ``logits`` differs by from the base run: `Scope.effect`."""
Cells = Sequence[tuple[int, int]]


def sweep(
    view: ModelView,
    pair: Pair,
    source: dict[str, Float[Tensor, "1 pos d_in"]],
    cells: Cells,
    position: int,
    effect: Effect,
    fwd_hooks: list[Any],
    progress: bool | None,
) -> Float[Tensor, "cells"]:
    """The effect of patching each ``(layer, position)`` cell by itself."""
    with torch.no_grad(), view.model.hooks(fwd_hooks=fwd_hooks), watched_output(view, position) as seen:
        metric = partial(_metric, seen, position, effect)
        name = _activation_name(view, list(source))
        if name is not None:
            return _by_transformer_lens(view, pair, source, cells, metric, name, progress).double().cpu()
        points = list(source)
        runs = (patched_run(view, pair, source, [(points[layer], t)]) for layer, t in bar(cells, progress))
        return torch.stack([metric(logits).cpu() for logits in runs])


def patched_run(
    view: ModelView, pair: Pair, source: dict[str, Float[Tensor, "1 pos d_in"]], places: Sequence[tuple[str, int]]
) -> Float[Tensor, "1 pos d_vocab"]:
    """Logits of the base run with all ``(hook point, position)`` places taken from the source run."""
    hooks = [(name, partial(put, source[name], t)) for name, t in places]
    return view.model.run_with_hooks(pair.base.unsqueeze(0), fwd_hooks=hooks, return_type="logits")


def put(source: Tensor, t: int, activation: Tensor, hook: Any) -> Tensor:
    """A hook that takes one position from the source run."""
    patched = activation.clone()
    patched[:, t] = source[:, t].to(patched)
    return patched


def _metric(seen: list[Tensor], position: int, effect: Effect, logits: Tensor) -> Float[Tensor, ""]:
    y = seen[-1][0]
    seen.clear()
    return effect(y, logits[0, position]).double()


def _activation_name(view: ModelView, points: list[str]) -> str | None:
    """What `transformer_lens.patching` calls these points, if they are one of each layer."""
    name = points[0].rpartition("hook_")[2]
    every = [f"blocks.{layer}.hook_{name}" for layer in range(int(view.cfg.n_layers))]
    return name if points == every else None


def _by_transformer_lens(
    view: ModelView, pair: Pair, source: Any, cells: Cells, metric: Any, name: str, progress: bool | None
) -> Float[Tensor, "cells"]:
    import pandas as pd
    from transformer_lens import patching

    with _own_bar(patching, progress):
        return patching.generic_activation_patch(
            view.model,
            pair.base.unsqueeze(0),
            source,
            lambda logits: metric(logits).to(logits.device),
            patching.layer_pos_patch_setter,
            name,
            index_df=pd.DataFrame(cells, columns=["layer", "pos"]),
        )


@contextmanager
def _own_bar(patching: Any, progress: bool | None) -> Iterator[None]:
    """transformer_lens' sweep always shows a bar; ours can be switched off."""
    theirs = patching.tqdm
    patching.tqdm = partial(bar, progress=progress)
    try:
        yield
    finally:
        patching.tqdm = theirs


def bar(items: Any, progress: bool | None) -> Any:
    """Progress over patched runs; by default where the wait is over a second."""
    from tqdm.auto import tqdm

    delay = 0 if progress else 1
    return tqdm(items, desc="patched runs", unit="run", delay=delay, leave=False, disable=progress is False)
