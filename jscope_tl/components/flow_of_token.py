"""`flow`: a token's influence on a prediction, head by head, with attention patterns and norm scales held constant."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.describe import about, asked, of_prompt, prediction
from jscope_tl.attribution.keywords import refuse
from jscope_tl.attribution.setup import set_up
from jscope_tl.components.flow_layers import carried, flow_points
from jscope_tl.components.token_flow import TokenFlow
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.inputs import NORM
from jscope_tl.engine.state import State
from jscope_tl.errors import InputError, count
from jscope_tl.model.prompts import Prompt, to_position
from jscope_tl.scopes.base import Scope
from jscope_tl.scopes.fisher import FisherScope

LOST = (1e-3, 0.05)
"""The share of the influence that rounding may lose at a level, in full and in half precision."""


@documented
@torch.inference_mode(False)
def flow(
    model: Any,
    prompt: Prompt,
    source_position: int,
    scope: str | Scope | Callable[..., Any] = "log_prob",
    *,
    position: int = -1,
    n_edges: int = 200,
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    progress: bool | None = None,
    **options: Any,
) -> TokenFlow:
    """Through which heads and positions the influence of one token of the prompt reaches the prediction.

    The model is linearised: attention patterns ``P`` and norm scales are held constant (``frozen=("attn", "norm")``), and MLPs are
    replaced by their derivative. For every activation ``h``, a Jacobian-vector product with the token's vector ``x_s`` at ``hook_embed``
    gives ``t(h) = ∂h/∂x_s x_s``, and a vector-Jacobian product gives the gradient of the explained quantity ``q``, ``r(h) = ∂q/∂h``.
    Head ``h`` of layer ``l`` carries

    ``P[l,h,d,s'] · r(z[l,d,h]) · t(v[l,s',h])``

    from position ``s'`` to ``d``, summed over all paths from the token to ``s'`` and from ``d`` to the prediction. The influence at a
    position before a layer is the sum of what stays in the residual stream there, what the MLP passes on, and what heads read from it.
    Summed over all positions, the influence is the same at each level, ``x_s · ∂q/∂x_s``.

    A flow shows along which paths the vector of the token travels. It does not show why heads attend where they do, because patterns are
    held constant: the source token's effect on queries and keys is not included.

    Args:
        source_position: the token whose influence is followed; negative counts from the end.
        scope: one with a single cotangent (``"log_prob"``, ``"contrastive"``, ``"semantic"``, ``"entropy"``, ``"temperature"``, ...):
            a registered name, with its options as further keywords; a scope object; or a function from the `State` to a cotangent.
        n_edges: how many edges are listed: the strongest ones over all heads.
        {shared}

    Returns:
        A `TokenFlow`; `js.views.flow` draws it.

    Raises:
        InputError: a source after the explained position, a scope with several cotangents, a model without attention patterns, or
            a model in which a norm or a pattern cannot be held constant.

    Example:
        >>> import jscope_tl as js
        >>> model, prompt = js.load_pocket_model(), "the keys to the cabinet near the doors"
        >>> flow = js.patching.flow(model, prompt, 2, "contrastive", target=" are", baseline=" is")
        >>> bool(abs(flow.levels.sum(1) - flow.total).max() < 1e-4)
        True
    """
    refuse("patching.flow", options)
    n_edges = count("n_edges", n_edges, 1)
    setup = set_up(model, scope, options, fwd_hooks=fwd_hooks, reduction=NORM, frozen=_held(model), progress=progress)
    tokens, explained = setup.prompt(prompt, prepend_bos, position)
    source, warnings = _source(source_position, len(tokens), explained), setup.warnings(tokens)
    settings = replace(
        setup.settings, patterns=True, watched=[name for kind in flow_points(setup.view) for name in kind]
    )
    with _errors_of_frozen(), replace(setup, settings=settings).run(tokens, [explained]) as (forward, _):
        state = forward.state()
        target = setup.scope.target_id(state)
        found = carried(forward, _one_cotangent(setup.scope, state), source, n_edges)
        described = about(setup, tokens, state.x, forward.passes, None) | {
            "scope": setup.scope.label,
            "asked": asked(setup, state),
        }
        predicted, dtype = prediction(state, setup.view, target), state.x.dtype
    kept = {name: described[name] for name in ("scope", "asked", "tokens", "str_tokens", "bos_positions", "provenance")}
    options = dict(setup.options())
    if setup.scope.needs_target:
        options["resolved"] = {"target": predicted.target.str_token}
    result = TokenFlow(
        edges=found.edges, heads=found.heads, levels=found.levels, staying=found.staying, mlps=found.mlps, sizes=found.sizes, total=found.total,
        source_position=source, position=explained, options=options, unit=setup.scope.effect_unit, prediction=predicted,
        warnings=[*warnings, *_lost(found.levels, found.total, dtype)], **kept,
    )  # fmt: skip
    return of_prompt(result, prompt)


def _held(model: Any) -> tuple[str, ...]:
    """What is held constant: attention patterns, and norm scales if the model has norms."""
    has_none = getattr(getattr(model, "cfg", None), "normalization_type", "") is None
    return ("attn",) if has_none else ("attn", "norm")


@contextmanager
def _errors_of_frozen() -> Iterator[None]:
    """Reword errors about ``frozen``, which is not a parameter of `flow`."""
    try:
        yield
    except InputError as error:
        reason, _, advice = str(error).partition(" Leave ")
        if not advice.endswith("out of frozen."):
            raise
        raise InputError(
            f"A flow holds attention patterns and norm scales constant, which this model does not allow: {reason}"
        ) from error


def _source(source_position: Any, n_tokens: int, explained: int) -> int:
    source = to_position(source_position, n_tokens)
    if source > explained:
        raise InputError(
            f"The source at position {source} comes after the explained position {explained}, and has no influence on it. Give an earlier "
            "source_position, or explain a later position."
        )
    return source


def _one_cotangent(scope: Scope, state: State) -> Float[Tensor, "d_model"]:
    """The single cotangent of the scope. The influence on a quadratic form (Fisher) does not add up over paths."""
    rows = scope.rows(state)
    if len(rows) != 1 or isinstance(scope, FisherScope):
        raise InputError(
            f"A flow explains one number, and the {scope.label} scope has {len(rows)} cotangent{'s' * (len(rows) != 1)} whose squares it sums. "
            "Use 'log_prob', 'contrastive' or another scope with a single cotangent."
        )
    return rows[0]


def _lost(levels: Float[Tensor, "level pos"], total: float, dtype: torch.dtype) -> list[str]:
    """A warning if the influence at some level differs from the total: part of it bypasses the hook points of the residual stream."""
    allowed = LOST[dtype in (torch.float16, torch.bfloat16)]
    off = (levels.double().sum(1) - total).abs() / levels.double().abs().sum(1).clamp_min(abs(total)).clamp_min(1e-30)
    if not bool((off > allowed).any()):
        return []
    level = int(off.argmax())
    return [
        f"Before layer {level} the influence adds up to {float(levels[level].double().sum()):.4g} instead of {total:.4g}: part of it bypasses "
        "the hook points of the residual stream, or the precision is not sufficient."
    ]
