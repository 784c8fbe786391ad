"""Attention sinks: the share of the scores on the first tokens, and whether the prediction needs these tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jscope_tl.engine.state import divergence
from jscope_tl.errors import InputError, count
from jscope_tl.model.running import Passes, logits_of, undisturbed
from jscope_tl.model.view import ModelView
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.checks import need_rows
from jscope_tl.results.files import Saved

CONTROLS = 8


@dataclass(frozen=True)
class MaskEffect:
    """The effect on a prediction of hiding some tokens from all later ones.

    ``kl`` is ``KL(p ‖ p_masked)`` in nats, ``log_prob`` the change of the target's log-probability. ``control_kl`` is the mean divergence
    when the same number of other tokens is hidden, drawn at random (NaN if there are not enough). All are NaN if there is no token to hide.
    """

    kl: float
    log_prob: float
    control_kl: float


@dataclass(frozen=True, eq=False)
class Sink(Saved):
    """The share of the scores on the first tokens, for each result.

    The sum of scores has no meaning of its own: a share describes a map, and not how much of the prediction is explained.

    Attributes:
        rows: for each result its scope, the number of tokens up to the explained one, the share on BOS, the share on the first tokens,
            the share of the first tokens if all scores were equal, and, if a model was given, the effects of hiding these tokens.
        first: how many tokens count as the first ones, including BOS.
    """

    rows: list[dict[str, Any]]
    first: int

    def __post_init__(self) -> None:
        """Refuse rows without one of the columns, as in a damaged file."""
        effects = [f"{of}_{f.name}" for of in ("first", "bos") for f in fields(MaskEffect)]
        measured = effects if self.rows and {*effects} & {*self.rows[0]} else []
        need_rows(self.rows, ("n_tokens", "bos_share", "first_share", "even_share", *measured), texts=("scope",))

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each result."""
        return pd.DataFrame(self.rows)

    def summary(self) -> pd.DataFrame:
        """Means over the results of each scope, and the number of results."""
        frame = self.to_dataframe()
        means = frame.groupby("scope", sort=False).mean(numeric_only=True)
        return means.assign(n=frame.groupby("scope", sort=False).size())

    def __repr__(self) -> str:
        lines = [f"Sink: shares of the scores on BOS and on the first {self.first} tokens, means over prompts"]
        for scope, row in self.summary().iterrows():
            bos = "no BOS" if np.isnan(row.bos_share) else f"BOS {row.bos_share:.1%}"
            line = f"  {scope:<20} {bos}, first {self.first} {row.first_share:.1%} "
            line += f"(if all scored alike {row.even_share:.1%}), n = {row.n:.0f}"
            if "first_kl" in row and not np.isnan(row.first_kl):
                line += f"; hiding them moves the prediction by {row.first_kl:.2g} nat"
                line += "" if np.isnan(row.first_control_kl) else f", others {row.first_control_kl:.2g}"
            lines.append(line)
        return "\n".join(lines)


def sink(results: Any, model: Any = None, *, first: int = 5, seed: int = 0) -> Sink:
    """The share of each map on BOS and on the first tokens, and the effect of hiding these tokens on the prediction.

    Later tokens cannot attend to hidden ones: the columns of hidden tokens in every attention pattern are set to 0, and the rows are
    rescaled to sum to 1, which is equivalent to a mask before the softmax. The control hides the same number of other tokens, drawn at
    random.

    Args:
        results: an `Attribution` or several (`js.attribute_batch` yields them), for any prompts and scopes.
        model: the model of these results, to measure the effect of hiding tokens; None: the effect is not measured.
        first: the number of first tokens, including BOS.
        seed: the seed for the control tokens.

    Raises:
        InputError: no results, layer maps, or a model that has no attention patterns.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompts = [prompt.text for prompt in js.pocket_prompts("detective", 4)]
        >>> found = js.diagnostics.sink(js.attribute_batch(model, prompts, "temperature"), model)
        >>> len(found.rows)
        4
    """
    n_first, seed = count("first", first, 1), count("seed", seed, 0)
    given = [results] if isinstance(results, Attribution) else results
    shown = list(given) if isinstance(given, Iterable) else []
    if not shown or any(not isinstance(result, Attribution) or result.hook_points for result in shown):
        raise InputError("sink needs attributions of single hook points, one or more, as js.attribute returns them.")
    rows, known = [_row(result, n_first) for result in shown], dict[tuple[Any, ...], dict[str, float]]()
    if model is None:
        return Sink(rows, n_first)
    view = ModelView(model)
    others = sorted({result.provenance.model_name for result in shown} - {view.name})
    if others:
        raise InputError(
            f"These results come from the model {others[0]!r}, and the given model is {view.name!r}. Give the model of the results."
        )
    for row, result in zip(rows, shown, strict=True):
        same = (tuple(result.tokens.tolist()), result.position, result.prediction.target.token)
        if same not in known:  # several scopes on one prompt share these effects
            known[same] = _effects(view, result, n_first, seed + len(known))
        row |= known[same]
    return Sink(rows, n_first)


