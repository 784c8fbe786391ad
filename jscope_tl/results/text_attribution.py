"""`TextAttribution`: scores of the prompt's tokens, and of the answer so far, for each token of an answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError, count, whole
from jscope_tl.model.text import Text, found_in, to_span
from jscope_tl.model.turns import cached_property
from jscope_tl.results.attribution import Prediction
from jscope_tl.results.base import Result
from jscope_tl.results.checks import need
from jscope_tl.results.sources import BY, Segment, Source, check_grouped, sources_of, to_segments, together
from jscope_tl.results.text import percent, score_text, shortened

SHOWN = 8
"""Number of rows in the printed form of a result."""


@dataclass(frozen=True)
class Span:
    """Tokens of the continuation that are explained together, as one row.

    Attributes:
        start, stop: the first token and the token after the last, counted from the beginning of the continuation.
        text: the text of the tokens.
        log_prob: the log-probability of the whole span, in nats.
    """

    start: int
    stop: int
    text: str
    log_prob: float

    @property
    def probability(self) -> float:
        """The probability of the span given the text before it."""
        return exp(self.log_prob)


@dataclass(frozen=True)
class ScoredSource:
    """The score of one source for one row."""

    source: Source
    score: float
    stderr: float | None
    row: int


@dataclass(frozen=True, eq=False, kw_only=True)
class TextAttribution(Result):
    """Scores of a prompt and of the answer so far, for every token of an answer or for spans of it.

    Row ``i`` explains ``rows[i]``; tokens that are not before it score 0. Scores of one row can be compared with each other; scores of
    two rows only as far as the predictions are comparable.

    Attributes:
        token_scores: ``[out, pos]``, one row for each explained span and one column for each token, float32 on the CPU, unsigned.
        token_stderr: standard errors of estimated scores; None if all are exact.
        signed: with ``reduction="dot"`` and one cotangent, ``C J_t x_t`` with its sign, which can be summed over tokens; else None.
        rows: the span that each row explains.
        predictions: for every token of the continuation, the distribution that predicts it.
        text: the place of every token in the text, and its message.
        by: how tokens are grouped into `sources`: one of `BY`, or ``"segments"``.
        segments: the segments, in order.
        continued: a description of where the continuation comes from.
        tokens, str_tokens, position, scope, options, unit, basis, provenance, warnings, bos_positions, baseline: as in `Result`, of
            prompt and continuation together.
    """

    token_scores: Float[Tensor, "out pos"]
    token_stderr: Float[Tensor, "out pos"] | None
    signed: Float[Tensor, "out pos"] | None
    rows: tuple[Span, ...]
    predictions: tuple[Prediction, ...]
    text: Text
    by: str
    segments: tuple[Segment, ...]
    continued: str

    def __post_init__(self) -> None:
        """Refuse inconsistent fields, which a damaged file may have."""
        super().__post_init__()
        n, text = len(self.str_tokens), self.text
        need(
            len(text.offsets) == len(text.roles) == len(text.messages) == n and 0 < text.n_prompt < n,
            f"there are {n} places in the text",
        )
        ends = [end for offset in text.offsets for end in offset]
        need(all(0 <= a <= b <= len(text.string) for a, b in text.offsets) and ends[0] >= 0, "offsets are in the text")
        need(len(self.predictions) == n - text.n_prompt, "every token of the continuation has its prediction")
        need(
            len(self.rows) > 0
            and all(0 <= r.start < r.stop <= n - text.n_prompt and r.log_prob <= 0 for r in self.rows),
            "rows are spans of the continuation",
        )
        need(
            self.signed is None or self.signed.shape == self.token_scores.shape,
            "signed scores have the shape of scores",
        )
        need(self.signed is None or bool(self.signed.isfinite().all()), "signed scores are finite")
        need(
            self.by in (*BY, "segments") and bool(self.segments) == (self.by == "segments"),
            "sources are of a known kind",
        )
        need(all(s.end <= len(text.string) for s in self.segments), "segments are in the text")

    def _rows(self) -> tuple[Float[Tensor, "row pos"], Float[Tensor, "row pos"] | None]:
        return self.token_scores, self.token_stderr

    def _labels(self) -> list[tuple[str | None, int]]:
        return [(None, self.text.n_prompt + row.stop - 2) for row in self.rows]

    def _index(self) -> list[str]:
        return ["explained"]

    @cached_property
    def sources(self) -> list[Source]:
        """The sources that are scored, in the order of the columns of ``scores``."""
        return sources_of(self.text, self.str_tokens, self.by, self.segments)

    @cached_property
    def scores(self) -> Float[Tensor, "out src"]:
        """``[out, src]``: a row for each of ``rows``, a column for each of `sources`.

        For norms of rows ``C J_t``, the score of a source of several tokens is the norm of their concatenated rows,
        ``(Σ_t ‖C J_t‖²)^(1/2)``, which does not depend on how the text is split into tokens. For squared norms, such as Fisher's trace, it
        is their sum. For ``"dot"`` it is the absolute value of the sum, which is the effect of scaling all vectors together.
        """
        if self.signed is not None:
            return torch.stack([self.signed[:, list(source.positions)].sum(1) for source in self.sources], 1).abs()
        return self._together[0]

    @cached_property
    def stderr(self) -> Float[Tensor, "out src"] | None:
        """Standard errors of ``scores``; for sources of several tokens upper bounds, because their errors are not independent."""
        return self._together[1]

    @cached_property
    def _together(self) -> tuple[Float[Tensor, "out src"], Float[Tensor, "out src"] | None]:
        groups = [source.positions for source in self.sources]
        return together(self.token_scores, self.token_stderr, groups, self.unit)

    def grouped(self, by: Any) -> "TextAttribution":
        """The same scores, grouped into other sources.

        Args:
            by: ``"token"``, ``"word"``, ``"sentence"``, ``"line"``, ``"message"``, or segments of your own: a dictionary from names to
                ``(start, end)`` in ``text.string``, or a list of such pairs or of texts that occur once.

        Raises:
            InputError: ``by`` is unknown; or the scores of several tokens cannot be combined.

        Example:
            >>> import jscope_tl as js
            >>> result = js.attribute_text(js.load_pocket_model(), "the keys to the cabinet . the key", " is")
            >>> [source.text for source in result.grouped("sentence").sources]
            ['<bos>', 'the keys to the cabinet .', 'the key', 'is']
        """
        name, segments = to_segments(by, self.text.string)
        if name != "token":
            check_grouped(self.scope, self.options, self.signed is not None)
        return spannable(replace(self, by=name, segments=segments), getattr(self, "_spanner", None))

    def span(self, start: int | str, stop: int | None = None) -> "TextAttribution":
        """Explain a span of the continuation as one row: the gradient of the explained quantity (for ``log_prob``, log-probability), summed.

        This takes a forward pass and one backward row (for Fisher as many rows as its options specify).

        Args:
            start: the first token, counted from 0 at the start of the continuation; or a text that occurs once in it.
            stop: the token after the last.

        Raises:
            InputError: the span is outside the continuation, or this result was loaded from a file and has no model.

        Example:
            >>> import jscope_tl as js
            >>> result = js.attribute_text(js.load_pocket_model(), "the keys near", " the door are old")
            >>> result.span(" the door").rows[0].text
            ' the door'
        """
        spanner: Spanner | None = getattr(self, "_spanner", None)
        where = self.find(start) if isinstance(start, str) else to_span((start, stop), len(self.predictions))
        if spanner is None:
            raise InputError(
                "This result comes from a file, which has no model to explain other spans with. Call js.attribute_text again, with "
                "spans=[...]."
            )
        return spannable(spanner(self, [where]), spanner)

    def find(self, text: str) -> tuple[int, int]:
        """The place of a text in the continuation, as the first token and the token after the last.

        Raises:
            InputError: the text does not occur or occurs several times, or it begins or ends within a token.
        """
        return found_in(self.str_tokens[self.text.n_prompt :], text)

    def hidden(self, source: Source) -> bool:
        """Whether lists and figures omit a source by default: text of the chat template, or BOS."""
        return source.is_template or set(source.positions) <= set(self.bos_positions)

    def top(self, k: int = 5, row: int | None = None, template: bool = False) -> list[ScoredSource]:  # type: ignore[override]
        """The ``k`` sources with the highest scores, highest first.

        Args:
            k: the number of sources.
            row: the row; None: all rows.
            template: whether to include BOS and the text of the chat template.

        Raises:
            InputError: ``k`` is not 1 or more, or there is no such row.
        """
        k, rows = count("k", k, 1), range(len(self.rows)) if row is None else [self._row(row)]
        places = [(i, j) for i in rows for j, source in enumerate(self.sources) if template or not self.hidden(source)]
        places.sort(key=lambda place: -float(self.scores[place]))
        return [self._scored(i, j) for i, j in places[:k]]

    def _row(self, row: int) -> int:
        number, n = whole(row), len(self.rows)
        if number is None or not -n <= number < n:
            raise InputError(f"There is no row {row!r}; this result has {n}, counted from 0.")
        return number % n

    def _scored(self, row: int, j: int) -> ScoredSource:
        stderr = None if self.stderr is None else float(self.stderr[row, j])
        return ScoredSource(self.sources[j], float(self.scores[row, j]), stderr, row)

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each row and source: span, source, role, message, score, standard error; unit, scope and model in ``attrs``."""
        lines = [
            {
                "out": i, "explained": row.text, "src": j, "source": source.text, "role": source.role, "message": source.message,
                "is_template": self.hidden(source), "score": float(self.scores[i, j]),
                "stderr": float("nan") if self.stderr is None else float(self.stderr[i, j]),
            }
            for i, row in enumerate(self.rows) for j, source in enumerate(self.sources)
        ]  # fmt: skip
        frame = pd.DataFrame(lines).set_index(["out", "src"])
        frame.attrs = {"scope": self.scope, "unit": self.unit, "model": self.provenance.model_name}
        return frame

    def headline(self) -> str:
        """Scope, numbers of explained tokens and of sources, unit and hook point, in one line."""
        what = {"token": "tokens", "segments": "segments"}.get(self.by, f"{self.by}s")
        n = f"{len(self.rows)} {'span' if len(self.rows) == 1 else 'rows'} of {len(self.predictions)} tokens ({self.continued})"
        against = "" if self.baseline is None else f" against {self.baseline!r}"
        return f"{self.scope} scope, {n}{against}, sources: {len(self.sources)} {what}, in {self.unit}, at {self.provenance.hook_point}"

    def template_line(self) -> str:
        """The size of the scores of BOS and of the chat template's text, which lists omit."""
        left_out = [j for j, source in enumerate(self.sources) if self.hidden(source)]
        if not left_out:
            return ""
        shares = self.scores[:, left_out].amax(1) / self.scores.amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        return (
            f"{len(left_out)} of {len(self.sources)} sources are BOS or template text: scored, and left out of lists and pictures; the "
            f"highest of them is {percent(float(shares.median()))} of the highest score of its row (median)"
        )

    def __repr__(self) -> str:
        lines = [f"TextAttribution: {self.headline()}"]
        for i, row in enumerate(self.rows[:SHOWN]):
            best = ", ".join(f"{shortened(s.source.text)!r} {score_text(s.score, s.stderr)}" for s in self.top(3, i))
            lines.append(f"  {shortened(row.text)!r} {percent(row.probability)}: {best}")
        lines += [f"  ... {len(self.rows) - SHOWN} more rows"] if len(self.rows) > SHOWN else []
        lines += [f"  {self.template_line()}"] if self.template_line() else []
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])


Spanner = Callable[[TextAttribution, Sequence[tuple[int, int]]], TextAttribution]
"""A function from a result and spans of its continuation to a result with these rows."""


def spannable(result: TextAttribution, spanner: Spanner | None) -> TextAttribution:
    """The result with a function for `TextAttribution.span`; it is not a field, because it cannot be saved to a file."""
    object.__setattr__(result, "_spanner", spanner)
    return result
