"""The descriptive fields of a result: the prompt, the prediction, and the provenance."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.attribution.setup import Setup
from jscope_tl.engine.forward import not_finite_cure
from jscope_tl.engine.run import Run
from jscope_tl.engine.state import State
from jscope_tl.errors import InputError
from jscope_tl.model.prompts import bos_positions, prompt_texts, to_id, to_str_tokens
from jscope_tl.model.running import Passes
from jscope_tl.model.view import ModelView
from jscope_tl.results.attribution import Attribution, Prediction
from jscope_tl.results.base import PredictedToken, Provenance
from jscope_tl.results.text import percent
from jscope_tl.scopes.alternatives import AlternativesScope
from jscope_tl.scopes.base import Score
from jscope_tl.scopes.directions import ContrastiveScope

R = TypeVar("R", bound=Any)


def attribution(
    setup: Setup, forward: Run, score: Score, warnings: Sequence[str], i: int = 0, passes: Passes | None = None
) -> Attribution:
    """The result at the ``i``-th explained position of a run.

    Args:
        warnings: warnings about the run and its backward passes; those of the score are added.
        passes: the passes that it took; None: all passes of the run.
    """
    state, view = forward.state(i), setup.view
    layers = setup.map_rows(forward)
    shape = (*leading_axes(setup, forward), len(state.tokens))
    target = setup.scope.target_id(state)
    options, resolved = setup.options(), dict(score.resolved)
    if setup.scope.needs_target:
        resolved["target"] = to_str_tokens(view, [target])[0]
    if others := setup.scope.alternatives(state):
        resolved["alternatives"] = to_str_tokens(view, others)
    result = Attribution(
        **about(setup, state.tokens, state.x, passes or forward.passes, score.seed),
        position=state.position,
        scores=finished(score.values.reshape(shape), state.x.dtype, view.name),
        stderr=None if score.stderr is None else finished(score.stderr.reshape(shape), state.x.dtype, view.name),
        options={**options, "resolved": resolved} if resolved else options,
        prediction=prediction(state, view, target),
        warnings=[
            *warnings,
            *score.warnings,
            *_underflow(score, state),
            *_without_space(setup, state, target),
            *_after_blank(view, state),
        ],
        hook_points=layers,
    )
    return with_sink_warning(result)


def leading_axes(setup: Setup, forward: Run) -> tuple[int, ...]:
    """The axes of a map before the position axis: layers, and heads if they have separate scores."""
    rows = len(setup.map_rows(forward))
    n_layers = len(forward.patterns or ()) or rows
    return (n_layers, -1) if rows > n_layers else (n_layers,) if rows else ()


def with_sink_warning(result: R) -> R:
    """The result with the warnings that follow from its scores."""
    found = result.sink_doubts()
    return replace(result, warnings=[*result.warnings, *found]) if found else result


def about(
    setup: Setup, tokens: Int[Tensor, "pos"], x: Float[Tensor, "*shape"], passes: Passes, seed: int | None
) -> dict[str, Any]:
    """The fields of a `Result` that do not depend on its scores."""
    view = setup.view
    versions = {name: _version(name) for name in ("jscope_tl", "transformer_lens", "torch")}
    provenance = Provenance(
        model_name=view.name,
        model_class=type(view.model).__name__,
        dtype=str(x.dtype).removeprefix("torch."),
        device=str(x.device),
        hook_point=setup.hook_point,
        n_forward=passes.n_forward,
        n_backward=passes.n_backward,
        seed=seed,
        versions=versions,
        model_revision=view.revision,
        transformer_lens_version=versions["transformer_lens"],
        processing=view.processing,
        hook_convention=", ".join(dict.fromkeys(re.sub(r"\d+", "{layer}", name) for name in setup.settings.at)),
    )
    return {
        "tokens": tokens.cpu(),
        "str_tokens": prompt_texts(view, tokens.tolist()),
        "scope": setup.label,
        "unit": setup.unit,
        "basis": view.basis,
        "provenance": provenance,
        "bos_positions": bos_positions(view, tokens),
        "baseline": _baseline(setup),
    }


def asked(setup: Setup, state: State) -> str:
    """The token that the scope explains and its baseline, worded for the headline of a `Result`."""
    if "target" not in setup.scope.options:
        return ""
    target = to_str_tokens(setup.view, [setup.scope.target_id(state)])[0]
    baseline = _baseline(setup)
    return f", target {target!r}" + ("" if baseline is None else f" against {baseline!r}")


def _baseline(setup: Setup) -> str | None:
    given = setup.scope.baseline if isinstance(setup.scope, ContrastiveScope | AlternativesScope) else None
    single = given[0] if isinstance(given, tuple) and len(given) == 1 else given
    if single is None or isinstance(single, tuple):
        return None
    return to_str_tokens(setup.view, [to_id(setup.view, single, int(setup.view.W_U.shape[1]))])[0]


def of_prompt(result: R, prompt: Any) -> R:
    """The result with a record of the BOS token that was prepended, if the prompt was a string without it."""
    found = prepended(prompt, result.str_tokens, len(result.bos_positions))
    return result if found is None else replace(result, provenance=replace(result.provenance, prepended=found))


def prepended(prompt: Any, texts: Sequence[str], n_bos: int) -> str | None:
    """The BOS token that was prepended to a prompt given as a string, or None."""
    if not isinstance(prompt, str) or not n_bos:
        return None
    own, bos, rest = 0, texts[0].strip(), prompt.lstrip()
    while bos and rest.startswith(bos):
        own, rest = own + 1, rest.removeprefix(bos).lstrip()
    return None if own >= n_bos else texts[0]


def finished(values: Float[Tensor, "*row pos"], dtype: torch.dtype, name: str) -> Float[Tensor, "*row pos"]:
    """Values detached from the graph, on the CPU, in float32; infinite or undefined values are refused."""
    if not values.isfinite().all():
        where = (~values.isfinite()).nonzero()[:, -1].unique().tolist()
        raise InputError(
            f"The backward pass of {name} gave infinite or undefined values at positions {where}. "
            f"{not_finite_cure(dtype)}"
        )
    return values.detach().float().cpu()


def _underflow(score: Score, state: State) -> list[str]:
    if score.values.any():
        return []
    return [
        f"Every score is 0: the prediction is so certain (p = {float(state.log_probs.detach().max().exp()):.12g}) that in "
        f"{state.x.dtype} the gradient of this scope is 0. Try 'semantic', or a model in float32."
    ]


def _without_space(setup: Setup, state: State, target: int) -> list[str]:
    """A warning if a target given as text is less probable than the same text after a space, which most words of a vocabulary have."""
    text, log_probs = setup.scope.options.get("target"), state.log_probs.detach()
    if not isinstance(text, str) or text[:1].isspace():
        return []
    try:
        spaced = to_id(setup.view, f" {text}", len(log_probs))
    except InputError:  # no single token
        return []
    if log_probs[spaced] <= log_probs[target]:
        return []
    p, q = (percent(float(log_probs[token].exp())) for token in (spaced, target))
    return [
        f"The target {text!r} has no space in front: {f' {text}'!r} is another token, and more probable ({p} against {q})."
    ]


def _after_blank(view: ModelView, state: State) -> list[str]:
    """A warning if a word and then a blank, which is a token of its own, come before the prediction. After a comma or a line break it may
    be usual text."""
    word, blank = ["", "", *prompt_texts(view, state.tokens[: state.position + 1][-2:].tolist())][-2:]
    if blank != " " or not word[-1:].isalpha():
        return []
    return [
        f"The prediction after the blank at position {state.position} is explained. In most vocabularies words start with their blank, so that "
        "a word without one must follow here; leave the blank out."
    ]


def predicted(state: State, view: ModelView, ids: list[int]) -> list[PredictedToken]:
    """Candidates for the next token with their probabilities."""
    probabilities = state.log_probs.detach().exp()
    texts = to_str_tokens(view, ids)
    return [PredictedToken(i, text, float(probabilities[i])) for i, text in zip(ids, texts, strict=True)]


def prediction(state: State, view: ModelView, target: int, k: int = 10) -> Prediction:
    """The next-token distribution that is explained, with the target's rank and probability."""
    log_probs = state.log_probs.detach()
    best = log_probs.topk(min(k, len(log_probs))).indices.tolist()
    tokens = predicted(state, view, [*best, target])
    rank = int((log_probs > log_probs[target]).sum()) + 1
    entropy = float(torch.special.entr(log_probs.exp()).sum())
    return Prediction(top=tuple(tokens[:-1]), target=tokens[-1], target_rank=rank, entropy=entropy)


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
