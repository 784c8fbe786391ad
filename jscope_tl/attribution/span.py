"""Targets of several tokens: the log-probability of a span is one number, and its gradient is one row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from jscope_tl.attribution.describe import about, finished, leading_axes, predicted, prediction, with_sink_warning
from jscope_tl.attribution.setup import Setup
from jscope_tl.engine.branches import Branches, can_branch
from jscope_tl.engine.one_position import SpanVJP
from jscope_tl.engine.run import Run
from jscope_tl.engine.state import State
from jscope_tl.engine.vjp import Backward
from jscope_tl.errors import InputError
from jscope_tl.model.pieces import text_of
from jscope_tl.model.prompts import ids_of, prompt_texts
from jscope_tl.model.running import Passes
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.base import PredictedToken
from jscope_tl.scopes.base import Scope, Score
from jscope_tl.scopes.directions import ContrastiveScope, LogProbScope, TargetScope


@dataclass(frozen=True)
class Several:
    """A target and an optional baseline, at least one of which has several tokens.

    Attributes:
        target, baseline: token ids; None if there is no baseline.
    """

    target: list[int]
    baseline: list[int] | None

    @property
    def branches(self) -> list[list[int]]:
        """The texts that are put after the prompt: the target, and the baseline if there is one."""
        return [self.target] if self.baseline is None else [self.target, self.baseline]


def several_tokens(setup: Setup) -> Several | None:
    """The target and baseline as ids if one of them has several tokens; None if each is one token, or has to be."""
    options, view = setup.scope.options, setup.view
    if not (isinstance(setup.scope, TargetScope) and setup.takes_spans):
        return None
    target = ids_of(view, "target", options["target"])
    contrast = isinstance(setup.scope, ContrastiveScope)
    baseline = ids_of(view, "baseline", options.get("baseline")) if contrast else []
    if max(len(target), len(baseline)) < 2:
        return None
    if contrast and not (target and baseline):
        raise InputError(
            f"A contrast of several tokens needs a target and a baseline; got target {options['target']!r}, baseline {options['baseline']!r}."
        )
    if target == baseline:
        raise InputError(f"target and baseline are the same tokens {target}; their difference is always 0.")
    return Several(target, baseline or None)


def explain_span(setup: Setup, tokens: Int[Tensor, "pos"], position: int, several: Several) -> Attribution:
    """The scores of the prompt's tokens for a span that follows ``position``, or for the contrast of two spans.

    The effect of a span's first tokens on its later ones is part of its log-probability, but not of these scores, which are scores of
    the prompt's tokens only.
    """
    setup.need_point()
    start, longest = tokens[: position + 1], position + max(map(len, several.branches))
    if longest > setup.view.n_ctx:
        raise InputError(
            f"Prompt and target have {longest} tokens, but {setup.view.name} takes at most {setup.view.n_ctx}; shorten one of them."
        )
    warnings = [*setup.warnings(start), *_warnings(setup, several)]
    own = _per_token(setup, several)
    with _run(own, start, several) as (forward, backward):
        score, branches = _scored(own, forward, backward, several)
        first = forward.state()
        values = _of_prompt(score.values, len(tokens), position).reshape(*leading_axes(setup, forward), len(tokens))
        result = Attribution(
            **about(own, tokens, forward.activations[0], forward.passes, score.seed) | _named(setup, several),
            position=position,
            scores=finished(values, first.x.dtype, setup.view.name),
            stderr=None,
            options=_options(setup, score),
            prediction=replace(prediction(first, setup.view, several.target[0]), target=_together(branches[0])),
            target_tokens=tuple(branches[0]),
            baseline_tokens=tuple(branches[1]) if len(branches) > 1 else (),
            warnings=[*warnings, *backward.notes, *score.warnings],
            hook_points=setup.map_rows(forward),
        )
        return with_sink_warning(result)


def _per_token(setup: Setup, several: Several) -> Setup:
    """The setup with a scope for single tokens; a contrast of spans is a difference of log-probabilities."""
    return setup if several.baseline is None else replace(setup, scope=LogProbScope())


def _named(setup: Setup, several: Several) -> dict[str, Any]:
    """The fields of the result that name the scope and the baseline as the user passed them."""
    if several.baseline is None:
        return {"scope": setup.label}
    return {"scope": setup.label, "baseline": text_of(prompt_texts(setup.view, several.baseline))}


def _options(setup: Setup, score: Score) -> dict[str, Any]:
    return {**setup.options(), "resolved": score.resolved} if score.resolved else setup.options()


def _together(tokens: Sequence[PredictedToken]) -> PredictedToken:
    """A span as one `PredictedToken`: its first token's id, its text, and the product of the probabilities."""
    probability = prod(token.probability for token in tokens)
    return PredictedToken(tokens[0].token, text_of([token.str_token for token in tokens]), probability)


def _warnings(setup: Setup, several: Several) -> list[str]:
    texts = [text_of(prompt_texts(setup.view, ids)) for ids in several.branches]
    warnings = []
    if len(texts) > 1 and len(several.target) != len(several.branches[1]):
        warnings.append(
            f"The target {texts[0]!r} has {len(several.target)} tokens and the baseline {texts[1]!r} has {len(several.branches[1])}: every "
            "additional token makes a text less probable. The explained quantity is log p(target) - log p(baseline), not per token."
        )
    for name, ids in zip(("target", "baseline"), several.branches, strict=False):
        given = setup.scope.options.get(name)
        if isinstance(given, str) and not given[:1].isspace() and _has_fewer(setup, f" {given}", len(ids)):
            warnings.append(
                f"The {name} {given!r} has more tokens than {f' {given}'!r} with a space, which may be the form that follows a word."
            )
    return warnings


