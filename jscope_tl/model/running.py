"""Running a model whose hooks, precision and thread may be shared with the user, and leaving all of them as they were."""

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
"""Hooks and parameter flags belong to the model, which threads share: forward passes take turns."""


@dataclass
class Passes:
    """Passes through a model, counted where they happen; prompts that run side by side count one each."""

    n_forward: int = 0
    n_backward: int = 0

    def each(self, n_prompts: int) -> "Passes":
        """The passes of one prompt, where ``n_prompts`` alike ran side by side."""
        return Passes(self.n_forward // n_prompts, self.n_backward // n_prompts)


def logits_of(
    view: ModelView, tokens: Int[Tensor, "batch pos"], passes: Passes, how: Mapping[str, Any] | None = None
) -> Float[Tensor, "rows seen d_vocab"]:
    """One forward pass with the hooks that are active now; the logits are those that hooks at the unembedding leave."""
    passes.n_forward += len(tokens)
    return view.model(tokens, return_type="logits", **(how or {}))


Ends = Callable[
    [Int[Tensor, "batch pos"], Passes], tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch d_vocab"]]
]
"""From prompts side by side to the ``y`` and the logits at one position of each."""


@contextmanager
def ends_at(view: ModelView, hooks: Sequence[Any], position: int) -> Iterator[Ends]:
    """Inside, one forward pass gives what prompts end in at ``position``, with the hooks that are active then.

    Other positions are not unembedded, which would cost a ``[batch, pos, d_vocab]`` tensor, unless hooks may count on them.
    """
    with ends_along(view, hooks, slice(position, position + 1 or None)) as along:

        def ends(tokens: Int[Tensor, "batch pos"], passes: Passes) -> tuple[Tensor, Tensor]:
            y, logits = along(tokens, passes)
            return y[:, 0], logits[:, 0]

        yield ends


@contextmanager
def ends_along(view: ModelView, hooks: Sequence[Any], where: slice) -> Iterator[Callable[..., tuple[Tensor, Tensor]]]:
    """`ends_at` of several positions, ``[batch, some, d_model]`` and ``[batch, some, d_vocab]``."""
    narrow = not view.unembedding_is_hooked(hooks)
    kept: list[Tensor] = []

    def narrowed(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        kept[:] = [args[0][:, where]]
        # TransformerLens 2 views it as rows, which a part of several prompts is not where it lies.
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
    """For runs without gradients: the model's own dtype, one thread at a time, with the user's ``hooks`` and our ``own``."""
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
    """The activations at some hook points in one run without gradients, as the user's hooks leave them there."""
    found: dict[str, Tensor] = {}

    def capture(name: str, activation: Float[Tensor, "batch *rest"], hook: Any) -> None:
        found[name] = activation.detach()

    with undisturbed(view, hooks, [(name, partial(capture, name)) for name in points]):
        logits_of(view, tokens, passes)
    return found


@contextmanager
def full_precision(view: ModelView) -> Iterator[None]:
    """The model's own dtype, also inside the user's ``torch.autocast``."""
    with ExitStack() as stack:
        for device in {"cpu", view.input_device.type} & {"cpu", "cuda"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
