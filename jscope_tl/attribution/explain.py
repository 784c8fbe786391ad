"""`explain`: which tokens caused this, by the recipe that finds validated causes best."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.describe import attribution, of_prompt
from jscope_tl.attribution.setup import Setup, set_up
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.pattern_entries import PATTERN
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.run import Run
from jscope_tl.engine.vjp import Backward
from jscope_tl.errors import InputError
from jscope_tl.model.prompts import Prompt, bos_positions, to_str_tokens
from jscope_tl.results.attribution import Attribution
from jscope_tl.scopes.base import Score
from jscope_tl.scopes.directions import ContrastiveScope

UNIT = "share of the map (unsigned, does not add up)"
N = 5
"""Alternatives of each kind that are chosen."""


@documented
def explain(
    model: Any,
    prompt: Prompt,
    target: str | int | None = None,
    baseline: str | int | Sequence[str | int] | None = None,
    *,
    position: int = -1,
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    gradient: str | Rules = "attnlrp",
    n: int = N,
    progress: bool | None = None,
) -> Attribution:
    """Which tokens of the prompt caused the model to say ``target``: gradient, and gradient times attention, under AttnLRP's rules.

    Scopes say how *sensitive* a prediction is to each token's vector. On real models that is large at the tokens that the model reads
    at all, whatever they say. Causes are found where three numbers are large together, for a contrast ``q = z_target - z_a`` with a
    token ``a`` that the model might have said instead:

    ``m_s = (A_s² · E_s · B_s)^(1/4)``, with ``e = P[l,h,d,s] · ∂q/∂P[l,h,d,s]`` for every entry of every attention pattern,
    ``A_s = Σ relu(e)`` and ``E_s = (Σ e²)^(1/2)`` over layers, heads and destinations, and ``B_s = ‖∂q/∂x_s‖`` at ``hook_embed``.

    Each map is divided by its sum over the tokens other than BOS; the score is the largest over the alternatives ``a``:
    ``score_s = max_a m_s(a) / Σ_t m_t(a)``. One forward pass, and one backward row for each alternative, all at once.

    The number is a share of a map. It is *not* a norm of ``J_t`` (gradients are those of the rules), signed, or complete: scores of
    several tokens do not add up to anything, and those of two prompts do not compare.

    Args:
        target: the token to explain; None: the prompt's own next token where there is one, else the most probable one.
        baseline: what the model might have said instead, a token or several: *why this and not that*. None: the ``n`` most probable
            others, and the ``n`` that are most like the target among the probable ones, by their columns of ``W_U``
            (`AlternativesScope`, ``choice="both"``). A baseline of one's own finds more, above all where the question is which of
            two (he or she, is or are).
        gradient: the rules, or ``"plain"``.
        n: how many alternatives of each kind are chosen; each costs a backward row.
        progress: a progress bar over backward rows always (True), never (False), or where the wait is over a second (None).
        {shared}

    Returns:
        An `Attribution` with ``scores [pos]``. ``options["resolved"]`` names the ``alternatives``, and under ``strongest_against`` the
        one that the highest score (other than BOS') comes from.

    Raises:
        InputError: as `attribute`, where the model has no attention patterns or a layer has no gradient rule, and where there is no
            token but BOS.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> [token.str_token for token in js.explain(model, prompt, " liberal", " conservative").top(1)]
        [' columbia']
    """
    setup = set_up(
        model, "alternatives", {"target": target, "baseline": baseline, "n": n, "choice": "both"}, at=PATTERN, per=None, fwd_hooks=fwd_hooks,
        gradient=gradient, progress=progress,
    )  # fmt: skip
    tokens, at = setup.prompt(prompt, prepend_bos, position)
    counted = _counted(setup, tokens, at)
    warnings = setup.warnings(tokens)
    with setup.run(tokens, [at]) as (forward, backward):
        shares, others = _shares(setup, forward, backward, counted)
        values, decisive = shares.max(0)
        against = to_str_tokens(setup.view, [others[decisive[(values * counted.to(values)).argmax()]]])[0]
        score = Score(values, resolved={"strongest_against": against})
        result = attribution(setup, forward, score, [*warnings, *backward.notes])
    where = replace(result.provenance, hook_point="hook_embed, pattern")
    name = f"explain, gradient {setup.settings.rules.name}"
    return of_prompt(replace(result, scope=name, unit=UNIT, provenance=where), prompt)


def _counted(setup: Setup, tokens: Int[Tensor, "pos"], position: int) -> Bool[Tensor, "pos"]:
    """Tokens whose scores make the sum of a map: those up to the explained one other than BOS."""
    counted = torch.arange(len(tokens), device="cpu") <= position
    counted[list(bos_positions(setup.view, tokens))] = False
    if not counted.any():
        raise InputError(
            f"A share of the map needs a token other than BOS; up to position {position} there is none. Explain a later position."
        )
    return counted


def _shares(
    setup: Setup, forward: Run, backward: Backward, counted: Bool[Tensor, "pos"]
) -> tuple[Float[Tensor, "alternative pos"], list[int]]:
    """A map for each alternative, divided by its sum over the counted tokens; and the alternatives."""
    state = forward.state()
    target, others = setup.scope.target_id(state), setup.scope.alternatives(state)
    contrasts = torch.cat([ContrastiveScope(target, other).rows(state) for other in others])
    d_in = forward.xs[0].shape[-1]
    rows = with_vectors(forward, backward).rows(contrasts)
    maps = torch.cat([contrast_map(chunk[..., :d_in], chunk[..., d_in:]) for chunk in rows])
    maps[:, state.position + 1 :] = 0
    return maps / (maps @ counted.to(maps)).clamp_min(torch.finfo(maps.dtype).tiny).unsqueeze(1), others


def with_vectors(forward: Run, backward: Backward) -> Backward:
    """Backward passes to the vectors at the hook point and to what ``backward`` goes to, in rows side by side."""
    return replace(backward, xs=[*forward.xs, *backward.xs], arrange=_side_by_side)


def _side_by_side(rows: Sequence[Float[Tensor, "chunk pos _"]]) -> list[Float[Tensor, "chunk pos all"]]:
    return [torch.cat([row.to(rows[0].device) for row in rows], -1)]


def contrast_map(
    gradient: Float[Tensor, "chunk pos d_in"], entries: Float[Tensor, "chunk pos entries"]
) -> Float[Tensor, "chunk pos"]:
    """``(A² · E · B)^(1/4)``; the root of each factor by itself, as their product leaves float32's range where they are small."""
    return entries.relu().sum(-1).sqrt() * (entries.norm(dim=-1) * gradient.norm(dim=-1)).pow(1 / 4)
