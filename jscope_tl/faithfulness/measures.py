"""Measures of faithfulness: known causes, leave-one-out ranking, and the area over the perturbation curve.

To add a measure, add a `Measure` to `MEASURES`: then `evaluate` accepts its name, and ``jscope faithfulness`` prints its column.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from jscope_tl.engine.state import divergence
from jscope_tl.faithfulness.cases import Case
from jscope_tl.faithfulness.protocol import Protocol
from jscope_tl.model.prompts import to_id
from jscope_tl.model.running import Passes
from jscope_tl.model.turns import cached_property
from jscope_tl.model.view import ModelView
from jscope_tl.patching.ablated_runs import ablated_logits
from jscope_tl.results.ranks import kendall, spearman

BATCH = 32
FEWEST_SWAPPED = 5
"""The fewest swapped words for a rank correlation."""
Scores = dict[str, Float[Tensor, "pos"]]
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Column:
    """One of the numbers of a measure: its name, which direction is better (1 higher, -1 lower, 0 neither), and its meaning."""

    name: str
    better: int
    description: str


@dataclass(frozen=True)
class Question:
    """The input of a measure for one prompt: the model, the case, the protocol, and the model's most probable next token."""

    view: ModelView
    case: Case
    protocol: Protocol
    argmax: int

    def logits(self, masks: Bool[Tensor, "n pos"]) -> Float[Tensor, "n d_vocab"]:
        """Next-token logits with the tokens of each mask ablated."""
        case, put = self.case, _put(self.view, self.protocol)
        return torch.cat([*ablated_logits(self.view, case.tokens, masks, put, case.position, [], BATCH, Passes())])

    @cached_property
    def leave_one_out(self) -> Float[np.ndarray, "n"]:
        """``KL(p ‖ p_ablated)`` for the ablation of each ranked token alone; it is the same for all methods."""
        kept = self.case.candidates(self.protocol.bos)
        masks = torch.zeros(len(kept) + 1, len(self.case.tokens), dtype=torch.bool, device="cpu")
        masks[torch.arange(len(kept), device="cpu"), kept] = True  # the last row ablates nothing
        logits = self.logits(masks)
        log_q, log_p = logits[:-1].log_softmax(-1), logits[-1].log_softmax(-1)
        return divergence(log_p, log_q).numpy()


@dataclass(frozen=True)
class Measure:
    """A measure of faithfulness, which is applied to every method on every prompt.

    Attributes:
        name: the name under which `evaluate` accepts it.
        title: the title of its column in ``jscope faithfulness``.
        quoted: the name of the number in that column.
        columns: all numbers of the measure.
        needs_cause: whether it applies only to prompts with a known cause. If so, methods explain the correct token, else the token
            that the protocol chooses.
        function: a function from the question and the scores of every method to a row of numbers for each method.
        needs_swaps: whether it applies only to prompts whose words were swapped for others.
    """

    name: str
    title: str
    quoted: str
    columns: tuple[Column, ...]
    needs_cause: bool
    function: Callable[[Question, Scores], Rows]
    needs_swaps: bool = False

    def fits(self, case: Case) -> bool:
        """Whether the measure applies to a prompt."""
        return bool(case.causes or not self.needs_cause) and bool(case.swaps or not self.needs_swaps)


def known_cause(question: Question, scores: Scores) -> Rows:
    """Whether the highest score is on a cause. Tokens with equal scores share the hit, and have their mean rank."""
    kept = question.case.candidates(question.protocol.bos)
    inner = [t for t in kept if t != question.case.position]
    is_cause = torch.tensor([t in question.case.causes for t in range(len(question.case.tokens))], device="cpu")
    return {
        name: _found(values[kept], is_cause[kept]) | {"top_1_without_last": _hit(values[inner], is_cause[inner])}
        for name, values in scores.items()
    }


def _hit(values: Float[Tensor, "n"], is_cause: Bool[Tensor, "n"]) -> float:
    """The share of causes among the tokens with the highest score; NaN if no cause is ranked."""
    return float(is_cause[values == values.max()].double().mean()) if is_cause.any() else float("nan")


def _found(values: Float[Tensor, "n"], is_cause: Bool[Tensor, "n"]) -> dict[str, float]:
    best = values[is_cause].max()
    rank = 1 + float((values > best).sum()) + (float((values == best).sum()) - 1) / 2
    whole = float(values.sum())
    share = float(values[is_cause].sum()) / whole if whole else float(is_cause.double().mean())
    return {"top_1": _hit(values, is_cause), "reciprocal_rank": 1 / rank, "share": share}


def leave_one_out(question: Question, scores: Scores) -> Rows:
    """Compare the scores with ``KL(p ‖ p_ablated)`` of the whole distribution, where one token at a time is ablated."""
    kept, kl = question.case.candidates(question.protocol.bos), question.leave_one_out
    return {name: _ranked(values[kept].numpy(), kl) for name, values in scores.items()}


def _ranked(values: Float[np.ndarray, "n"], kl: Float[np.ndarray, "n"]) -> dict[str, float]:
    standing = [100 * (np.sum(kl > kl[i]) + (np.sum(kl == kl[i]) - 1) / 2) / len(kl) for i in _highest(values)]
    return {
        "percentile": float(np.mean(standing)),
        "in_top_5": float(np.mean([place <= 5 for place in standing])),
        "spearman": float(spearman(values, kl)),
        "kendall": kendall(values, kl),
        "top_10_overlap": float((_in_top(values) * _in_top(kl)).sum() / _in_top(kl).sum()),
    }


