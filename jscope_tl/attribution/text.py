"""`attribute_text`: which parts of the prompt an answer comes from, token by token or span by span."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.describe import about, finished, of_prompt, prediction, with_sink_warning
from jscope_tl.attribution.generation import Generation, with_answer
from jscope_tl.attribution.keywords import refuse
from jscope_tl.attribution.paths import Path, Point
from jscope_tl.attribution.setup import Setup, set_up
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.inputs import REDUCTIONS, Reduction
from jscope_tl.engine.one_position import SpanVJP
from jscope_tl.engine.progress import progress_bar
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.run import Run
from jscope_tl.engine.vjp import Backward
from jscope_tl.errors import InputError, whole
from jscope_tl.model.pieces import text_of
from jscope_tl.model.prompts import Prompt, prompt_texts
from jscope_tl.model.running import Passes
from jscope_tl.model.text import Continuation, Messages, Tokenized, found_in, to_span
from jscope_tl.results.sources import PATTERNS, check_grouped, sources_of, to_segments
from jscope_tl.results.text_attribution import Span, TextAttribution, spannable
from jscope_tl.scopes.base import Scope, Score
from jscope_tl.scopes.directions import TargetScope

Spans = str | tuple[int, int] | Sequence[tuple[int, int] | str]


@documented
def attribute_text(
    model: Any,
    prompt: Prompt | Messages,
    continuation: Continuation | None = None,
    *,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    generation_seed: int = 0,
    stop: Sequence[str | int] | None = None,
    chat_template: str | None = None,
    scope: str | Scope | Callable[..., Any] = "log_prob",
    spans: Spans = "token",
    by: Any = "token",
    at: str = "hook_embed",
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    reduction: str | Reduction | None = None,
    path: str | Path | None = None,
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    recompute: bool | None = None,
    progress: bool | None = None,
    **options: Any,
) -> TextAttribution:
    """Score how strongly the model's answer depends on each part of a prompt: one row for every token, or for every span, of the answer.

    ``scores[i, j]`` is the score of source ``j`` (a token of the prompt or of the answer so far, or a group of tokens) for the ``i``-th
    token or span of the answer. One forward pass over prompt and answer serves all rows; scopes with fixed cotangents (all but
    ``fisher``, ``fisher_input`` and ``spectral``) take one backward row for each of them.

    Args:
        prompt: a string, ids, or the messages of a chat, ``[{"role": "user", "content": ...}]``. For a chat the tokenizer's template is
            applied, with the generation prompt. If the chat ends with a message of the assistant, that message is the answer.
        continuation: the answer, a string or ids; None: the model generates it.
        max_new_tokens: the maximum length of a generated answer; an end-of-text token ends it and is not part of it.
        temperature: 0: greedy decoding; otherwise tokens are sampled from ``softmax(logits / temperature)``.
        generation_seed: the seed for sampling; the global random generator is not touched.
        stop: tokens that end a generated answer; None: those of the tokenizer and of the model.
        chat_template: a chat template to use instead of the tokenizer's default: its name in the tokenizer, or its text.
        scope: the scope, which defines the explained quantity of each token. For a span of several tokens it is the sum of this quantity
            over the tokens (for ``log_prob`` the span's log-probability); for Fisher the sum of the Fisher information over the span's
            positions, which by the chain rule is that of the joint distribution.
        spans: the rows. ``"token"``: one for each token of the answer; ``"word"``, ``"sentence"``, ``"line"`` or ``"message"`` (the
            whole answer): one for each of these; or a list of ``(first token, token after the last)``, counted from the start of the
            answer, and of texts that occur once in it.
        by: the columns. ``"token"``, ``"word"``, ``"sentence"``, ``"line"``, ``"message"``, or segments of your own, see
            `TextAttribution.grouped`. The score of several tokens is the norm of their concatenated rows (for ``reduction="dot"`` the
            sum of the signed numbers), not the sum of their norms.
        recompute: whether layers are recomputed in each backward pass to save memory (True), or keep their graphs (False). None: decided
            from the size of the first layer's graph and the free memory; the result says so. Only at ``hook_embed``, without gradient
            rules and hooks of your own.
        progress: show progress bars of generated tokens and of backward rows always (True), never (False), or if they take more than
            a second (None).
        {shared}

    Returns:
        A `TextAttribution`. BOS and the tokens of the chat template also have scores; lists and figures omit them and say so.

    Raises:
        InputError: as in `attribute`; messages are empty, the template does not exist, the tokenizer merges the continuation's first
            token with the end of the prompt, or a span or segment is out of range.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> result = js.attribute_text(model, prompt, " liberal .")
        >>> [(row.text, result.top(1, i)[0].source.text) for i, row in enumerate(result.rows)]
        [(' liberal', ' columbia'), (' .', ' liberal')]
    """
    refuse("attribute_text", options)
    setup = set_up(
        model, scope, options, at=at, one_point=True, per=None, fwd_hooks=fwd_hooks, reduction=reduction, path=path,
        gradient=gradient, frozen=frozen, chunk_size=chunk_size, matmul_precision=matmul_precision, recompute=recompute,
        progress=progress,
    )  # fmt: skip
    if isinstance(setup.scope, TargetScope) and setup.scope.target is not None:
        raise InputError(
            "js.attribute_text explains the tokens of the continuation, and takes no target. Pass the text as continuation, or use "
            "js.attribute."
        )
    passes = Passes()
    given, how = with_answer(
        setup.view, prompt, continuation, Generation(max_new_tokens, temperature, generation_seed, stop), prepend_bos=prepend_bos,
        template=chat_template, hooks=setup.settings.fwd_hooks, passes=passes, progress=progress,
    )  # fmt: skip
    explained = partial(_explained, setup, given, how)
    name, segments = to_segments(by, given.text.string)
    result = explained(_spans(setup, given, spans), passes)
    if name != "token":
        check_grouped(result.scope, result.options, result.signed is not None)
    result = replace(result, by=name, segments=segments)
    return spannable(
        of_prompt(result, prompt),
        lambda result, wanted: replace(explained(wanted, Passes()), by=result.by, segments=result.segments),
    )


def _spans(setup: Setup, given: Tokenized, spans: Any) -> list[tuple[int, int]]:
    """Spans of the continuation as pairs (first token, token after the last)."""
    n, str_tokens = given.text.n_prompt, prompt_texts(setup.view, given.tokens.tolist())
    n_out = len(str_tokens) - n
    if isinstance(spans, str) and spans in ("token", *PATTERNS):
        groups = [source.positions for source in sources_of(given.text, str_tokens, spans)]
        return [(of_one[0] - n, of_one[-1] + 1 - n) for of_one in groups if of_one[0] >= n]
    if isinstance(spans, tuple) and len(spans) == 2 and all(whole(item) is not None for item in spans):
        spans = [spans]
    if isinstance(spans, str | bytes) or not isinstance(spans, Iterable) or not (wanted := list(spans)):
        raise InputError(
            f"spans is 'token', {', '.join(map(repr, PATTERNS))}, or a list of (first token, token after the last) and of texts; got {spans!r}."
        )
    return [found_in(str_tokens[n:], span) if isinstance(span, str) else to_span(span, n_out) for span in wanted]


def _explained(
    setup: Setup, given: Tokenized, continued: str, spans: Sequence[tuple[int, int]], passes: Passes
) -> TextAttribution:
    """The rows of these spans, from one forward pass."""
    tokens, n, view = given.tokens, given.text.n_prompt, setup.view
    warnings, last = setup.warnings(tokens), max(stop for _, stop in spans)
    positions = list(range(n - 1, len(tokens) - 1))
    with setup.run(tokens, positions) as (forward, backward):
        passes.n_forward, passes.n_backward = forward.passes.n_forward + passes.n_forward, 0
        predictions = [prediction(forward.state(i), view, int(tokens[p + 1])) for i, p in enumerate(positions)]
        values, errors, signed, scores = _scored(setup, forward, backward, spans)
        passes.n_backward = forward.passes.n_backward
        notes = dict.fromkeys([*backward.notes, *(warning for score in scores for warning in score.warnings)])
        seed, resolved = next((s.seed for s in scores if s.seed is not None), None), [s.resolved for s in scores]
        dtype, texts = forward.y.dtype, prompt_texts(view, tokens.tolist())
        result = TextAttribution(
            **about(setup, tokens, forward.activations[0], passes, seed),
            position=n + last - 2,
            token_scores=finished(values, dtype, view.name),
            token_stderr=None if errors is None else finished(errors, dtype, view.name),
            signed=None if signed is None else finished(signed, dtype, view.name),
            rows=tuple(
                Span(start, stop, text_of(texts[n + start : n + stop]), _log_prob(forward, tokens, start, stop))
                for start, stop in spans
            ),
            predictions=tuple(predictions),
            text=given.text,
            by="token",
            segments=(),
            continued=continued,
            options={**setup.options(), "resolved": resolved} if any(resolved) else setup.options(),
            warnings=[*warnings, *notes],
        )
        return with_sink_warning(result)


def _log_prob(forward: Run, tokens: Any, start: int, stop: int) -> float:
    found = (forward.state(i) for i in range(start, stop))
    return sum(min(0.0, float(state.log_probs.detach()[int(tokens[state.position + 1])])) for state in found)


Scored = tuple[Float[Tensor, "out pos"], Float[Tensor, "out pos"] | None, Float[Tensor, "out pos"] | None, list[Score]]


def _scored(setup: Setup, forward: Run, backward: Backward, spans: Sequence[tuple[int, int]]) -> Scored:
    """Scores, their standard errors, and for gradient x input of one cotangent the signed numbers."""
    if setup.scope.additive and isinstance(setup.path, Point):
        values, signed = _at_once(setup, forward, backward, spans)
        return values, None, signed, []
    scores, shown, backward.progress = [], backward.progress, False  # one bar, over spans
    for j, (start, stop) in enumerate(progress_bar(shown, "spans", "span", spans)):
        if stop - start == 1 and not isinstance(setup.path, Point):
            scores.append(setup.score(forward, backward, start))
        else:
            vjp = SpanVJP(backward, start, n=stop - start, last=j + 1 == len(spans))
            scores.append(setup.score_span([forward.state(i) for i in range(start, stop)], vjp))
    errors = [torch.zeros_like(s.values) if s.stderr is None else s.stderr for s in scores]
    none = all(score.stderr is None for score in scores)
    return torch.stack([score.values for score in scores]), None if none else torch.stack(errors), None, scores


def _at_once(
    setup: Setup, forward: Run, backward: Backward, spans: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "out pos"], Float[Tensor, "out pos"] | None]:
    """The scores of all spans of an additive scope, from vector-Jacobian products in one batch."""
    placed = []
    for start, stop in spans:
        vjp = SpanVJP(backward, start, n=stop - start)
        placed.append(vjp.placed(setup.scope.span_rows([forward.state(i) for i in range(start, stop)])))
    n_rows, rows = [len(of_one) for of_one in placed], torch.cat(placed)
    signed = None
    if setup.reduction is REDUCTIONS["dot"] and setup.entries is None and max(n_rows) == 1:
        signed = backward.sums(rows)
        numbers = signed.square()
    else:
        numbers = setup.numbers(backward, rows, max(n_rows))
    scores = [setup.in_units(Score(setup.combined(of_one))) for of_one in numbers.split(n_rows)]
    values = torch.stack([score.values for score in scores])
    later = torch.arange(values.shape[1], device=values.device) > rearrange(
        torch.tensor([forward.positions[stop - 1] for _, stop in spans], device=values.device), "out -> out 1"
    )
    return values.masked_fill(later, 0), None if signed is None else signed.masked_fill(later, 0)
