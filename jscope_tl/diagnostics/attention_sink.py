"""How much of a score the first tokens have, and whether the prediction needs them."""

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
    """What hiding some tokens from all later ones does to a prediction.

    ``kl`` is ``KL(p ‖ p_masked)`` in nats, ``log_prob`` the change of the target's log-probability, ``control_kl`` the mean
    divergence where as many other tokens are hidden, drawn at random (NaN where there are not enough). All are NaN where there is nothing to hide.
    """

    kl: float
    log_prob: float
    control_kl: float


@dataclass(frozen=True, eq=False)
class Sink(Saved):
    """Shares of scores on the first tokens, result by result.

    Scores do not add up to anything; a share says how a map looks, not how much of the prediction is explained.

    Attributes:
        rows: for each result its scope, number of tokens up to the explained one, share on BOS, share on the first tokens,
            the share that these would have if all scored alike, and, where a model was given, effects of hiding them.
        first: how many tokens the first ones are, BOS included.
    """

    rows: list[dict[str, Any]]
    first: int

    def __post_init__(self) -> None:
        """Refuse rows that lack something, as a damaged file may hold."""
        effects = [f"{of}_{f.name}" for of in ("first", "bos") for f in fields(MaskEffect)]
        measured = effects if self.rows and {*effects} & {*self.rows[0]} else []
        need_rows(self.rows, ("n_tokens", "bos_share", "first_share", "even_share", *measured), texts=("scope",))

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each result."""
        return pd.DataFrame(self.rows)

    def summary(self) -> pd.DataFrame:
        """Means over the results of each scope, and their number."""
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
    """How much of each map lies on BOS and on the first tokens, and what hiding these does to the prediction.

    Hidden tokens get no attention from later ones: their columns of every attention pattern are set to 0 and the rows
    scaled back to 1, as a mask before the softmax would do. Other tokens, as many and drawn at random, are the control.

    Args:
        results: an `Attribution` or several (`js.attribute_batch` yields them), of any prompts and scopes.
        model: the model that they are of, to measure what hiding does; None leaves that out.
        first: how many of the first tokens, BOS included.
        seed: of the control tokens.

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
        raise InputError("sink takes attributions of single hook points, one or more, as js.attribute returns them.")
    rows, known = [_row(result, n_first) for result in shown], dict[tuple[Any, ...], dict[str, float]]()
    if model is None:
        return Sink(rows, n_first)
    view = ModelView(model)
    others = sorted({result.provenance.model_name for result in shown} - {view.name})
    if others:
        raise InputError(
            f"These results are of {others[0]!r}, the model given is {view.name!r}. Give the model that they are of."
        )
    for row, result in zip(rows, shown, strict=True):
        same = (tuple(result.tokens.tolist()), result.position, result.prediction.target.token)
        if same not in known:  # of several scopes on one prompt
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
    """Of hiding BOS, and the first tokens."""
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
            f"Hiding tokens in the attention patterns that {view.name} shows changes nothing: it computes past them. Load it with "
            "attn_implementation='eager', or leave the model out."
        )
    kl = [float(divergence(log_p, masked)) for masked in (log_q, *log_controls)]
    target = result.prediction.target.token
    return MaskEffect(kl[0], float(log_q[target] - log_p[target]), float(np.mean(kl[1:])) if controls else float("nan"))


def _masked_logits(
    view: ModelView, tokens: Int[Tensor, "pos"], sets: Sequence[Sequence[int]]
) -> Float[Tensor, "n d_vocab"]:
    """The explained prediction with each set of positions hidden, side by side."""
    names = view.points_showing("hook_pattern")
    if not names:
        raise InputError(
            f"{view.name} shows no attention patterns ('hook_pattern'), so no token can be hidden in them."
        )
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
    """Attention of every token to the hidden ones shared out among the others; each still sees itself."""
    itself = torch.eye(pattern.shape[-1], dtype=torch.bool, device=pattern.device)
    seen = ~rearrange(hidden.to(pattern.device), "n src -> n 1 1 src") | itself
    kept = torch.where(seen, pattern, 0.0)
    whole_row = kept.sum(-1, keepdim=True)
    # A row whose attention lay on hidden tokens alone attends to itself.
    scaled = kept / whole_row.clamp_min(torch.finfo(pattern.dtype).tiny)
    return torch.where(whole_row > 0, scaled, itself.to(pattern))
