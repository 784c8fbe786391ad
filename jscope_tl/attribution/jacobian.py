"""`jacobian`: rows of the Jacobian itself, for users who need these rather than scores."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.describe import prepended
from jscope_tl.attribution.keywords import refuse
from jscope_tl.attribution.setup import set_up
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.one_position import VJP
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.state import State
from jscope_tl.model.prompts import Prompt, bos_positions, prompt_texts
from jscope_tl.results.rows import JacobianRows
from jscope_tl.scopes.base import FunctionScope


@documented
def jacobian(
    model: Any,
    prompt: Prompt,
    cotangents: Float[Tensor, "*k d_model"] | None = None,
    *,
    position: int = -1,
    at: str = "hook_embed",
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **not_taken: Any,
) -> Float[Tensor, "k pos d"]:
    """Compute ``C J_t`` for every position ``t``: rows of the Jacobian ``J_t = ∂y/∂x_t``, on the model's device.

    ``y`` is the post-layer-norm final hidden state at ``position``, and ``x_t`` is the activation of ``at`` at position ``t``.
    Positions after the explained one are 0. In a notebook the tensor is shown as the norm at every position (`JacobianRows`);
    operations on it return plain tensors.

    Args:
        cotangents: ``C``, ``[k, d_model]`` or ``[d_model]``; None: the identity, which gives the full Jacobian of
            ``d_model² x pos`` numbers.
        {shared}
        not_taken: catches keywords that the function does not support: ``reduction`` and ``path`` raise an error with the reason.

    Raises:
        InputError: as in `attribute`; or the cotangents are not ``[k, d_model]``.

    Example:
        >>> import jscope_tl as js
        >>> js.jacobian(js.load_pocket_model(), "the keys").shape  # BOS and two words
        torch.Size([128, 3, 128])
    """
    refuse("jacobian", not_taken, more=["cotangents"])

    def rows(state: State) -> Any:
        return torch.eye(len(state.y), dtype=state.dtype, device=state.y.device) if cotangents is None else cotangents

    setup = set_up(
        model, FunctionScope(rows, called="your cotangents"), {}, at=at, one_point=True, fwd_hooks=fwd_hooks, gradient=gradient, frozen=frozen,
        chunk_size=chunk_size, matmul_precision=matmul_precision, progress=progress,
    )  # fmt: skip
    tokens, explained = setup.prompt(prompt, prepend_bos, position)
    with setup.run(tokens, [explained]) as (forward, backward):
        state = forward.state()
        found = VJP(backward).rows(setup.scope.rows(state)).to(state.y.dtype).as_subclass(JacobianRows)
        found.str_tokens, found.position, found.at = prompt_texts(setup.view, tokens.tolist()), explained, at
        found.prepended = prepended(prompt, found.str_tokens, len(bos_positions(setup.view, tokens)))
        return found
