"""Recomputation of layers (activation checkpointing): to save memory, layers keep only their input and run again in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch.utils.checkpoint import checkpoint

from jscope_tl.engine.memory import available_bytes, graph_bytes
from jscope_tl.engine.run import Settings
from jscope_tl.errors import InputError
from jscope_tl.model.replay import blocks_of, replaced
from jscope_tl.model.running import ONE_AT_A_TIME

LONG = 512
"""Minimum number of tokens for which the graph of the first layer is measured."""
SHARE = 0.5
"""Share of the available memory that the graph of all layers may take."""


@dataclass
class Recomputed:
    """The decision in a forward pass.

    Attributes:
        saved: the size in bytes of the graphs that are not kept, estimated from the first layer; 0 if all layers keep their graphs.
    """

    saved: float = 0.0
    frozen: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, repr=False)


@contextmanager
def recomputed(
    settings: Settings, n_tokens: int, frozen: Callable[[], AbstractContextManager[None]]
) -> Iterator[Recomputed]:
    """One forward pass whose layers keep their graphs if there is enough memory.

    Args:
        settings: ``settings.recompute`` True: only the first layer keeps its graph; False: all layers do; None: depends on the memory.
        n_tokens: the number of tokens of all prompts of the batch.
        frozen: a context in which parameters do not require gradients, as in the forward pass itself.
    """
    found, wanted = Recomputed(frozen=frozen), settings.recompute
    reason = _impossible(settings)
    if wanted and reason:
        raise InputError(
            f"recompute=True is not possible with {reason}: layers would not give the same values when they run again."
        )
    if wanted is False or reason or (wanted is None and n_tokens < LONG):
        yield found
        return
    blocks = blocks_of(settings.view)
    with ExitStack() as stack:
        for i, block in enumerate(blocks):
            stack.enter_context(replaced(block, _run(found, block.forward, i == 0, len(blocks), wanted)))
        yield found


def _impossible(settings: Settings) -> str:
    """The reason why layers cannot be run again identically; empty if they can."""
    view = settings.view
    if list(settings.at) != ["hook_embed"] or settings.watched or settings.patterns:
        return "hook points inside the layers"
    if settings.rules != type(settings.rules)():
        return "gradient rules"
    return "hooks of your own" if view.is_hooked(settings.fwd_hooks) else ""


def _run(
    found: Recomputed, forward: Callable[..., Any], first: bool, n_layers: int, wanted: bool | None
) -> Callable[..., Any]:
    """The forward pass of a block: the first block's graph is measured, the others keep their graphs or run again."""

    def measured(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        needed = n_layers * graph_bytes(hidden)
        if wanted or needed > SHARE * available_bytes(hidden.device):
            found.saved = needed * (n_layers - 1) / n_layers
        return output

    def kept_or_not(*args: Any, **kwargs: Any) -> Any:
        if not found.saved:
            return forward(*args, **kwargs)
        args, kwargs = tuple(map(_not_kept, args)), {name: _not_kept(value) for name, value in kwargs.items()}
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), _Again(found)),
            **kwargs,
        )

    return measured if first else kept_or_not


def _not_kept(argument: Any) -> Any:
    """Remove a key-value cache from the arguments, because a layer that runs again would add its keys again."""
    return None if any(base.__name__ == "Cache" for base in type(argument).__mro__) else argument


class _Again:
    """A context with the conditions of the first run: the model is locked, and its parameters do not require gradients.

    It is entered once for each row.
    """

    def __init__(self, found: Recomputed) -> None:
        self.frozen, self.entered = found.frozen, list[ExitStack]()

    def __enter__(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(ONE_AT_A_TIME)
            stack.enter_context(self.frozen())
            self.entered.append(stack.pop_all())

    def __exit__(self, *exception: Any) -> None:
        self.entered.pop().__exit__(*exception)


def to_recompute(recompute: Any) -> bool | None:
    """``recompute`` if it is True, False or None; else an error."""
    if recompute not in (None, True, False):
        raise InputError(f"recompute is True, False, or None (only if memory is short); got {recompute!r}.")
    return recompute


def recompute_notes(saved: float) -> list[str]:
    """A note for the result's warnings if layers were recomputed."""
    if not saved:
        return []
    return [
        f"All layers but the first ran again in each backward pass, which saves about {saved / 1e9:.1f} GB and takes longer; scores are the "
        "same."
    ]
