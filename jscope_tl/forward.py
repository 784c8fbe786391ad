"""One forward pass, cut at the hook point and at the unembedding; everything of the user's is left as it was."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jscope_tl.errors import InputError
from jscope_tl.model import ModelView
from jscope_tl.prompts import to_id
from jscope_tl.state import State

OWN_LEVEL = 1000
FwdHooks = Iterable[tuple[str | Callable[[str], bool], Callable[..., Any]]]


@contextmanager
def run(
    view: ModelView, tokens: Int[Tensor, "pos"], position: int, at: str, fwd_hooks: Iterable[Any] = ()
) -> Iterator[State]:
    """Run the model once; inside the context the `State` can be differentiated, whatever gradient mode is set outside.

    Raises:
        InputError: the hook point does not exist or does not run, the prediction does not depend on it, or activations
            are not finite.
    """
    view.hook_point(at)
    hooks = list(fwd_hooks)
    view.check_hook_names(hooks)
    with torch.inference_mode(False), torch.enable_grad():
        cuts = _Cuts(position)
        with ExitStack() as stack:
            stack.enter_context(_frozen(view.model))
            stack.enter_context(_own_hook_level(view.model))
            # The cut comes last, so that it is made in what the user's hooks leave at the same point.
            stack.enter_context(view.model.hooks(fwd_hooks=[*hooks, (at, cuts.cut_input)]))
            for handle in cuts.attach(view.model.unembed):
                stack.callback(handle.remove)
            output = view.model(tokens.clone().unsqueeze(0), return_type="logits")
        yield _state(view, tokens, position, at, cuts, output)


@dataclass
class _Cuts:
    """Where the graph is cut: a new leaf at the hook point, and a copy of one position at the unembedding."""

    position: int
    x: list[Tensor] = field(default_factory=list)
    y: list[Tensor] = field(default_factory=list)
    y_cut: list[Tensor] = field(default_factory=list)
    unembedded: list[Tensor] = field(default_factory=list)

    def attach(self, unembed: nn.Module) -> Iterator[Any]:
        """Plain torch hooks: TransformerLens 2 has no hook point at the unembedding."""
        yield unembed.register_forward_pre_hook(self._cut_output)
        yield unembed.register_forward_hook(self._keep_unembedded)

    def cut_input(self, activation: Float[Tensor, "1 pos d_in"], hook: Any) -> Float[Tensor, "1 pos d_in"]:
        """Replace the activation by a leaf of the same value."""
        self.x.append(activation[0].detach().clone().requires_grad_())
        return self.x[-1].unsqueeze(0)

    def _cut_output(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Only the explained position goes on: unembedding the others would cost a [pos, d_vocab] tensor.
        self.y.append(args[0][0, self.position])
        self.y_cut.append(self.y[-1].detach().clone().requires_grad_())
        return (self.y_cut[-1][None, None], *args[1:])

    def _keep_unembedded(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.unembedded.append(output)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside; each gets its flag back."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _own_hook_level(model: Any) -> Iterator[None]:
    """A level for our hooks that no hook of the user's has: leaving a level removes every hook that sits on it."""
    level = getattr(model, "context_level", 0)
    model.context_level = level + OWN_LEVEL
    try:
        yield
    finally:
        model.context_level = level


def _state(view: ModelView, tokens: Int[Tensor, "pos"], position: int, at: str, cuts: _Cuts, output: Tensor) -> State:
    if len(cuts.x) != 1 or len(cuts.y) != 1:
        raise InputError(
            f"{at!r} ran {len(cuts.x)} times and the unembedding {len(cuts.y)} times in one forward pass of {view.name}; "
            "each must run once. Choose another hook point, 'hook_embed' for one."
        )
    x, y, y_cut, unembedded = cuts.x[0], cuts.y[0], cuts.y_cut[0], cuts.unembedded[0]
    for name, tensor in ((at, x), ("the final hidden state", y), ("the logits", output)):
        if not tensor.isfinite().all():
            raise InputError(
                f"There are infinite or undefined values in {name} of {view.name} ({x.dtype}); nothing can be "
                "attributed to them. Half precision overflows: try bfloat16 or float32, or check the hooks and weights."
            )
    if not y.requires_grad:
        raise InputError(
            f"The prediction does not depend on {at!r}: a hook between them replaces or detaches everything."
        )
    logits = output[0, -1].to(torch.promote_types(output.dtype, torch.float32))
    default = int(tokens[position + 1]) if position + 1 < len(tokens) else int(logits.argmax())
    return State(
        tokens=tokens,
        position=position,
        x=x,
        y=y,
        logits=logits,
        W_U=view.W_U,
        slope=_slope(logits, unembedded),
        basis=view.basis,
        to_id=partial(_target_id, view, default, len(logits)),
        _y_cut=y_cut,
    )


def _target_id(view: ModelView, default: int, n_logits: int, target: Any) -> int:
    return default if target is None else to_id(view, target, n_logits)


def _slope(logits: Float[Tensor, "d_vocab"], unembedded: Float[Tensor, "1 1 d_vocab"]) -> Float[Tensor, "d_vocab"]:
    """Soft-cap and logit scale act on each logit by itself, so one backward pass gives all their derivatives."""
    (slope,) = torch.autograd.grad(logits.sum(), unembedded, retain_graph=True)
    return slope[0, 0].to(logits.dtype)
