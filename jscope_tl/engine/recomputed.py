"""Layers that keep nothing but their input for the backward pass, and run again in it, where memory asks for it."""

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
"""Tokens from which on the graph of the first layer is measured."""
SHARE = 0.5
"""Of the memory that is there, which the graph of all layers may take."""


@dataclass
class Recomputed:
    """What was decided in a forward pass.

    Attributes:
        saved: bytes of the graphs of the layers that run again in each backward pass, as far as the first layer tells; 0 where none do.
    """

    saved: float = 0.0
    frozen: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, repr=False)


@contextmanager
def recomputed(
    settings: Settings, n_tokens: int, frozen: Callable[[], AbstractContextManager[None]]
) -> Iterator[Recomputed]:
    """One forward pass, whose layers keep their graphs if there is room for them.

    Args:
        settings: ``settings.recompute`` True: no layer but the first keeps its graph; False: all do; None: as memory asks for it.
        n_tokens: of all prompts that run side by side.
        frozen: a context in which parameters ask for no gradients, as in the forward pass itself.
    """
    found, wanted = Recomputed(frozen=frozen), settings.recompute
    reason = _impossible(settings)
    if wanted and reason:
        raise InputError(
            f"recompute=True is not possible with {reason}: layers would not be the same when they run again."
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
    """What keeps layers from running again as they ran."""
    view = settings.view
    if list(settings.at) != ["hook_embed"] or settings.watched or settings.patterns:
        return "hook points inside the layers"
    if settings.rules != type(settings.rules)():
        return "gradient rules"
    return "hooks of your own" if view.is_hooked(settings.fwd_hooks) else ""


def _run(
    found: Recomputed, forward: Callable[..., Any], first: bool, n_layers: int, wanted: bool | None
) -> Callable[..., Any]:
    """A block's forward pass: the first one is measured, the others keep their graphs or run again."""

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
    """Nothing in place of a key-value cache, to which a layer that runs again would add its keys again."""
    return None if any(base.__name__ == "Cache" for base in type(argument).__mro__) else argument


class _Again:
    """As the layers first ran: nobody else changes the model, and its parameters ask for no gradients. Entered once for each row."""

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
    """True, False or None, or a refusal."""
    if recompute not in (None, True, False):
        raise InputError(f"recompute is True, False, or None (where memory asks for it); got {recompute!r}.")
    return recompute


def recompute_notes(saved: float) -> list[str]:
    """For the result's warnings."""
    if not saved:
        return []
    return [
        f"All layers but the first ran again in each backward pass, which saves about {saved / 1e9:.1f} GB and takes longer; scores are the "
        "same."
    ]
