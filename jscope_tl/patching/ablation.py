"""`ablate`: the effects of ablating one token at a time on a prediction, compared with the scores of a scope."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.attribute import explain
from jscope_tl.attribution.describe import of_prompt
from jscope_tl.attribution.keywords import refuse
from jscope_tl.attribution.paths import Path
from jscope_tl.attribution.setup import set_up
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.inputs import Reduction
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.state import divergence
from jscope_tl.errors import InputError, count
from jscope_tl.model.prompts import Prompt
from jscope_tl.model.running import Passes
from jscope_tl.patching.ablated_runs import ablated_logits, replaced_by
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.checks import need, need_finite
from jscope_tl.results.cost import Cost
from jscope_tl.results.files import Saved
from jscope_tl.results.ranks import spearman
from jscope_tl.results.text import score_text, visible
from jscope_tl.scopes.base import Scope

BATCH = 32
EFFECTS = ("logit", "log_prob", "kl")


@dataclass(frozen=True, eq=False)
class Ablation(Saved):
    """The effects of replacing the embedding of one token at a time, beside the scores of a scope.

    Attributes:
        scope: the scope's result on the unchanged prompt.
        logit: ``[pos]``, change of the target's logit; signed, 0 after the explained position.
        log_prob: ``[pos]``, change of the target's log-probability in nats.
        kl: ``[pos]``, ``KL(p ‖ p_ablated)`` of the next-token distribution in nats.
        replacement: the name of the vector or token that replaced the embedding.
        costs: the cost of the ``"scope"`` and of the ``"ablation"``.
    """

    scope: Attribution
    logit: Float[Tensor, "pos"]
    log_prob: Float[Tensor, "pos"]
    kl: Float[Tensor, "pos"]
    replacement: str
    costs: dict[str, Cost]

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together, as in a damaged file."""
        for effect in EFFECTS:
            values = getattr(self, effect)
            need(values.shape == self.scope.scores.shape, f"{effect} has one effect for each score")
            need_finite(effect, values)

    def correlation(self, effect: str = "kl") -> float:
        """Spearman's correlation of the scope's scores with the absolute effects, over all tokens up to the explained one except BOS.

        Args:
            effect: ``"logit"``, ``"log_prob"`` or ``"kl"``.
        """
        if effect not in EFFECTS:
            raise InputError(f"effect is one of {', '.join(EFFECTS)}; got {effect!r}.")
        kept = [i for i in range(self.scope.position + 1) if i not in self.scope.bos_positions]
        return float(spearman(self.scope.scores[kept].numpy(), getattr(self, effect)[kept].abs().numpy()))

    def to_dataframe(self) -> pd.DataFrame:
        """The scope's data frame with the effects beside the scores."""
        frame = self.scope.to_dataframe()
        for effect in EFFECTS:
            frame[effect] = getattr(self, effect).numpy()
        return frame

    def __repr__(self) -> str:
        said = ", ".join(f"{effect} {self.correlation(effect):.2f}" for effect in EFFECTS)
        head = f"Ablation by {self.replacement}: rank correlation of {self.scope.scope} scores{self.scope.asked}, with |effect|: {said}"
        lines = [
            f"  {rank}. {self._at(t)}"
            for rank, t in enumerate(self.kl[: self.scope.position + 1].argsort(descending=True)[:5].tolist(), 1)
        ]
        return "\n".join([head, "  largest KL divergence (and change of the target's log-probability) in nat:", *lines])

    def _at(self, t: int) -> str:
        token = f"{visible(self.scope.str_tokens[t])!r} at {t}"
        return f"{token:22} {score_text(float(self.kl[t]), None):>9} ({float(self.log_prob[t]):+.3g})"


@documented
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
    reduction: str | Reduction | None = None,
    path: str | Path | None = None,
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    batch_size: int = BATCH,
    progress: bool | None = None,
    **options: Any,
) -> Ablation:
    """Ablate one token at a time at ``hook_embed``, and compare the effects with the scores of a scope.

    The effects on the logit and the log-probability are those of the token that the scope explains.

    Args:
        replacement: ``"zero"``; ``"mean"``, the mean embedding of the vocabulary; ``"pad"``, the padding token's; or a token,
            a string or an id (the words "zero", "mean" and "pad" by their ids).
        batch_size: the number of ablated prompts in one forward pass; if hooks are active, always one.
        frozen: ``"attn"`` holds attention patterns constant, ``"norm"`` normalisation scales. This applies to the scope; the ablated
            runs use the unchanged model.
        options: options of the scope, if it is given by name, such as ``target``. ``at`` is not allowed: tokens are ablated at
            ``hook_embed``, and the scores must be taken at the same hook point.
        {shared}

    Raises:
        InputError: the cases in which `attribute` raises it; an unknown replacement.

    Example:
        >>> import jscope_tl as js
        >>> result = js.patching.ablate(js.load_pocket_model(), "the keys to the cabinet near the doors", "fisher")
        >>> result.kl.shape
        torch.Size([9])
    """
    refuse("patching.ablate", options)
    batch_size = count("batch_size", batch_size, 1)
    setup = set_up(
        model, scope, options, fwd_hooks=fwd_hooks, reduction=reduction, path=path, gradient=gradient, frozen=frozen, chunk_size=chunk_size,
        matmul_precision=matmul_precision, progress=progress,
    )  # fmt: skip
    view, (tokens, explained) = setup.view, setup.prompt(prompt, prepend_bos, position)
    put, named = replaced_by(view, replacement)
    start = time.perf_counter()
    result = of_prompt(explain(setup, tokens, explained), prompt)
    between, passes = time.perf_counter(), Passes()
    masks = torch.eye(explained + 1, len(tokens), dtype=torch.bool, device="cpu")
    runs = partial(
        ablated_logits, view, tokens, replacement=put, position=explained, hooks=setup.settings.fwd_hooks,
        batch_size=batch_size, passes=passes,
    )  # fmt: skip
    (base,), target = runs(torch.zeros_like(masks[:1])), result.prediction.target.token
    effects = torch.cat([_effects(base, ablated, target) for ablated in runs(masks, progress=progress)], 1)
    logit, log_prob, kl = torch.nn.functional.pad(effects, (0, len(tokens) - explained - 1))
    costs = {
        "scope": Cost.of(result.provenance, between - start),
        "ablation": Cost.of(passes, time.perf_counter() - between),
    }
    return Ablation(result, logit, log_prob, kl, named, costs)


def _effects(
    base: Float[Tensor, "1 d_vocab"], ablated: Float[Tensor, "n d_vocab"], target: int
) -> Float[Tensor, "effect n"]:
    """The changes of the target's logit and log-probability, and the KL divergence."""
    log_p, log_q = base.log_softmax(-1), ablated.log_softmax(-1)
    return torch.stack(
        [ablated[:, target] - base[0, target], log_q[:, target] - log_p[0, target], divergence(log_p, log_q)]
    )