def _in_top(values: Float[np.ndarray, "n"], fraction: float = 0.1) -> Float[np.ndarray, "n"]:
    """1 for the highest values (at least one), 0 for others; values that are tied at the threshold share the remaining places."""
    places = max(1, int(fraction * len(values) + 1e-9))
    edge = np.sort(values)[-places]
    return (values > edge) + (values == edge) * (places - np.sum(values > edge)) / np.sum(values == edge)


def _highest(values: Float[np.ndarray, "n"]) -> Sequence[int]:
    return np.flatnonzero(values == values.max()).tolist()


def swap(question: Question, scores: Scores) -> Rows:
    """Compare the scores with the mean of ``KL(p ‖ p_swapped)`` over a word's swaps for other words of its kind."""
    swapped = [(t, kl) for t, kl in question.case.swaps if t in question.case.candidates(question.protocol.bos)]
    places, kl = [t for t, _ in swapped], np.array([kl for _, kl in swapped])
    enough = len(swapped) >= FEWEST_SWAPPED
    return {
        name: {"spearman": float(spearman(values[places].numpy(), kl)) if enough else float("nan")}
        for name, values in scores.items()
    }


def aopc(question: Question, scores: Scores) -> Rows:
    """Area over the perturbation curve (Samek et al. 2017): growing fractions of the highest-scored tokens are ablated together."""
    case, protocol = question.case, question.protocol
    kept = torch.tensor(case.candidates(protocol.bos), device="cpu")
    counts = [protocol.count(fraction, len(kept)) for fraction in protocol.fractions]
    masks = [_masks(values, kept, counts) for values in scores.values()]
    unique, back = torch.cat([torch.zeros_like(masks[0][:1]), *masks]).unique(dim=0, return_inverse=True)
    evaluated = protocol.token(protocol.evaluated, case.target, question.argmax)
    followed = question.logits(unique).log_softmax(-1)[:, evaluated]
    curves = rearrange(
        followed[back[1:]] - followed[back[0]], "(method fraction) -> method fraction", method=len(scores)
    )
    x = [count / len(kept) for count in counts] if protocol.over == "width" else protocol.fractions
    return {name: _area(curve.numpy(), np.array(x), protocol) for name, curve in zip(scores, curves, strict=True)}


def _masks(values: Float[Tensor, "pos"], kept: Tensor, counts: Sequence[int]) -> Bool[Tensor, "fraction pos"]:
    # Tokens with equal scores are in random order, which is the same for all methods.
    shuffled = kept[torch.randperm(len(kept), generator=torch.Generator("cpu").manual_seed(len(kept)), device="cpu")]
    order = shuffled[values[shuffled].argsort(descending=True, stable=True)]
    masks = torch.zeros(len(counts), len(values), dtype=torch.bool, device="cpu")
    for mask, count in zip(masks, counts, strict=True):
        mask[order[:count]] = True
    return masks


def _area(
    curve: Float[np.ndarray, "fraction"], x: Float[np.ndarray, "fraction"], protocol: Protocol
) -> dict[str, float]:
    area = float(np.sum((curve[1:] + curve[:-1]) / 2 * np.diff(x)))
    width = float(x[-1] - x[0]) if protocol.over == "width" else 1.0
    points = {f"at_{fraction:g}": float(value) for fraction, value in zip(protocol.fractions, curve, strict=True)}
    return {"aopc": area / width if width else float(curve[0]), **points}


def _put(view: ModelView, protocol: Protocol) -> str | int:
    return to_id(view, protocol.filler, view.d_vocab) if protocol.ablation == "filler" else protocol.ablation


KNOWN_CAUSE = (
    Column("top_1", 1, "the highest score is on a cause"),
    Column("top_1_without_last", 1, "the highest score, the last token excluded, is on a cause"),
    Column("reciprocal_rank", 1, "1 / rank of the best-ranked cause"),
    Column("share", 1, "share of all scores that is on the causes"),
)
LEAVE_ONE_OUT = (
    Column(
        "percentile", -1, "rank of the highest-scored token among single ablations, 0 the strongest, 100 the weakest"
    ),
    Column("in_top_5", 1, "the highest-scored token is among the strongest 5 % of single ablations"),
    Column("spearman", 1, "rank correlation of scores and KL divergences"),
    Column("kendall", 1, "Kendall's tau-b of scores and KL divergences"),
    Column(
        "top_10_overlap", 1, "share of the strongest 10 % of single ablations that is among the highest 10 % of scores"
    ),
)
SWAP = (
    Column("spearman", 1, "rank correlation of scores and KL divergences of swaps, if five words or more were swapped"),
)
AOPC = (Column("aopc", -1, "change of the log-probability when the highest-scored tokens are ablated, over the curve"),)

MEASURES = {
    measure.name: measure
    for measure in (
        Measure("known_cause", "cause on top", "top_1", KNOWN_CAUSE, True, known_cause),
        Measure("leave_one_out", "LOO-KL Spearman", "spearman", LEAVE_ONE_OUT, False, leave_one_out),
        Measure("swap", "swap-KL Spearman", "spearman", SWAP, True, swap, needs_swaps=True),
        Measure("aopc", "AOPC (less is better)", "aopc", AOPC, False, aopc),
    )
}
"""The measures by name; `jscope_tl.faithfulness.evaluate` describes them."""
