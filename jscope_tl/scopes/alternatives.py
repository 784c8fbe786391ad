"""A scope for the target's logit against several alternative tokens, which are chosen automatically by default."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.engine.state import State
from jscope_tl.errors import InputError, count, nearest
from jscope_tl.scopes.directions import Quantity, Target, TargetScope
from jscope_tl.scopes.registry import register_scope

CHOICES = ("probable", "similar", "both")
AMONG = 100
"""Number of most probable tokens among which similar ones are chosen."""


@register_scope("alternatives")
@dataclass(frozen=True)
class AlternativesScope(TargetScope):
    """How strongly each token moves the target's logit against those of its alternatives: why this word and not the others.

    ``score_t = ‖(∂q/∂y)^T J_t‖`` with ``q = z_target - mean_a z_a`` over the alternatives ``a``. One backward pass. Unit: logit per
    unit of x. With one alternative this is ``contrastive``; with all other tokens, weighted by their probability, it would be
    proportional to ``log_prob``.

    Args:
        target: a string that is one token, or an id. None: the prompt's own next token if there is one, else the
            most probable token.
        baseline: the alternatives, one token or several; None: ``n`` alternatives are chosen, and
            ``result.options["resolved"]["alternatives"]`` lists them.
        n: the number of alternatives that are chosen (for ``"both"``, of each kind).
        choice: ``"probable"``: the most probable tokens other than the target. ``"similar"``: among the `AMONG` most probable tokens,
            those whose columns of ``W_U``, minus their mean, have the largest cosine with the target's. These are tokens of the same
            kind, such as other names for a name, or " are" for " is". ``"both"``: both.

    Raises:
        InputError: a string is not exactly one token, or the target is among the alternatives.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> result = js.attribute(model, prompt, "alternatives", target=" liberal", n=2)
        >>> result.options["resolved"]["alternatives"]
        [' conservative', ' hund']
    """

    baseline: Target = None
    n: int = 5
    choice: str = "probable"
    unit = "logit per unit of x"
    moves_along = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", count("n", self.n, 1))
        if not isinstance(self.choice, str) or self.choice not in CHOICES:
            raise InputError(
                f"choice must be one of {', '.join(CHOICES)}; got {self.choice!r}.{nearest(str(self.choice), CHOICES)}"
            )
        if isinstance(self.baseline, list | tuple):
            if not self.baseline:
                raise InputError(
                    "baseline must be a token, several tokens, or None for automatic alternatives; got an empty list."
                )
            object.__setattr__(self, "baseline", tuple(self.baseline))

    @property
    def named(self) -> tuple[str | int, ...]:
        """The alternatives that were passed; empty if they are chosen."""
        if self.baseline is None:
            return ()
        return self.baseline if isinstance(self.baseline, tuple) else (self.baseline,)

    def alternatives(self, state: State) -> list[int]:
        """Ids of the tokens that the target is contrasted with."""
        target = self.target_id(state)
        if not self.named:
            return self._chosen(state, target)
        ids = list(dict.fromkeys(state.to_id(token) for token in self.named))
        if target in ids:
            raise InputError(f"target and baseline are the same token (id {target}); their difference is always 0.")
        return ids

    def _chosen(self, state: State, target: int) -> list[int]:
        logits = state.logits.detach()
        best = logits.topk(min(max(AMONG, self.n) + 1, len(logits))).indices
        best = best[best != target]
        probable = best[: self.n].tolist() if self.choice != "similar" else []
        similar = _by_similarity(state, target, best[:AMONG])[: self.n] if self.choice != "probable" else []
        return list(dict.fromkeys([*probable, *similar]))

    def quantity(self, state: State) -> Quantity:
        """The target's logit minus the mean logit of the alternatives."""
        target, others = self.target_id(state), self.alternatives(state)
        return lambda logits: _against(logits, target, others)


def _against(logits: Float[Tensor, "d_vocab"], target: int, others: list[int]) -> Float[Tensor, ""]:
    return logits[target] - logits[others].mean()


def _by_similarity(state: State, target: int, tokens: Int[Tensor, "n"]) -> list[int]:
    """The tokens sorted by the cosine of their centred columns of ``W_U`` with the target's, the largest first."""
    mean = state.W_U.detach().float().mean(1, keepdim=True)
    columns, own = (state.W_U.detach()[:, ids].float() - mean for ids in (tokens, [target]))
    order = torch.cosine_similarity(own, columns, dim=0).argsort(descending=True)
    return tokens[order].tolist()
