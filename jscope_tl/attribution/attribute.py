"""The straight line: prompt -> forward -> cotangents -> backward rows -> scores -> result."""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.model.devices import check_matmul_precision
from jscope_tl.engine.backward import Puller, check_chunk_size
from jscope_tl.errors import InputError
from jscope_tl.engine.forward import FwdHooks, Run, not_finite_cure
from jscope_tl.attribution.linearised import Linearised
from jscope_tl.model.view import ModelView
from jscope_tl.attribution.paths import Path
from jscope_tl.model.prompts import Prompt, bos_positions, prompt_warnings, to_position, to_str_tokens, to_tokens
from jscope_tl.results.attribution import Attribution, PredictedToken, Prediction, Provenance
from jscope_tl.scopes.base import FunctionScope, Scope, Score
from jscope_tl.scopes.registry import resolve_scope
from jscope_tl.engine.state import State


def attribute(
    model: Any,
    prompt: Prompt,
    scope: str | Scope | Callable[..., Any] = "semantic",
    *,
    position: int = -1,
    at: str | Sequence[str] = "hook_embed",
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    reduction: str | None = None,
    path: str | Path | None = None,
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Attribution:
    """Which tokens of the prompt drove the model's next-token prediction, and how strongly.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, in evaluation mode, on any device.
        prompt: a string (the model's tokenizer and BOS default apply), a list of ids, or an integer tensor ``[pos]`` or
            ``[1, pos]``, taken as it is.
        scope: a registered name, with its options as further keywords; a scope object; or a function from the
            `State` to cotangents ``[d_model]`` or ``[k, d_model]``.
        position: whose next-token prediction is explained; negative counts from the end. Later positions score 0.
        at: the residual-stream hook point whose activation ``x`` the scores refer to. A list of them, or
            ``"resid_pre"``, ``"resid_mid"`` or ``"resid_post"`` for those of all layers, gives a layer map
            ``scores [layer, pos]`` at the cost of one hook point.
        prepend_bos: overrides the model's default for strings.
        fwd_hooks: TransformerLens hooks that are active during the run, to explain a patched or ablated model.
        reduction: from rows to a score. ``"norm"``: of ``C J_t``, per unit of ``x``; ``"dot"``: of ``C J_t (x_t - x0_t)``, for
            one cotangent the absolute gradient x input; ``"elementwise"``: of ``C J_t ⊙ (x_t - x0_t)``. The last two are in
            units of what is explained (Fisher: half of it, the second-order KL divergence). None: the scope's own.
        path: where the model is linearised, and the baseline ``x0``: `js.Point` (the prompt itself; None), `js.Line`
            (integrated gradients), `js.Noise` (SmoothGrad), or ``"line"``, ``"noise"``.
        frozen: ``"attn"`` holds attention patterns constant, ``"norm"`` normalisation scales; or both.
        chunk_size: backward rows computed at once; by default what the memory that the first row took leaves room for. Where
            memory runs out, half as many are tried, and the result says so.
        matmul_precision: ``"high"`` (TF32) or ``"medium"`` (bfloat16) matrix products for the backward rows of a float32
            model, on devices that have them; the result's warnings say what it cost in accuracy. None: as torch is set.
        progress: a progress bar always (True), never (False), or where the wait is over a second (None).

    Returns:
        An `Attribution` with ``scores [pos]`` or ``[layer, pos]``: float32, on the CPU, unsigned, in the scope's unit.

    Raises:
        InputError: anything that cannot be explained; the message says what was given, what is needed, what to do.
            Hooks, parameters, modes and tensors are then as they were.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> result = js.attribute(model, prompt, "semantic", target=" liberal")
        >>> [token.str_token for token in result.top(1)]
        [' columbia']
    """
    scope = resolve_scope(scope, options)
    view = ModelView(model)
    tokens = to_tokens(view, prompt, prepend_bos)
    position = to_position(position, len(tokens))
    points = view.hook_points(at)
    chunk_size, fast = check_chunk_size(chunk_size), check_matmul_precision(matmul_precision)
    how = Linearised.checked(scope, reduction, path, frozen, fwd_hooks)
    warnings = [*scope.check(view.basis), *prompt_warnings(view, tokens)]
    with how.run(view, tokens, [position], points) as forward:
        puller = Puller(forward.xs, forward.y, forward.positions, chunk_size, progress, matmul_precision=fast)
        scope.explained_token(forward.state())  # what cannot be explained is refused before the backward passes
        return attribution(forward, scope, how, how.score(scope, forward, puller), puller, at, warnings)


def attribution(
    forward: Run, scope: Scope, how: Linearised, score: Score, puller: Puller, at: Any, warnings: list[str], i: int = 0
) -> Attribution:
    """The result at the ``i``-th explained position of a run, with everything that it says about itself."""
    view, state = forward.view, forward.state(i)
    tokens = state.tokens
    layers = () if isinstance(at, str) and len(forward.at) == 1 and forward.at[0] == at else tuple(forward.at)
    shape = (*([len(layers)] if layers else []), len(tokens))
    target = scope.explained_token(state)
    where = at if isinstance(at, str) else ", ".join(forward.at)
    return Attribution(
        scores=finished(score.values.reshape(shape), state.x.dtype, view.name),
        tokens=tokens.cpu(),
        str_tokens=to_str_tokens(view, tokens.tolist()),
        position=state.position,
        scope=how.label(scope),
        options=_resolved({**options_of(scope), **how.says()}, score, view, target),
        unit=how.unit(scope),
        stderr=None if score.stderr is None else finished(score.stderr.reshape(shape), state.x.dtype, view.name),
        prediction=_prediction(state, view, target),
        basis=state.basis,
        provenance=provenance(view, state.x, where, puller.n_backward, score.seed),
        warnings=[*warnings, *puller.notes, *score.doubts, *_underflow(score, state)],
        bos_positions=bos_positions(view, tokens),
        hook_points=layers,
    )


def finished(values: Float[Tensor, "*row pos"], dtype: torch.dtype, name: str) -> Float[Tensor, "*row pos"]:
    """Off the graph and the device, in float32."""
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
        f"{state.x.dtype} nothing moves what this scope explains. Try 'semantic', or a model in float32."
    ]


