"""Jacobians themselves, for users who want the rows and not a score."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.backward import Puller, check_chunk_size
from jscope_tl.engine.forward import FwdHooks, run
from jscope_tl.engine.constant import Frozen, check_frozen
from jscope_tl.model.view import ModelView
from jscope_tl.model.prompts import Prompt, to_position, to_tokens
from jscope_tl.engine.vjp import Pull
from jscope_tl.scopes.base import checked_cotangents
from jscope_tl.engine.state import State


def jacobian(
    model: Any,
    prompt: Prompt,
    cotangents: Float[Tensor, "*k d_model"] | None = None,
    *,
    position: int = -1,
    at: str = "hook_embed",
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    progress: bool | None = None,
) -> Float[Tensor, "k pos d"]:
    """``C J_t`` for every position ``t``: rows of the Jacobian ``J_t = ∂y/∂x_t``, on the model's device.

    ``y`` is the post-layer-norm final hidden state at ``position``, ``x_t`` the activation of ``at`` at position ``t``.
    Positions after the explained one are 0.

    Args:
        cotangents: ``C``, ``[k, d_model]`` or ``[d_model]``; None is the identity, that is the full Jacobian, which
            takes ``d_model² x pos`` numbers.
        model, prompt, position, at, prepend_bos, fwd_hooks, frozen, chunk_size, progress: see `attribute`.

    Raises:
        InputError: as `attribute`, and where the cotangents are not ``[k, d_model]``.

    Example:
        >>> import jscope_tl as js
        >>> js.jacobian(js.load_pocket_model(), "the keys").shape  # BOS and two words
        torch.Size([128, 3, 128])
    """
    view = ModelView(model)
    tokens = to_tokens(view, prompt, prepend_bos)
    position = to_position(position, len(tokens))
    chunk_size = check_chunk_size(chunk_size)
    held = Frozen(check_frozen(frozen))
    with run(view, tokens, [position], [view.hook_point(at)], fwd_hooks, frozen=held) as forward:
        state = forward.state()
        puller = Puller(forward.xs, forward.y, forward.positions, chunk_size, progress)
        return Pull(puller).rows(_rows(cotangents, state)).to(state.y.dtype)


def _rows(cotangents: Any, state: State) -> Float[Tensor, "k d_model"]:
    if cotangents is None:
        return torch.eye(len(state.y), dtype=state.dtype, device=state.y.device)
    return checked_cotangents(cotangents, state, "your cotangents")
