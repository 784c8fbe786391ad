"""Two scopes on the same prompts: how similar their scores are, and how much longer one takes."""

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
    """The similarity and the times of two scopes for each prompt.

    Attributes:
        scopes: the names of the two scopes.
        rows: for each prompt the number of tokens (``n_tokens``), Spearman's correlation of the two sets of scores without BOS
            (``spearman``), the share of their ten highest tokens that they have in common (``top_10``), the times of the first and the
            second scope (``seconds``, ``other_seconds``), and the second time divided by the first (``time_ratio``).
    """

    scopes: tuple[str, str]
    rows: list[dict[str, Any]]

    def __post_init__(self) -> None:
        """Refuse rows without one of the columns, as in a damaged file."""
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
    """Compare two scopes on the same prompts: how similar their scores are, and how much longer one takes than the other.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, in evaluation mode, on any device.
        prompts: a list of prompts.
        scope, other: the two scopes, each as a name, a scope object, or a function.
        repeats: each time is the shortest of this number of runs, after one warm-up run.
        how: further keywords of `jscope_tl.attribute`, for both scopes.

    Raises:
        InputError: the cases in which `attribute` raises it; a single prompt instead of a list; a prompt of fewer than three tokens.

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
    """The name of the scope, with its target if that was given."""
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
        raise InputError("Only scores of a single hook point can be compared; give one hook point as at=.")
    kept = [t for t in range(a.position + 1) if t not in a.bos_positions]
    if len(kept) < 3:
        raise InputError(f"The comparison needs three tokens or more besides BOS; this prompt has {len(kept)}.")
    k = min(10, len(kept))
    tops = [set(result.scores[kept].topk(k).indices.tolist()) for result in (a, b)]
    correlation = float(spearman(a.scores[kept].numpy(), b.scores[kept].numpy()))
    return {"n_tokens": a.position + 1, "spearman": correlation, "top_10": len(tops[0] & tops[1]) / k}
