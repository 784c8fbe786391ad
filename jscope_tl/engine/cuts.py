"""Cuts of the graph of a forward pass, so that only the part between hook point and unembedding is differentiated."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from jscope_tl.engine.inputs import NORM, Inputs
from jscope_tl.model.hooks import on_this_thread


@dataclass
class Cuts:
    """The cuts of the graph: the activation at each hook point, and copies of the explained positions at the unembedding.

    The first hook point in the model's order becomes a leaf of the graph; later hook points stay attached to it.
    """

    rows: Sequence[int]
    positions: Sequence[int]
    narrow: bool
    inputs: Inputs
    activations: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    xs: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    watched: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    y: list[Tensor] = field(default_factory=list)
    y_cuts: list[list[Tensor]] = field(default_factory=list)
    unembedded: list[Tensor] = field(default_factory=list)

    def attach(self, unembed: nn.Module) -> Iterator[Any]:
        """Add plain torch hooks at the unembedding, where TransformerLens 2 has no hook point."""
        yield unembed.register_forward_pre_hook(on_this_thread(self._cut_output))
        yield unembed.register_forward_hook(on_this_thread(self._keep_unembedded))

    def cut_input(self, name: str) -> Callable[..., Float[Tensor, "1 pos d_in"]]:
        """A hook that stores the activation and returns it attached to the coordinates that rows refer to."""

        def cut(activation: Float[Tensor, "batch pos d_in"], hook: Any) -> Float[Tensor, "batch pos d_in"]:
            leaf, onward = self.inputs.cut(activation)
            self.xs[name].append(leaf)
            # For the vectors themselves the leaf is the activation; scaling factors are a separate tensor.
            whole = leaf if self.inputs.reduction is NORM else rearrange(onward, "batch pos d -> 1 (batch pos) d")
            self.activations[name].append(whole)
            return onward

        return cut

    def read_input(self, name: str) -> Callable[..., None]:
        """A hook for a branch of the stream that stores the tensor shared by branch and stream, so that gradients of both count."""

        def read(activation: Float[Tensor, "1 pos d_in"], hook: Any) -> None:
            self.xs[name].append(activation if activation.requires_grad else activation.requires_grad_())
            self.activations[name].append(self.xs[name][-1])

        return read

    def watch(self, name: str) -> Callable[..., Float[Tensor, "batch *rest"]]:
        """A hook that stores the activation in its own shape and returns the same tensor."""

        def watch(activation: Float[Tensor, "batch *rest"], hook: Any) -> Float[Tensor, "batch *rest"]:
            self.watched[name].append(activation)
            return activation

        return watch

    def _cut_output(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.y.append(args[0][list(self.rows), list(self.positions)])
        self.y_cuts.append([y.detach().clone().requires_grad_() for y in self.y[-1]])
        cut = torch.stack(self.y_cuts[-1])
        if self.narrow:  # unembedding the other positions would need a [pos, d_vocab] tensor
            return (rearrange(cut, "n d_model -> 1 n d_model"), *args[1:])
        everywhere = args[0].detach().clone()
        everywhere[list(self.rows), list(self.positions)] = cut
        return (everywhere, *args[1:])

    def _keep_unembedded(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.unembedded.append(output)