def _has_fewer(setup: Setup, text: str, n: int) -> bool:
    """Whether a text is in the vocabulary and has fewer than ``n`` tokens."""
    try:
        return len(ids_of(setup.view, "text", text)) < n
    except InputError:
        return False


@contextmanager
def _run(setup: Setup, start: Int[Tensor, "seen"], several: Several) -> Iterator[tuple[Run, Backward]]:
    """The forward pass over prompt and span; for a contrast, over the prompt once with both spans if the model can, else over two texts."""
    branches = Branches(start, [ids[:-1] for ids in several.branches])
    positions = [p for i in range(len(several.branches)) for p in branches.positions(i)]
    if several.baseline is None:
        with setup.run(branches.tokens, positions) as found:
            yield found
        return
    _check_two_texts(setup)
    trial = Passes()
    if can_branch(setup.view, branches, trial):
        with setup.run(branches.tokens, positions, branches.how(setup.view.W_U.dtype)) as (forward, backward):
            forward.passes.n_forward += trial.n_forward
            yield forward, backward
        return
    with _side_by_side(setup, branches) as found:
        yield found


@contextmanager
def _side_by_side(setup: Setup, branches: Branches) -> Iterator[tuple[Run, Backward]]:
    """Run every continuation in a batch with its own copy of the prompt; rows are summed over the copies."""
    shared = len(branches.prompt)
    prompts = [torch.cat([branches.prompt, branches.prompt.new_tensor(list(ids))]) for ids in branches.continuations]
    rows = [i for i, prompt in enumerate(prompts) for _ in range(shared - 1, len(prompt))]
    positions = [p for prompt in prompts for p in range(shared - 1, len(prompt))]
    with setup.run_together(prompts, positions, rows) as forward:
        backward = setup.backward(forward)
        backward.arrange = partial(_shared, setup, len(prompts), shared)
        backward.n_prompts = 1
        try:
            yield forward, backward
        finally:
            backward.bar.close()


def _check_two_texts(setup: Setup) -> None:
    beside = any(setup.view.reads_beside(name) for name in setup.settings.at)
    if setup.view.is_hooked(setup.settings.fwd_hooks) or setup.view.unembedding_is_hooked([]) or beside:
        what = "hook_resid_mid of a bridge" if beside else "hooks, which may expect a single prompt"
        raise InputError(
            f"A contrast of several tokens runs two texts together, which does not work with {what}. Explain each text by itself, "
            "with scope 'log_prob'."
        )
    if isinstance(setup.path.origin, Tensor) and setup.path.origin.ndim == 2:
        raise InputError("A contrast of several tokens needs one origin for all positions, [d]; got [pos, d].")


def _shared(
    setup: Setup, n: int, shared: int, rows: list[Float[Tensor, "chunk all_pos d_s"]]
) -> list[Float[Tensor, "chunk shared d_shared"]]:
    """Rows of the prompt that ``n`` texts share: the sum over the texts, because the prompt's vectors are the same in all of them.

    Entries of attention patterns are shared if the destination is in the prompt; destinations in the spans have separate entries.
    """
    apart = [rearrange(row, "chunk (n pos) d -> n chunk pos d", n=n)[:, :, :shared] for row in rows]
    if setup.entries is None:
        return [row.sum(0) for row in apart]
    dest = rows[0].shape[1] // n
    heads = [rearrange(row, "n chunk src (head dest) -> n chunk src head dest", dest=dest) for row in apart]
    merged = [
        torch.cat(
            [row[..., :shared].sum(0), rearrange(row[..., shared:], "n chunk src head own -> chunk src head (n own)")],
            -1,
        )
        for row in heads
    ]
    per_head = merged[0].shape[-1]
    return setup.entries.arranged(
        [rearrange(row, "chunk src head dest -> chunk src (head dest)") for row in merged], per_head
    )


def _scored(
    setup: Setup, forward: Run, backward: Backward, several: Several
) -> tuple[Score, list[list[PredictedToken]]]:
    """The score, and the tokens of target and baseline with their probabilities."""
    found, scopes = list[list[PredictedToken]](), list[Scope]()
    states, signs = list[State](), list[float]()
    for sign, ids in zip((1.0, -1.0), several.branches, strict=False):
        own = [forward.state(len(states) + i) for i in range(len(ids))]
        found.append([predicted(state, setup.view, [token])[0] for state, token in zip(own, ids, strict=True)])
        states, signs = [*states, *own], [*signs, *[sign] * len(ids)]
        scopes += [setup.scope.with_target(token) for token in ids]
    vjp = SpanVJP(backward, 0, n=len(states))
    return setup.in_units(Score(_combined(setup, scopes, states, signs, vjp))), found


def _combined(
    setup: Setup, scopes: Sequence[Scope], states: Sequence[State], signs: Sequence[float], vjp: SpanVJP
) -> Float[Tensor, "*layer pos"]:
    rows = [scope.rows(state) * sign for scope, state, sign in zip(scopes, states, signs, strict=True)]
    if any(len(of_one) != 1 for of_one in rows) or not setup.scope.additive:
        raise InputError(
            f"Scope {setup.scope.label!r} cannot explain a target of several tokens, because it has several cotangents. Use 'log_prob', or "
            "js.attribute_text with spans=."
        )
    return setup.combined(setup.numbers(vjp, torch.cat(rows, 1)))


def _of_prompt(values: Float[Tensor, "*layer ran"], n: int, position: int) -> Float[Tensor, "*layer pos"]:
    """The scores of the prompt's tokens, 0 after the explained position."""
    own = values[..., : position + 1]
    return nn.functional.pad(own, (0, n - own.shape[-1]))
