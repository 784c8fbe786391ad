"""Helpers for the views of `TextAttribution`: the scale of each row, and names for rows, sources and predictions."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.model.pieces import pieces, text_of
from jscope_tl.results.sources import Source
from jscope_tl.results.text import percent, score_text, shortened, visible
from jscope_tl.results.text_attribution import ScoredSource, TextAttribution

MOST_NAMED = 12
"""How many tokens of a span are listed with their probabilities."""


def need_text(result: Any) -> None:
    """Refuse anything but a `TextAttribution`."""
    if not isinstance(result, TextAttribution):
        raise InputError(
            f"This view takes the TextAttribution that js.attribute_text returns; got a {type(result).__name__}."
        )


def row_tops(result: TextAttribution) -> Float[Tensor, "out"]:
    """The highest score of each row, which sets its colour scale. BOS, template text and a first token that is an attention sink are left out."""
    scores = result.scores.clone()
    scores[:, [j for j, source in enumerate(result.sources) if result.hidden(source)]] = 0
    if result.sources[0].positions == (0,):
        scores[[size is not None for size in result.sinks()], 0] = 0
    return scores.amax(1)


def row_shares(result: TextAttribution) -> Float[Tensor, "out src"]:
    """Scores as shares of the highest score of their row, at most 1: tokens that are left out of the scale may have higher scores."""
    return (result.scores / row_tops(result).unsqueeze(1).clamp_min(torch.finfo(torch.float32).tiny)).clamp_max(1)


def off_scale(result: TextAttribution) -> list[str]:
    """A note if the first token is left out of the scale as an attention sink."""
    alone = result.sources[0].positions == (0,) and not result.hidden(result.sources[0])
    sink = alone and any(size is not None for size in result.sinks())
    return ["the first token is left out of the scale"] if sink else []


def left_out_of(result: TextAttribution, template: bool) -> list[str]:
    """A note if BOS and template text are left out of a picture or of its scale."""
    if not any(map(result.hidden, result.sources)):
        return []
    return [f"BOS and template text are left out{' of the scale' if template else ''}"]


def n_sources(result: TextAttribution, row: int) -> int:
    """The number of sources that begin before the last token of a row. Later sources cannot have a score."""
    end = result.text.n_prompt + result.rows[row].stop - 1
    return sum(source.positions[0] < end for source in result.sources)


def source_texts(result: TextAttribution) -> list[str]:
    """The text of each source, with its spaces and line breaks; parts of a character are shown as in `pieces`."""
    each = pieces(result.str_tokens)
    return [
        each[s.positions[0]] if len(s.positions) == 1 else text_of([result.str_tokens[t] for t in s.positions])
        for s in result.sources
    ]


def row_text(result: TextAttribution, row: int) -> str:
    """The text that a row explains."""
    span, n = result.rows[row], result.text.n_prompt
    tokens = range(n + span.start, n + span.stop)
    return pieces(result.str_tokens)[tokens[0]] if len(tokens) == 1 else text_of([result.str_tokens[t] for t in tokens])


def row_name(result: TextAttribution, row: int) -> str:
    """``' Paris', row 3 of 22, 74.9%``."""
    of = f"row {row + 1} of {len(result.rows)}"
    return f"{quoted(row_text(result, row))}, {of}, {percent(result.rows[row].probability)}"


def source_name(result: TextAttribution, source: Source) -> str:
    """``' Oslo' (user, position 31)``."""
    return f"{quoted(source.text)} ({where(result, source)}, {place(source)})"


def place(source: Source) -> str:
    """``position 31``, or ``positions 31 to 40``."""
    first, last = source.positions[0], source.positions[-1]
    return f"position {first}" if first == last else f"positions {first} to {last}"


def where(result: TextAttribution, source: Source) -> str:
    """The message of a source: its role, and its number if several messages have that role. Sources in the answer are ``"answer so far"``."""
    if source.positions[0] >= result.text.n_prompt:
        return "answer so far"
    same = {m for role, m in zip(result.text.roles, result.text.messages, strict=True) if role == source.role}
    return f"{source.role}, message {source.message}" if len(same) > 1 else source.role


def scored_name(result: TextAttribution, scored: ScoredSource) -> str:
    """``' Oslo' (user, position 31) 4.99``."""
    return f"{source_name(result, scored.source)} {score_text(scored.score, scored.stderr)}"


def predicted(result: TextAttribution, row: int, k: int = 5) -> str:
    """The prediction of a row: the rank of its token and the alternatives, or the probability of each token of a span."""
    span = result.rows[row]
    of_row = result.predictions[span.start : span.stop]
    if len(of_row) == 1:
        best = ", ".join(f"{quoted(token.str_token)} {percent(token.probability)}" for token in of_row[0].top[:k])
        own = f"probability {percent(span.probability)}, rank {of_row[0].target_rank}"
        return f"{own}; most probable here: {best}"
    each = [f"{quoted(p.target.str_token)} {percent(p.target.probability)}" for p in of_row[:MOST_NAMED]]
    more = [f"{len(of_row) - MOST_NAMED} more"] if len(of_row) > MOST_NAMED else []
    together = f"{len(of_row)} tokens, together {percent(span.probability)} (log-probability {span.log_prob:.4g} nat)"
    return f"{together}; each after those before it: {', '.join([*each, *more])}"


def quoted(text: str) -> str:
    """A text in quotes, with visible control characters, and shortened in the middle if it is long."""
    return repr(visible(shortened(text, 60)))
