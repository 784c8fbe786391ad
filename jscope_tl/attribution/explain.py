"""`explain`: which tokens caused a prediction, by the method that finds validated causes best."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.attribute import explain_target
from jscope_tl.attribution.describe import of_prompt
from jscope_tl.attribution.setup import Setup, set_up
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.pattern_entries import PATTERN
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.run import Run
from jscope_tl.engine.vjp import Backward
from jscope_tl.errors import InputError, nearest
from jscope_tl.model.prompts import Prompt, bos_positions, to_id, to_str_tokens
from jscope_tl.results.attribution import Attribution
from jscope_tl.scopes.alternatives import AlternativesScope
from jscope_tl.scopes.base import Score
from jscope_tl.scopes.directions import ContrastiveScope

UNIT = "relative units, unsigned, not additive"
HOOK_POINT = "hook_embed, pattern"
OPTIONS = ("target", "baseline", "n")
NOT_TAKEN: dict[str, tuple[Any, ...]] = {
    "at": ("hook_embed", ["hook_embed"]),
    "per": (None,),
    "reduction": (None, "row_norm"),
    "path": (None, "point"),
    "frozen": ((), [], None),
}
"""Keywords of other functions that `explain` does not take, with the values that change nothing."""
N = 5
"""Default number of alternatives of each kind."""


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

    Scopes measure how *sensitive* a prediction is to each token's vector. In real models the sensitivity is large at every token that
    the model reads, whether or not the token supports the prediction. At tokens that cause the prediction, three numbers are large
    together, for a contrast ``q = z_target - z_a`` with an alternative ``a``, a token that the model might have predicted instead:

    ``m_s = (A_s² · E_s · B_s)^(1/4)``, with ``e = P[l,h,d,s] · ∂q/∂P[l,h,d,s]`` for every entry of every attention pattern,
    ``A_s = Σ relu(e)`` and ``E_s = (Σ e²)^(1/2)`` over layers, heads and destinations, and ``B_s = ‖∂q/∂x_s‖`` at ``hook_embed``.

    Each map is divided by its sum over the tokens other than BOS; the score is the largest over the alternatives ``a``:
    ``score_s = max_a m_s(a) / Σ_t m_t(a)``. One forward pass, and one backward row for each alternative, all at once.

    The scores are relative to each other: they are *not* norms of ``J_t`` (the gradients follow the rules), and they have no sign. The
    sum of several tokens' scores has no meaning, and scores of different prompts cannot be compared.

    Args:
        target: the token to explain; None: the next token of the prompt if there is one, else the most probable token.
        baseline: the alternatives, one token or several: *why the target and not these*. None: the ``n`` most probable other
            tokens, and the ``n`` probable tokens whose columns of ``W_U`` are most similar to the target's
            (`AlternativesScope`, ``choice="both"``). A baseline that you choose finds more causes, above all if the prediction
            is a choice between two tokens (he or she, is or are).
        gradient: the gradient rules, or ``"plain"``.
        n: the number of alternatives of each kind; each costs one backward row.
        progress: show a progress bar over backward rows always (True), never (False), or if it takes more than a second (None).
        {shared}

    Returns:
        An `Attribution` with ``scores [pos]``. ``options["resolved"]`` lists the ``alternatives``; its ``strongest_against`` is the
        alternative that gives the highest score (BOS excluded).

    Raises:
        InputError: as in `attribute`; the model has no attention patterns; a layer has no gradient rule; or there is no token
            other than BOS.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> [token.str_token for token in js.explain(model, prompt, " liberal", " conservative").top(1)]
        [' columbia']
    """
    given = {"target": target, "baseline": baseline, "n": n}
    setup = cause_setup(model, given, fwd_hooks=fwd_hooks, gradient=gradient, progress=progress)
    return of_prompt(explain_target(setup, *setup.prompt(prompt, prepend_bos, position)), prompt)


