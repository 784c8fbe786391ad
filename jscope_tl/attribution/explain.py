"""`explain`: which tokens caused this, by the recipe that finds validated causes best."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.describe import attribution, of_prompt
from jscope_tl.attribution.setup import Setup, set_up
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.pattern_entries import PATTERN
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.run import Run
from jscope_tl.engine.vjp import Backward
from jscope_tl.model.prompts import Prompt
from jscope_tl.results.attribution import Attribution
from jscope_tl.scopes.base import Score

UNIT = "logit (a geometric mean of three; unsigned, does not add up)"


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
    n: int = 5,
) -> Attribution:
    """Which tokens of the prompt caused the model to say ``target``: gradient, and gradient times attention, under AttnLRP's rules.

    Scopes say how *sensitive* a prediction is to each token's vector. On real models that is largest at tokens that the model reads at
    all, whatever they say. Causes are found where three numbers are large together, of the quantity ``q = z_target - mean z_baseline``:

    ``score_s = (A_s · E_s · B_s)^(1/3)``, with ``e = P[l,h,d,s] · ∂q/∂P[l,h,d,s]`` for every entry of every attention pattern,
    ``A_s = Σ relu(e)`` over layers, heads and destinations, ``E_s = (Σ e²)^(1/2)``, and ``B_s = ‖∂q/∂x_s‖`` at ``hook_embed`` times
    the mean length of the prompt's embeddings. One forward and one backward pass.

    The number is in logits and is *not*: a norm of ``J_t`` (gradients are those of the rules), signed, or complete: scores of
    several tokens do not add up to anything.

    Args:
        target: the token to explain; None: the prompt's own next token where there is one, else the most probable one.
        baseline: what the model might have said instead, a token or several: *why this and not that*. None: the ``n`` most probable
            others, named in ``result.options["resolved"]["alternatives"]``. A baseline of one's own finds more, above all where
            the question is which of two (he or she, is or are).
        n: how many alternatives are chosen.
        {shared}

    Returns:
        An `Attribution` with ``scores [pos]``.

    Raises:
        InputError: as `attribute`, and where the model has no attention patterns or a layer has no gradient rule.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> [token.str_token for token in js.explain(model, prompt, " liberal", " conservative").top(1)]
        [' columbia']
    """
    setup = set_up(
        model, "alternatives", {"target": target, "baseline": baseline, "n": n}, at=PATTERN, per=None, fwd_hooks=fwd_hooks,
        gradient=gradient, progress=False,
    )  # fmt: skip
    tokens, at = setup.prompt(prompt, prepend_bos, position)
    warnings = setup.warnings(tokens)
    with setup.run(tokens, [at]) as (forward, backward):
        score = Score(_causes(setup, forward, backward))
        result = attribution(setup, forward, score, [*warnings, *backward.notes])
    where = replace(result.provenance, hook_point="hook_embed, pattern")
    return of_prompt(
        replace(result, scope=f"explain, gradient {setup.settings.rules.name}", unit=UNIT, provenance=where), prompt
    )


def _causes(setup: Setup, forward: Run, backward: Backward) -> Float[Tensor, "pos"]:
    """The three numbers of each token, and their geometric mean."""
    state = forward.state()
    both = backward.elsewhere([*forward.xs, *(forward.patterns or {}).values()], forward.y, forward.positions)
    both.arrange = lambda rows: [torch.cat([row.to(rows[0].device) for row in rows], -1)]
    (rows,) = both.rows(setup.scope.rows(state))
    d_in = forward.xs[0].shape[-1]
    gradient, entries = rows[0, :, :d_in], rows[0, :, d_in:]
    length = state.x.detach().norm(dim=-1).mean().to(rows)
    causes = entries.relu().sum(-1) * entries.norm(dim=-1) * gradient.norm(dim=-1) * length
    causes[state.position + 1 :] = 0
    return causes.pow(1 / 3)