def _row(result: Attribution, first: int) -> dict[str, Any]:
    n = result.position + 1
    scores = result.scores[:n].double()
    total = float(scores.sum()) or 1.0
    bos = [t for t in result.bos_positions if t < n]
    return {
        "scope": result.scope,
        "n_tokens": n,
        "bos_share": float(scores[bos].sum()) / total if bos else float("nan"),
        "first_share": float(scores[:first].sum()) / total,
        "even_share": min(first, n) / n,
    }


def _effects(view: ModelView, result: Attribution, first: int, seed: int) -> dict[str, float]:
    """The effects of hiding BOS, and the first tokens."""
    early = list(range(min(first, result.position)))
    bos = [t for t in result.bos_positions if t < result.position]
    effects = {name: _effect(view, result, t, seed) for name, t in (("first", early), ("bos", bos))}
    return {f"{name}_{key}": value for name, effect in effects.items() for key, value in vars(effect).items()}


def _effect(view: ModelView, result: Attribution, hidden: list[int], seed: int) -> MaskEffect:
    if not hidden:
        return MaskEffect(float("nan"), float("nan"), float("nan"))
    others = [t for t in range(result.position) if t not in hidden]
    rng = np.random.default_rng(seed)
    enough = len(hidden) <= len(others)
    controls = [rng.choice(others, len(hidden), replace=False).tolist() for _ in range(CONTROLS if enough else 0)]
    logits = _masked_logits(view, result.tokens[: result.position + 1], [[], hidden, *controls])
    log_p, log_q, *log_controls = logits.log_softmax(-1)
    if torch.equal(logits[0], logits[1]):
        raise InputError(
            f"Hiding tokens in the attention patterns of {view.name} changes nothing, because it does not use hook_pattern in its forward pass. "
            "Load it with attn_implementation='eager', or leave the model out."
        )
    kl = [float(divergence(log_p, masked)) for masked in (log_q, *log_controls)]
    target = result.prediction.target.token
    return MaskEffect(kl[0], float(log_q[target] - log_p[target]), float(np.mean(kl[1:])) if controls else float("nan"))


def _masked_logits(
    view: ModelView, tokens: Int[Tensor, "pos"], sets: Sequence[Sequence[int]]
) -> Float[Tensor, "n d_vocab"]:
    """The explained prediction with each set of positions hidden, in batches."""
    names = view.points_showing("hook_pattern")
    if not names:
        raise InputError(f"{view.name} has no attention patterns ('hook_pattern'), so no token can be hidden in them.")
    hidden = torch.zeros(len(sets), len(tokens), dtype=torch.bool, device="cpu")
    for row, places in zip(hidden, sets, strict=True):
        row[list(places)] = True
    found = []
    for some in hidden.split(view.prompts_at_once(len(tokens), [])):
        with undisturbed(view, [], [(name, partial(_hide, some)) for name in names]):
            rows = repeat(tokens.to(view.input_device), "pos -> n pos", n=len(some))
            found.append(logits_of(view, rows, Passes())[:, -1].double().cpu())
    return torch.cat(found)


def _hide(
    hidden: Bool[Tensor, "n src"], pattern: Float[Tensor, "n head dest src"], hook: Any = None
) -> Float[Tensor, "n head dest src"]:
    """Attention patterns in which hidden tokens get attention only from themselves, with rows rescaled to sum to 1."""
    itself = torch.eye(pattern.shape[-1], dtype=torch.bool, device=pattern.device)
    seen = ~rearrange(hidden.to(pattern.device), "n src -> n 1 1 src") | itself
    kept = torch.where(seen, pattern, 0.0)
    whole_row = kept.sum(-1, keepdim=True)
    # A row whose attention is on hidden tokens only attends to itself.
    scaled = kept / whole_row.clamp_min(torch.finfo(pattern.dtype).tiny)
    return torch.where(whole_row > 0, scaled, itself.to(pattern))
