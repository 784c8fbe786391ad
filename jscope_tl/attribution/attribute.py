"""`attribute`: one prompt, one scope, one prediction."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.describe import attribution, of_prompt
from jscope_tl.attribution.paths import Path
from jscope_tl.attribution.setup import Setup, set_up
from jscope_tl.attribution.span import explain_span, several_tokens
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.inputs import Reduction
from jscope_tl.engine.rules import Rules
from jscope_tl.model.prompts import Prompt
from jscope_tl.results.attribution import Attribution
from jscope_tl.scopes.base import Scope


@documented
def attribute(
    model: Any,
    prompt: Prompt,
    scope: str | Scope | Callable[..., Any] = "semantic",
    *,
    position: int = -1,
    at: str | Sequence[str] = "hook_embed",
    per: str | None = None,
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    reduction: str | Reduction | None = None,
    path: str | Path | None = None,
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Attribution:
    """Score how strongly the model's next-token prediction depends on each token of the prompt.

    Args:
        at: the residual-stream hook point whose activation ``x`` the scores refer to. A list of them, or
            ``"resid_pre"``, ``"resid_mid"`` or ``"resid_post"`` for those of all layers, gives a layer map
            ``scores [layer, pos]`` at the cost of one hook point. ``"pattern"``: the scores refer to the entries of all attention
            patterns ``P`` instead; the score of token ``s`` is ``Σ relu(P[l,h,d,s] · ∂q/∂P[l,h,d,s])`` over layers, heads and
            destinations, in units of the explained quantity ``q`` (for several cotangents, such as Fisher's, half the sum of squares).
        per: with ``at="pattern"``: ``"layer"`` or ``"head"`` returns separate scores for each, ``[layer, pos]`` or
            ``[layer, head, pos]``.
        {shared}

    Returns:
        An `Attribution` with ``scores [pos]`` or ``[layer, pos]``: float32, on the CPU, unsigned, in the scope's unit.

    Raises:
        InputError: the arguments cannot be used; the message says what was given, what is needed and what to do.
            The model's hooks, parameters, modes and tensors are left unchanged.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> result = js.attribute(model, prompt, "semantic", target=" liberal")
        >>> [token.str_token for token in result.top(1)]
        [' columbia']
    """
    setup = set_up(
        model, scope, options, at=at, per=per, fwd_hooks=fwd_hooks, reduction=reduction, path=path, gradient=gradient, frozen=frozen,
        chunk_size=chunk_size, matmul_precision=matmul_precision, progress=progress,
    )  # fmt: skip
    return of_prompt(explain_target(setup, *setup.prompt(prompt, prepend_bos, position)), prompt)


def explain_target(setup: Setup, tokens: Int[Tensor, "pos"], position: int) -> Attribution:
    """Like `explain`, but the target may also have several tokens."""
    several = several_tokens(setup)
    return explain(setup, tokens, position) if several is None else explain_span(setup, tokens, position, several)


def explain(setup: Setup, tokens: Int[Tensor, "pos"], position: int) -> Attribution:
    """`attribute` for arguments that have been checked."""
    warnings = setup.warnings(tokens)
    with setup.run(tokens, [position]) as (forward, backward):
        setup.scope.target_id(forward.state())  # an unusable target raises before the backward passes
        score = setup.score(forward, backward)
        return attribution(setup, forward, score, [*warnings, *backward.notes])