def cause_setup(
    model: Any, options: Mapping[str, Any], *, gradient: str | Rules = "attnlrp", **how: Any
) -> "CauseSetup":
    """The setup of `explain`, for one prompt and for many; ``how``: further keywords of `set_up`.

    Raises:
        InputError: an option that `explain` does not have, or a value that cannot be used.
    """
    need_options(options)
    scope = AlternativesScope(**options, choice="both")
    setup = set_up(model, scope, {}, at=PATTERN, per=None, gradient=gradient, **how)
    for token in (*(() if scope.target is None else (scope.target,)), *scope.named):
        to_id(setup.view, token, setup.view.d_vocab)  # raises an error if it is not a token
    return CauseSetup(**{f.name: getattr(setup, f.name) for f in fields(Setup)})


def need_options(given: Iterable[str]) -> None:
    """Refuse options that `explain` does not have.

    Raises:
        InputError: it has no such option.
    """
    for name in given:
        if name not in OPTIONS:
            raise InputError(f"explain has no option {name!r}.{nearest(name, OPTIONS)} It has {', '.join(OPTIONS)}.")


def need_defaults(settings: Mapping[str, Any], spelled: str = "{}") -> None:
    """Refuse settings that `explain` does not take, where it stands for a scope; ``spelled``: how the caller spells their names.

    Raises:
        InputError: a setting is not the default.
    """
    for name, harmless in NOT_TAKEN.items():
        if settings.get(name, harmless[0]) not in harmless:
            raise InputError(
                f"explain takes no {spelled.format(name)}, got {settings[name]!r}; leave it out, or use a scope instead."
            )


@dataclass(frozen=True)
class CauseSetup(Setup):
    """The setup of `explain`: the scope chooses the alternatives, and the score compares the maps of all contrasts."""

    @property
    def name(self) -> str:
        """The name of the function."""
        return "explain"

    @property
    def additive(self) -> bool:
        """False: the maps of one prompt's alternatives are compared."""
        return False

    @property
    def takes_spans(self) -> bool:
        """False: `explain` takes one token."""
        return False

    @property
    def unit(self) -> str:
        """The unit of the score."""
        return UNIT

    @property
    def label(self) -> str:
        """The name of the function, and the gradient rules."""
        return f"{self.name}, gradient {self.settings.rules.name}"

    @property
    def hook_point(self) -> str:
        """Where the derivatives are taken."""
        return HOOK_POINT

    def options(self) -> dict[str, Any]:
        """The options of `explain`."""
        return {name: value for name, value in super().options().items() if name != "choice"}

    def score(self, forward: Run, backward: Backward, i: int = 0) -> Score:
        """The highest score of each token over the alternatives."""
        state = forward.state(i)
        counted = _counted(self, state.tokens, state.position)
        shares, others = _shares(self, forward, backward, counted)
        values, decisive = shares.max(0)
        strongest = others[decisive[(values * counted.to(values)).argmax()]]
        return Score(values, resolved={"strongest_against": to_str_tokens(self.view, [strongest])[0]})


def _counted(setup: Setup, tokens: Int[Tensor, "pos"], position: int) -> Bool[Tensor, "pos"]:
    """Mask of the tokens that a map is normalised over: all up to the explained position, except BOS."""
    counted = torch.arange(len(tokens), device="cpu") <= position
    counted[list(bos_positions(setup.view, tokens))] = False
    if not counted.any():
        raise InputError(
            f"js.explain needs a token other than BOS; up to position {position} there is none. Explain a later position."
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
    """Backward passes to the vectors at the hook point and to the tensors of ``backward``; their rows are concatenated."""
    return replace(backward, xs=[*forward.xs, *backward.xs], arrange=_side_by_side)


def _side_by_side(rows: Sequence[Float[Tensor, "chunk pos _"]]) -> list[Float[Tensor, "chunk pos all"]]:
    return [torch.cat([row.to(rows[0].device) for row in rows], -1)]


def contrast_map(
    gradient: Float[Tensor, "chunk pos d_in"], entries: Float[Tensor, "chunk pos entries"]
) -> Float[Tensor, "chunk pos"]:
    """``(A² · E · B)^(1/4)``, with roots taken before the product, because the product of small factors underflows in float32."""
    return entries.relu().sum(-1).sqrt() * (entries.norm(dim=-1) * gradient.norm(dim=-1)).pow(1 / 4)