def options_of(scope: Scope) -> dict[str, Any]:
    """What a scope was asked."""
    if isinstance(scope, FunctionScope):
        return dict(scope.options)
    return {f.name: getattr(scope, f.name) for f in fields(scope)} if is_dataclass(scope) else {}


def _resolved(options: dict[str, Any], score: Score, view: ModelView, target: int) -> dict[str, Any]:
    resolved = dict(score.resolved)
    if options.get("target", "") is None:
        resolved["target"] = to_str_tokens(view, [target])[0]
    return {**options, "resolved": resolved} if resolved else options


def predicted(state: State, view: ModelView, ids: list[int]) -> list[PredictedToken]:
    """Candidates for the next token with their probabilities."""
    probabilities = state.log_probs.detach().exp()
    texts = to_str_tokens(view, ids)
    return [PredictedToken(i, text, float(probabilities[i])) for i, text in zip(ids, texts, strict=True)]


def _prediction(state: State, view: ModelView, target: int, k: int = 10) -> Prediction:
    log_probs = state.log_probs.detach()
    best = log_probs.topk(min(k, len(log_probs))).indices.tolist()
    tokens = predicted(state, view, [*best, target])
    rank = int((log_probs > log_probs[target]).sum()) + 1
    return Prediction(top=tuple(tokens[:-1]), target=tokens[-1], target_rank=rank)


def provenance(
    view: ModelView, x: Float[Tensor, "*one pos d_in"], at: str, n_backward: int, seed: int | None
) -> Provenance:
    """Where a result comes from."""
    return Provenance(
        model_name=view.name,
        model_class=type(view.model).__name__,
        dtype=str(x.dtype).removeprefix("torch."),
        device=str(x.device),
        hook_point=at,
        n_backward=n_backward,
        seed=seed,
        versions={name: _version(name) for name in ("jscope_tl", "transformer_lens", "torch")},
    )


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
