"""`Run`: one forward pass that can be differentiated, and the `State` of each explained position."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.engine.inputs import Inputs
from jscope_tl.engine.ruled_pass import HeldConstant
from jscope_tl.engine.rules import RULES, Rules
from jscope_tl.engine.state import State
from jscope_tl.model.prompts import to_id
from jscope_tl.model.running import Passes
from jscope_tl.model.turns import cached_property
from jscope_tl.model.view import ModelView


@dataclass(frozen=True)
class Settings:
    """How the model is run and linearised, independent of the prompt.

    Attributes:
        view: the model.
        at: the names of the hook points.
        fwd_hooks: the user's hooks.
        rules: how gradients pass through norms, attention and MLPs.
        patterns: whether Jacobians with respect to the entries of attention patterns are needed too.
        watched: further hook points, of any shape, for which Jacobians are needed.
        recompute: whether layers keep only their input and run again in the backward pass; None: only if memory is short.
    """

    view: ModelView
    at: Sequence[str]
    fwd_hooks: Sequence[Any] = ()
    rules: Rules = RULES["plain"]
    patterns: bool = False
    watched: Sequence[str] = ()
    recompute: bool | None = None


@dataclass(frozen=True)
class Run:
    """One forward pass, cut at the hook points and at the unembedding, with ``n`` explained positions.

    Attributes:
        settings: how the model was run.
        prompts: the tokens of one prompt, or of several that were run in one batch.
        rows: the number of the prompt of each explained position.
        positions: the explained positions, not negative.
        activations: the activations at the hook points, ``[1, pos, d_in]`` each; several prompts are concatenated, each padded to the
            longest.
        xs: the variables of the Jacobians, in the same order: the activations, or their factors.
        patterns: for each layer, the factors of the entries of its attention pattern, ``[1, src, (head dest)]``; None if they are not needed.
        entries: for each layer, these entries, in the same layout.
        watched: the activations at the watched hook points by name, attached to ``xs``.
        y: the final hidden state at the explained positions, ``[n, d_model]``, attached to ``xs``.
        inputs: the variables of the Jacobians, and the point of linearisation.
        held: the values that are held constant.
        passes: the counter of passes.
        recomputed: the size in bytes of the graphs of layers that run again in each backward pass; 0 if all layers keep their graphs.
    """

    settings: Settings
    prompts: Sequence[Int[Tensor, "_"]]
    rows: Sequence[int]
    positions: Sequence[int]
    activations: list[Float[Tensor, "1 pos d_in"]]
    xs: list[Float[Tensor, "1 pos d_s"]]
    y: Float[Tensor, "n d_model"]
    _y_cuts: list[Float[Tensor, "d_model"]]
    _logits: Float[Tensor, "n d_vocab"]
    _slope: Float[Tensor, "n d_vocab"]
    inputs: Inputs
    patterns: dict[int, Float[Tensor, "1 all_src head_dest"]] | None
    entries: dict[int, Float[Tensor, "1 all_src head_dest"]]
    watched: dict[str, Float[Tensor, "batch *rest"]]
    held: HeldConstant
    passes: Passes
    recomputed: float = 0.0

    @property
    def view(self) -> ModelView:
        """The model."""
        return self.settings.view

    @property
    def at(self) -> Sequence[str]:
        """The names of the hook points."""
        return self.settings.at

    @property
    def tokens(self) -> Int[Tensor, "pos"]:
        """The tokens of the first prompt."""
        return self.prompts[0]

    def part(self, i: int) -> slice:
        """The range in ``xs`` of the prompt of the ``i``-th explained position."""
        start = self.rows[i] * (self.xs[0].shape[1] // len(self.prompts))
        return slice(start, start + len(self.prompts[self.rows[i]]))

    def state(self, i: int = 0) -> State:
        """The `State` of the ``i``-th explained position."""
        return self._state(i, self._products_do)

    def _state(self, i: int, by_product: bool) -> State:
        position, at_position, tokens = self.positions[i], self._logits[i], self.prompts[self.rows[i]]
        precise = (
            torch.float32 if at_position.device.type == "mps" else torch.float64
        )  # float64, because 1 - p cancels for confident p
        logits = at_position.detach().to(precise).requires_grad_()
        following = int(tokens[position + 1]) if position + 1 < len(tokens) else len(logits)
        default = following if following < len(logits) else int(logits.argmax())
        return State(
            tokens=tokens,
            position=position,
            x=self.activations[0][0, self.part(i)],
            y=self.y[i],
            logits=logits,
            W_U=self.view.W_U,
            slope=self._slope[i],
            basis=self.view.basis,
            to_id=partial(_target_id, self.view, default, len(logits)),
            _y_cut=self._y_cuts[i],
            _output=at_position,
            _by_product=by_product,
        )

    @cached_property
    def _products_do(self) -> bool:
        """Whether products with ``W_U`` replace autograd: with many positions, backward passes through all unembeddings are quadratic."""
        return len(self.positions) > 1 and self._state(0, False).is_linear()


def _target_id(view: ModelView, default: int, n_logits: int, target: Any) -> int:
    return default if target is None else to_id(view, target, n_logits)
