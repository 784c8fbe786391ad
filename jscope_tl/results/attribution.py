"""`Attribution`: the scores of one prediction, at one hook point or at several."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError, count, whole
from jscope_tl.model.text import to_span
from jscope_tl.results.base import PredictedToken, Result
from jscope_tl.results.checks import need
from jscope_tl.results.restoring import LATER
from jscope_tl.results.sources import check_grouped, together
from jscope_tl.results.text import percent, score_text

MOST_ROWS = 24
"""Maximum number of rows of a map of attention heads that a figure or a table shows."""


@dataclass(frozen=True)
class Prediction:
    """The next-token distribution at the explained position: the most probable tokens, and the target with its rank.

    The ``entropy`` is in nats; it is None in files of older versions.
    """

    top: tuple[PredictedToken, ...]
    target: PredictedToken
    target_rank: int
    entropy: float | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        """Refuse values that are not a distribution."""
        probabilities = [token.probability for token in (self.target, *self.top)]
        need(all(0 <= p <= 1 for p in probabilities) and self.target_rank >= 1, "probabilities are between 0 and 1")


@dataclass(frozen=True, eq=False, kw_only=True)
class Attribution(Result):
    """Scores of every position of a prompt for one prediction.

    A score is an unsigned norm in the unit ``unit``. It is not a share of a total: scores of several
    positions do not add up, and scores in different units cannot be compared.

    Attributes:
        scores: ``[pos]``, or ``[layer, pos]`` in a layer map, ``[layer, head, pos]`` if heads have separate scores; float32 on the
            CPU; 0 after the explained position. BOS is scored like any other token.
        stderr: standard errors of estimated scores, in the shape of the scores; None for exact scores.
        prediction: the distribution that is explained.
        hook_points: the hook point of each row of a layer map; empty if scores are ``[pos]``.
        target_tokens, baseline_tokens: the tokens of a target or a baseline of several tokens, each with its probability given the
            tokens before it (``prediction.target`` has the whole target as one entry); else empty.
        tokens, str_tokens, position, scope, options, unit, basis, provenance, warnings, bos_positions, baseline: as in `Result`.
    """

    scores: Float[Tensor, "*layer pos"]
    stderr: Float[Tensor, "*layer pos"] | None
    prediction: Prediction
    hook_points: tuple[str, ...] = ()
    target_tokens: tuple[PredictedToken, ...] = field(default=(), metadata=LATER)
    baseline_tokens: tuple[PredictedToken, ...] = field(default=(), metadata=LATER)

    def __post_init__(self) -> None:
        """Refuse inconsistent fields, which a damaged file may have."""
        super().__post_init__()
        need(isinstance(self.options.get("resolved") or {}, dict), "what was resolved has names")
        need(
            all(0 <= token.probability <= 1 for token in (*self.target_tokens, *self.baseline_tokens)),
            "probabilities are between 0 and 1",
        )

    def _rows(self) -> tuple[Float[Tensor, "row pos"], Float[Tensor, "row pos"] | None]:
        scores, stderr = self.scores, self.stderr
        if not self.hook_points:
            return scores.unsqueeze(0), None if stderr is None else stderr.unsqueeze(0)
        rows = rearrange(scores, "... pos -> (...) pos")
        return rows, None if stderr is None else rearrange(stderr, "... pos -> (...) pos")

    def _labels(self) -> list[tuple[str | None, int]]:
        return [(hook_point, self.position) for hook_point in self.hook_points or (None,)]

    def _index(self) -> list[str]:
        return ["hook_point"] if self.hook_points else []

    def layer(self, which: int | str) -> "Attribution":
        """One row of a layer map as a separate result.

        Args:
            which: the number of the row (negative numbers count from the end) or its hook point.

        Raises:
            InputError: there is no such row.
        """
        n = len(self.hook_points)
        index = self.hook_points.index(which) if which in self.hook_points else whole(which)
        if index is None or not -n <= index < n:
            rows = f"0 to {n - 1} or a hook point" if n else "none: this is not a layer map"
            raise InputError(f"There is no layer {which!r} in this result; it has {rows}.")
        scores, errors = self._rows()
        stderr = None if errors is None else errors[index]
        at = replace(self.provenance, hook_point=self.hook_points[index])
        return replace(self, scores=scores[index], stderr=stderr, provenance=at, hook_points=())

    def together(
        self, spans: Sequence[tuple[int, int]]
    ) -> tuple[Float[Tensor, "*layer n"], Float[Tensor, "*layer n"] | None]:
        """Scores of groups of tokens, such as the digits of a number, and their standard errors (upper bounds).

        The score of a group is the norm of its concatenated rows, ``(Σ_t ‖C J_t‖²)^(1/2)``; for squared scores (Fisher) and scores of
        attention patterns it is the sum.

        Args:
            spans: for each group the first position and the position after the last; the groups need not cover all tokens.

        Raises:
            InputError: a span is outside the prompt; or a span has several tokens and the scores cannot be combined: those of
                ``reduction="dot"``, because their signs are not kept (see `jscope_tl.attribute_text`), and of ``spectral``.

        Example:
            >>> import jscope_tl as js
            >>> result = js.attribute(js.load_pocket_model(), "the keys to the cabinet", "log_prob")
            >>> scores, _ = result.together([(1, 3), (3, 6)])
            >>> float(scores.square().sum()) - float(result.scores[1:].square().sum()) < 1e-6
            True
        """
        groups = [range(*to_span(span, len(self.str_tokens), "prompt")) for span in spans]
        if any(len(group) > 1 for group in groups):
            check_grouped(self.scope, self.options, signed=False)
        if not groups:
            raise InputError(
                "There are no spans; pass a list of one or more (first position, position after the last)."
            )
        return together(self.scores, self.stderr, groups, self.unit)

    def strongest(self, n: int = MOST_ROWS) -> "Attribution":
        """The ``n`` rows of a map with the largest sum of scores (BOS excluded), strongest first, as a separate map.

        This is meant for maps of attention heads, of which models have hundreds.

        Raises:
            InputError: the result is not a map, or ``n`` is not 1 or more.

        Example:
            >>> import jscope_tl as js
            >>> heads = js.attribute(js.load_pocket_model(), "the keys to the cabinet", "log_prob", at="pattern", per="head")
            >>> tuple(heads.scores.shape), tuple(heads.strongest(3).scores.shape)
            ((4, 4, 6), (3, 6))
        """
        if not self.hook_points:
            raise InputError(
                "There are no rows to choose from: this is not a layer map. Use top() for its highest scores."
            )
        scores, errors = self._rows()
        counted = [t for t in range(len(self.str_tokens)) if t not in self.bos_positions]
        kept = scores[:, counted].sum(1).argsort(descending=True, stable=True)[: count("n", n, 1)].tolist()
        stderr = None if errors is None else errors[kept]
        return replace(self, scores=scores[kept], stderr=stderr, hook_points=tuple(self.hook_points[i] for i in kept))

    @property
    def of_heads(self) -> bool:
        """Whether heads have separate scores."""
        return self.scores.ndim > 2

    def headline(self) -> str:
        """Scope, explained position, target, baseline, hook point, and prepended token, in one line."""
        where = f"position {self.position} ({self.str_tokens[self.position]!r})"
        return f"{self.scope} scope of the prediction at {where}{self.asked}, at {self.provenance.hook_point}{self.prepended}"

    @property
    def asked(self) -> str:
        """``, target ' are' against ' is'``; empty if the scope explains no single token."""
        return self._asked({self.prediction.target.str_token})

    def prediction_line(self, k: int = 3) -> str:
        """The ``k`` most probable next tokens and the target's probability."""
        top = ", ".join(f"{c.str_token!r} {percent(c.probability)}" for c in self.prediction.top[:k])
        target = self.prediction.target
        if self.target_tokens:
            says = " against ".join(
                _span_line(tokens) for tokens in (self.target_tokens, self.baseline_tokens) if tokens
            )
        else:
            says = f"{target.str_token!r} {percent(target.probability)} (rank {self.prediction.target_rank})"
        return f"predicts {top}; target {says}"

    def resolved_line(self) -> str:
        """The choices that were made automatically, in one line; empty if there are none."""
        resolved = self.options.get("resolved") or {}
        return "resolved: " + ", ".join(f"{key} = {value!r}" for key, value in resolved.items()) if resolved else ""

    def _strongest_by_row(self, most: int = 12) -> list[str]:
        """Lines of text for ``most`` rows: layers spread evenly from the first to the last, or the strongest heads."""
        n = len(self.hook_points)
        even = sorted({round(i * (n - 1) / (most - 1)) for i in range(most)}) if n > most else list(range(n))
        chosen = self.strongest(most) if self.of_heads and n > most else self
        rows = list(zip(chosen.hook_points, chosen.by_row(), strict=True))
        said = [
            f"  {name}: {', '.join(f'{t.str_token!r} at {t.position}: {score_text(t.score, t.stderr)}' for t in row)}"
            for name, row in (rows if chosen is not self else (rows[i] for i in even))
        ]
        of = f"the {most} strongest of {n} heads" if self.of_heads else f"{most} of {n} layers"
        return [*said, f"  ({of}; by_row() has all)"] if n > most else said

    def __repr__(self) -> str:
        lines = [f"Attribution: {self.headline()}", f"  {self.prediction_line()}", f"  score in {self.unit}:"]
        lines += self._strongest_by_row() if self.hook_points else self._strongest(5)
        lines += [f"  {self.resolved_line()}"] if self.resolved_line() else []
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])


def _span_line(tokens: tuple[PredictedToken, ...]) -> str:
    """A span with its probability, and the probabilities of its tokens."""
    each = " ".join(f"{token.str_token!r} {percent(token.probability)}" for token in tokens)
    text = "".join(token.str_token for token in tokens)
    return f"{text!r} {percent(prod(token.probability for token in tokens))} ({len(tokens)} token{'s' * (len(tokens) > 1)}: {each})"
