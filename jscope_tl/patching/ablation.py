"""`ablate`: what leaving out one token after the other does to a prediction, against what a scope says."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.diagnostics.heads import spearman
from jscope_tl.attribution.attribute import attribute
from jscope_tl.errors import InputError, whole
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.model.view import ModelView
from jscope_tl.patching.ablated_runs import ablated_logits, replaced_by
from jscope_tl.patching.comparison import Cost
from jscope_tl.model.prompts import Prompt, to_tokens
from jscope_tl.results.attribution import Attribution
from jscope_tl.scopes.base import Scope
from jscope_tl.engine.state import divergence

if TYPE_CHECKING:
    import pandas as pd

BATCH = 32
EFFECTS = ("logit", "log_prob", "kl")


@dataclass(frozen=True, eq=False)
class Ablation:
    """The effect of replacing each token's embedding by itself, beside a scope.

    Attributes:
        scope: the scope's result on the prompt as it is.
        logit: ``[pos]``, change of the target's logit; signed, 0 after the explained position.
        log_prob: ``[pos]``, change of the target's log-probability in nats.
        kl: ``[pos]``, ``KL(p ‖ p_ablated)`` of the next-token distribution in nats.
        replacement: what took the embedding's place.
        costs: of the ``"scope"`` and of the ``"ablation"``.
    """

    scope: Attribution
    logit: Float[Tensor, "pos"]
    log_prob: Float[Tensor, "pos"]
    kl: Float[Tensor, "pos"]
    replacement: str
    costs: dict[str, Cost]

    def correlation(self, effect: str = "kl") -> float:
        """Spearman's correlation of the scope's scores with the absolute effects of all tokens but BOS."""
        if effect not in EFFECTS:
            raise InputError(f"effect is one of {', '.join(EFFECTS)}; got {effect!r}.")
        kept = [i for i in range(self.scope.position + 1) if i not in self.scope.bos_positions]
        return float(spearman(self.scope.scores[kept].numpy(), getattr(self, effect)[kept].abs().numpy()))

    def to_dataframe(self) -> "pd.DataFrame":
        """The scope's data frame with the effects beside the scores."""
        frame = self.scope.to_dataframe()
        for effect in EFFECTS:
            frame[effect] = getattr(self, effect).numpy()
        return frame

    def __repr__(self) -> str:
        said = ", ".join(f"{effect} {self.correlation(effect):.2f}" for effect in EFFECTS)
        return f"Ablation by {self.replacement}: rank correlation of {self.scope.scope} scores with |effect|: {said}"


@torch.inference_mode(False)
def ablate(
    model: Any,
    prompt: Prompt,
    scope: str | Scope | Callable[..., Any] = "semantic",
    *,
    replacement: str | int = "zero",
    position: int = -1,
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    batch_size: int = BATCH,
    progress: bool | None = None,
    **options: Any,
) -> Ablation:
    """Leave out one token after the other at ``hook_embed`` and hold the effects against a scope.

    Args:
        model, prompt, scope, position, prepend_bos, fwd_hooks, options: see `attribute`. The effects on logit and
            log-probability are those of the token that the scope explains.
        replacement: ``"zero"``; ``"mean"``, the mean embedding of the vocabulary; ``"pad"``, the padding token's; or a token,
            a string or an id (the words "zero", "mean" and "pad" by their ids).
        batch_size: ablated prompts in one forward pass; where hooks are active, one at a time all the same.
        progress: see `attribute`.

    Raises:
        InputError: as `attribute`; a replacement that is neither zero nor mean nor one token.

    Example:
        >>> import jscope_tl as js
        >>> result = js.patching.ablate(js.load_pocket_model(), "the keys to the cabinet near the doors", "fisher")
        >>> result.kl.shape
        torch.Size([9])
    """
    if (whole(batch_size) or 0) < 1:
        raise InputError(f"batch_size is how many ablated prompts to run at once, 1 or more; got {batch_size!r}.")
    view, hooks = ModelView(model), list(fwd_hooks or ())
    put, named = replaced_by(view, replacement)
    start = time.perf_counter()
    result = attribute(
        model,
        prompt,
        scope,
        position=position,
        prepend_bos=prepend_bos,
        fwd_hooks=fwd_hooks,
        progress=progress,
        **options,
    )
    explained = time.perf_counter()
    tokens = to_tokens(view, result.tokens)
    masks = torch.eye(result.position + 1, len(tokens), dtype=torch.bool, device="cpu")
    runs = partial(ablated_logits, view, tokens, position=result.position, hooks=hooks, batch_size=batch_size)
    base, ablated = runs(torch.zeros_like(masks[:1]), put), runs(masks, put, progress=progress)
    effects = _effects(base, ablated, result.prediction.target.token, len(tokens))
    costs = {
        "scope": Cost(1 + result.provenance.n_backward, explained - start),
        "ablation": Cost(result.position + 2, time.perf_counter() - explained),
    }
    return Ablation(scope=result, **effects, replacement=named, costs=costs)


def _effects(
    base: Float[Tensor, "1 d_vocab"], ablated: Float[Tensor, "n d_vocab"], target: int, pos: int
) -> dict[str, Float[Tensor, "pos"]]:
    """On the target's logit and log-probability, and on the distribution; 0 after the explained position."""
    log_p, log_q = base.log_softmax(-1), ablated.log_softmax(-1)
    effects = {
        "logit": ablated[:, target] - base[0, target],
        "log_prob": log_q[:, target] - log_p[0, target],
        "kl": divergence(log_p, log_q),
    }
    later = torch.zeros(pos - len(ablated), dtype=torch.float64, device="cpu")
    return {name: torch.cat([values, later]) for name, values in effects.items()}
