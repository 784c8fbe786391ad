"""A token against what the model might have said instead, where nobody says what that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.state import State
from jscope_tl.errors import InputError, count
from jscope_tl.scopes.directions import Quantity, TargetScope
from jscope_tl.scopes.registry import register_scope


@register_scope("alternatives")
@dataclass(frozen=True)
class AlternativesScope(TargetScope):
    """How strongly each token moves the target's logit against those of its alternatives: why this word and not the others.

    ``score_t = ‖(∂q/∂y)^T J_t‖`` with ``q = z_target - mean_a z_a`` over the alternatives ``a``. One backward pass. Unit: logit per
    unit of x. With one alternative that is ``contrastive``; all others, weighted by their probability, make ``log_prob``.

    Args:
        target: a string that is one token, or an id. None: the prompt's own next token where there is one, else the
            most probable one.
        baseline: the alternatives: a token or several; None: the ``n`` most probable tokens other than the target, which
            ``result.options["resolved"]["alternatives"]`` names.
        n: how many are chosen.

    Raises:
        InputError: a token that is not exactly one, or the target among the alternatives.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> result = js.attribute(model, prompt, "alternatives", target=" liberal", n=2)
        >>> result.options["resolved"]["alternatives"]
        [' conservative', ' socialist']
    """

    baseline: str | int | Sequence[str | int] | None = None
    n: int = 5
    unit = "logit per unit of x"
    moves_along = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", count("n", self.n, 1))
        if isinstance(self.baseline, list | tuple):
            if not self.baseline:
                raise InputError("baseline is a token, several, or None for the most probable others; got none at all.")
            object.__setattr__(self, "baseline", tuple(self.baseline))

    def alternatives(self, state: State) -> list[int]:
        """Ids of what the target is held against."""
        target = self.target_id(state)
        if self.baseline is None:
            best = state.logits.detach().topk(min(self.n + 1, len(state.logits))).indices.tolist()
            return [token for token in best if token != target][: self.n]
        given: Any = self.baseline if isinstance(self.baseline, tuple) else (self.baseline,)
        ids = list(dict.fromkeys(state.to_id(token) for token in given))
        if target in ids:
            raise InputError(f"target and baseline are the same token (id {target}); their difference is always 0.")
        return ids

    def quantity(self, state: State) -> Quantity:
        """The target's logit less the mean of the alternatives'."""
        target, others = self.target_id(state), self.alternatives(state)
        return lambda logits: _against(logits, target, others)


def _against(logits: Float[Tensor, "d_vocab"], target: int, others: list[int]) -> Float[Tensor, ""]:
    return logits[target] - logits[others].mean()
