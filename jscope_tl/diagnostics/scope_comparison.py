"""Two scopes on the same prompts: how alike their maps are, and how much longer one takes."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from jscope_tl.attribution.attribute import attribute
from jscope_tl.errors import InputError, count
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.checks import need_rows
from jscope_tl.results.files import Saved
from jscope_tl.results.ranks import spearman
from jscope_tl.scopes.base import Scope


@dataclass(frozen=True)
class ScopeComparison(Saved):
    """Two scopes, prompt by prompt: rank correlation (BOS left out), highest token in common, seconds and passes.

    Each row has the number of tokens, Spearman's correlation of the two maps, the share of the ten highest that they have in
    common, seconds of both, and the ratio of the second to the first.
    """

    scopes: tuple[str, str]
    rows: list[dict[str, Any]]

    def __post_init__(self) -> None:
        """Refuse rows that lack something, as a damaged file may hold."""
        need_rows(self.rows, ("n_tokens", "spearman", "top_10", "seconds", "other_seconds", "time_ratio"))

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each prompt."""
        return pd.DataFrame(self.rows)

    def __repr__(self) -> str:
        a, b = self.scopes
        lines = [f"{a} against {b}:"]
        lines += [
            f"  {row['n_tokens']} tokens: rank correlation {row['spearman']:.2f}, {row['top_10']:.0%} of the ten highest in "
            f"common; {row['seconds']:.2f} s against {row['other_seconds']:.2f} s, {row['time_ratio']:.1f} times"
            for row in self.rows
        ]
        return "\n".join(lines)


def compare_scopes(
    model: Any,
    prompts: Any,
    scope: str | Scope | Callable[..., Any] = "temperature",
    other: str | Scope | Callable[..., Any] = "fisher",
    *,
    repeats: int = 1,
    **how: Any,
) -> ScopeComparison:
    """How alike the maps of two scopes are on long prompts, and how much longer one takes than the other.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, in evaluation mode, on any device.
        prompts: several prompts.
        scope, other: names, scopes, or functions.
        repeats: times are the least of so many runs, after one that does not count.
        how: further keywords of `jscope_tl.attribute`, for both.

    Raises:
        InputError: as `attribute`; prompts that are one prompt, or of fewer than three tokens.

    Example:
        >>> import jscope_tl as js
        >>> js.diagnostics.compare_scopes(js.load_pocket_model(), ["29 , 30 , 31 , 32 ,"]).rows[0]["n_tokens"]
        9
    """
    if isinstance(prompts, str | Tensor | Mapping) or not isinstance(prompts, Iterable) or not (given := list(prompts)):
        raise InputError(f"prompts are one or more prompts, in a list; got {prompts!r}.")
    repeats, rows = count("repeats", repeats, 1), []
    for prompt in given:
        a, seconds = _timed(model, prompt, scope, repeats, how)
        b, other_seconds = _timed(model, prompt, other, repeats, how)
        rows.append({**_alike(a, b), "seconds": seconds, "other_seconds": other_seconds})
        rows[-1]["time_ratio"] = other_seconds / seconds
    names = [scope if isinstance(scope, str) else _named(a), other if isinstance(other, str) else _named(b)]
    return ScopeComparison((names[0], names[1]), rows)


def _named(result: Attribution) -> str:
    """The scope, with the target that it was given."""
    return result.scope + (result.asked if result.options.get("target") is not None else "")


def _timed(model: Any, prompt: Any, scope: Any, repeats: int, how: dict[str, Any]) -> tuple[Attribution, float]:
    result, times = attribute(model, prompt, scope, **how), []
    for _ in range(repeats):
        start = time.perf_counter()
        attribute(model, prompt, scope, **how)
        times.append(time.perf_counter() - start)
    return result, min(times)


def _alike(a: Attribution, b: Attribution) -> dict[str, Any]:
    if a.hook_points or b.hook_points:
        raise InputError("Maps of one hook point are compared; give at=... a single one.")
    kept = [t for t in range(a.position + 1) if t not in a.bos_positions]
    if len(kept) < 3:
        raise InputError(f"Maps are compared over three tokens or more besides BOS; this prompt has {len(kept)}.")
    k = min(10, len(kept))
    tops = [set(result.scores[kept].topk(k).indices.tolist()) for result in (a, b)]
    correlation = float(spearman(a.scores[kept].numpy(), b.scores[kept].numpy()))
    return {"n_tokens": a.position + 1, "spearman": correlation, "top_10": len(tops[0] & tops[1]) / k}
