"""Forward passes of a model whose hooks, precision and thread may be shared with the user; all are restored afterwards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.model.hooks import hooked, on_this_thread
from jscope_tl.model.turns import Turns
from jscope_tl.model.view import ModelView

ONE_AT_A_TIME = Turns()
"""Lock for forward passes: hooks and parameter flags belong to the model, which threads share."""


@dataclass
class Passes:
    """Counts of the passes through a model; each prompt of a batch counts as one pass."""

    n_forward: int = 0
    n_backward: int = 0

    def each(self, n_prompts: int) -> "Passes":
        """The passes of one prompt, if ``n_prompts`` were run in one batch."""
        return Passes(self.n_forward // n_prompts, self.n_backward // n_prompts)


def logits_of(
    view: ModelView, tokens: Int[Tensor, "batch pos"], passes: Passes, how: Mapping[str, Any] | None = None
) -> Float[Tensor, "rows seen d_vocab"]:
    """One forward pass with the hooks that are active now; returns the logits after hooks at the unembedding."""
    passes.n_forward += len(tokens)
    return view.model(tokens, return_type="logits", **(how or {}))


Ends = Callable[
    [Int[Tensor, "batch pos"], Passes], tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch d_vocab"]]
]
"""A function from a batch of prompts to their ``y`` and logits at one position."""


@contextmanager
def ends_at(view: ModelView, hooks: Sequence[Any], position: int) -> Iterator[Ends]:
    """Provide a function that runs one forward pass and returns ``y`` and the logits at ``position``, with the active hooks.

    Other positions are not unembedded, which would need a ``[batch, pos, d_vocab]`` tensor, unless hooks may use them.
    """
    with ends_along(view, hooks, slice(position, position + 1 or None)) as along:

        def ends(tokens: Int[Tensor, "batch pos"], passes: Passes) -> tuple[Tensor, Tensor]:
            y, logits = along(tokens, passes)
            return y[:, 0], logits[:, 0]

        yield ends


@contextmanager
def ends_along(view: ModelView, hooks: Sequence[Any], where: slice) -> Iterator[Callable[..., tuple[Tensor, Tensor]]]:
    """`ends_at` for several positions, ``[batch, some, d_model]`` and ``[batch, some, d_vocab]``."""
    narrow = not view.unembedding_is_hooked(hooks)
    kept: list[Tensor] = []

    def narrowed(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        kept[:] = [args[0][:, where]]
        # TransformerLens 2 calls view() on it, which needs contiguous memory.
        return (args[0][:, where].contiguous(), *args[1:]) if narrow else None

    def ends(tokens: Int[Tensor, "batch pos"], passes: Passes) -> tuple[Tensor, Tensor]:
        logits = logits_of(view, tokens, passes)
        return kept.pop(), logits if narrow else logits[:, where]

    handle = view.model.unembed.register_forward_pre_hook(on_this_thread(narrowed))
    try:
        yield ends
    finally:
        handle.remove()


@contextmanager
def undisturbed(view: ModelView, hooks: Sequence[Any], own: Sequence[Any] = ()) -> Iterator[None]:
    """Context of runs without gradients: the model's own dtype, one thread at a time, the user's ``hooks`` and our ``own``."""
    view.check_hook_names(hooks)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        full_precision(view),
        ONE_AT_A_TIME,
        hooked(view, hooks, own),
    ):
        yield


def captured(
    view: ModelView, tokens: Int[Tensor, "batch pos"], points: Sequence[str], hooks: Sequence[Any], passes: Passes
) -> dict[str, Float[Tensor, "batch *rest"]]:
    """The activations at some hook points in one run without gradients, after the user's hooks at these points."""
    found: dict[str, Tensor] = {}

    def capture(name: str, activation: Float[Tensor, "batch *rest"], hook: Any) -> None:
        found[name] = activation.detach()

    with undisturbed(view, hooks, [(name, partial(capture, name)) for name in points]):
        logits_of(view, tokens, passes)
    return found


@contextmanager
def full_precision(view: ModelView) -> Iterator[None]:
    """Compute in the model's own dtype, even inside the user's ``torch.autocast``."""
    with ExitStack() as stack:
        for device in {"cpu", view.input_device.type} & {"cpu", "cuda"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
