"""The methods that are measured: scopes, and baselines."""

import inspect
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.attribution.attribute import attribute
from jscope_tl.attribution.explain import explain
from jscope_tl.attribution.paths import Line, Noise
from jscope_tl.errors import InputError, nearest
from jscope_tl.faithfulness.attention import last_layer, mean_of_all, rollout
from jscope_tl.model.running import Passes, logits_of, undisturbed
from jscope_tl.model.view import ModelView
from jscope_tl.results.attribution import Attribution
from jscope_tl.scopes.base import Scope
from jscope_tl.scopes.registry import RESERVED, available_scopes, resolve_scope


@dataclass(frozen=True)
class Method:
    """An attribution method that is not a scope.

    Attributes:
        function: a function of the model, tokens ``[pos]`` and a target id, which returns scores ``[pos]`` for the prediction at the last
            position, or an `Attribution`.
        n_forward: the number of its forward passes, besides those that an `Attribution` counts.
        needs_alternative: whether the function has one more argument, the id of the answer with which the target is contrasted. Such a
            method is measured on prompts that have an alternative, such as those of `jscope_tl.ground_truth`.
    """

    function: Callable[..., Any]
    n_forward: int = 1
    needs_alternative: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"Method needs a function of model, tokens and target; got {self.function!r}.")


def at_random(model: Any, tokens: Int[Tensor, "pos"], target: int, seed: int = 0) -> Float[Tensor, "pos"]:
    """Random scores, which are the same for the same prompt and seed."""
    mixed = zlib.crc32(repr(tokens.tolist()).encode()) ^ (seed * 2654435761 % 2**32)
    return torch.rand(len(tokens), generator=torch.Generator("cpu").manual_seed(mixed), device="cpu")


def against_runner_up(model: Any, tokens: Int[Tensor, "pos"], target: int) -> Any:
    """The contrastive scope of the target against the most probable other token."""
    view = ModelView(model)
    with undisturbed(view, []):
        logits = logits_of(view, rearrange(tokens, "pos -> 1 pos"), Passes())
    best = logits[0, -1].topk(2).indices.tolist()
    other = next(token for token in best if token != target)
    return attribute(model, tokens, "contrastive", target=target, baseline=other, progress=False)


def against_alternative(model: Any, tokens: Int[Tensor, "pos"], target: int, alternative: int) -> Any:
    """The contrastive scope of the target against the known alternative, or against the runner-up if the target is the alternative."""
    if alternative == target:
        return against_runner_up(model, tokens, target)
    return attribute(model, tokens, "contrastive", target=target, baseline=alternative, progress=False)


def explained(model: Any, tokens: Int[Tensor, "pos"], target: int, alternative: int | None = None) -> Any:
    """`jscope_tl.explain`, against the known alternative if there is one and it is not the target."""
    return explain(model, tokens, target, None if alternative == target else alternative, progress=False)


def alike(model: Any, tokens: Int[Tensor, "pos"], target: int) -> Float[Tensor, "pos"]:
    """The same score for all tokens. Tied scores share hits, which gives the expected values of a token drawn at random."""
    return torch.ones(len(tokens), device="cpu")


METHODS: dict[str, Any] = {
    "explain": Method(explained, n_forward=0),
    "explain_alternative": Method(explained, n_forward=0, needs_alternative=True),
    "semantic": {"scope": "semantic"},
    "log_prob": {"scope": "log_prob"},
    "contrastive": Method(against_runner_up),
    "contrastive_alternative": Method(against_alternative, n_forward=0, needs_alternative=True),
    "temperature": {"scope": "temperature"},
    "logit_temperature": {"scope": "logit_temperature"},
    "entropy": {"scope": "entropy"},
    "fisher": {"scope": "fisher"},
    "fisher_1": {"scope": "fisher", "method": "low_rank", "rank": 1},
    "fisher_input": {"scope": "fisher_input"},
    "spectral": {"scope": "spectral"},
    "random_direction": {"scope": "random_direction"},
    "random_direction_1": {"scope": "random_direction", "seed": 1},
    "gradient_x_input": {"scope": "log_prob", "reduction": "dot"},
    "gradient_x_input_norm": {"scope": "log_prob", "reduction": "elementwise"},
    "semantic_x_input": {"scope": "semantic", "reduction": "elementwise"},
    "integrated_gradients": {"scope": "log_prob", "reduction": "dot", "path": Line(steps=20)},
    "integrated_semantic": {"scope": "semantic", "reduction": "elementwise", "path": Line(steps=20)},
    "smooth_gradients": {"scope": "log_prob", "path": Noise(samples=10)},
    "attention": Method(last_layer),
    "attention_mean": Method(mean_of_all),
    "attention_rollout": Method(rollout),
    "random": Method(at_random, n_forward=0),
    "chance": Method(alike, n_forward=0),
}
"""The methods by name: keywords of `jscope_tl.attribute`, or a `Method`."""


def resolve_methods(methods: Any) -> dict[str, Any]:
    """The methods from a list of names, a mapping, or None for all of `METHODS`."""
    if methods is None:
        return dict(METHODS)
    if isinstance(methods, str):
        methods = [methods]
    if isinstance(methods, Mapping):
        chosen = {str(name): method for name, method in methods.items()}
    elif isinstance(methods, Iterable):
        chosen = {name: _named(name) for name in map(_name, methods)}
    else:
        raise InputError(f"methods are names, or a mapping from names to methods; got {methods!r}.")
    if not chosen:
        raise InputError("There are no methods to measure; give at least one.")
    for name, method in chosen.items():
        if isinstance(method, str):
            chosen[name] = _named(method)
        elif inspect.isclass(method) and issubclass(method, Scope):
            chosen[name] = method()
        elif not (callable(method) or isinstance(method, Scope | Mapping | Method)):
            raise InputError(
                f"Method {name!r} must be a scope's name, a scope, a function of the state, keywords of js.attribute or a "
                f"js.faithfulness.Method; got {method!r}."
            )
    return chosen


def _name(method: Any) -> str:
    if not isinstance(method, str):
        raise InputError(
            f"In a list, methods are names; give other methods in a mapping with your own name: {{'mine': {method!r}}}."
        )
    return method


def _named(name: Any) -> Any:
    if name in METHODS:
        return METHODS[name]
    if name in available_scopes():
        return {"scope": name}
    known = [*METHODS, *(scope for scope in available_scopes() if scope not in METHODS)]
    raise InputError(f"There is no method {name!r}.{nearest(str(name), known)} Known: {', '.join(known)}.")


def contrasted(methods: dict[str, Any], alternatives: Sequence[int | None], are_all: bool) -> dict[str, Any]:
    """The methods without those that need an alternative, if a prompt has none; it is an error if the user chose such a method."""
    needing = [name for name, method in methods.items() if getattr(method, "needs_alternative", False)]
    without = [n for n, alternative in enumerate(alternatives) if alternative is None]
    if needing and without and not are_all:
        raise InputError(
            f"Method {needing[0]!r} contrasts the target with a known alternative; {len(without)} of {len(alternatives)} prompts "
            f"have none (the first is prompt {without[0]}). Use the prompts of js.ground_truth, or leave the method out."
        )
    return {name: method for name, method in methods.items() if not (without and name in needing)}


@dataclass(frozen=True)
class Explained:
    """Scores of one prediction by one method, and their cost."""

    scores: Float[Tensor, "pos"]
    passes: int
    seconds: float


@dataclass
class Explainer:
    """Some methods on one case. Each method explains a target only once."""

    view: ModelView
    methods: dict[str, Any]
    _known: dict[tuple[str, int], Explained] = field(default_factory=dict)

    def all(self, tokens: Int[Tensor, "pos"], target: int, alternative: int | None = None) -> dict[str, Explained]:
        """The scores of every method for the prediction of ``target``."""
        return {name: self._one(name, tokens, target, alternative) for name in self.methods}

    def _one(self, name: str, tokens: Int[Tensor, "pos"], target: int, alternative: int | None) -> Explained:
        if (name, target) not in self._known:
            start = time.perf_counter()
            try:
                scores, passes = _explained(name, self.methods[name], self.view.model, tokens, target, alternative)
            except InputError as error:
                raise InputError(f"Method {name!r}: {error} Or leave it out: methods=[...].") from error
            self._known[name, target] = Explained(scores, passes, time.perf_counter() - start)
        return self._known[name, target]


def _explained(
    name: str, method: Any, model: Any, tokens: Int[Tensor, "pos"], target: int, alternative: int | None
) -> tuple[Float[Tensor, "pos"], int]:
    """The scores, and the number of forward and backward passes."""
    if isinstance(method, Method):
        contrasted = (alternative,) if method.needs_alternative else ()
        result, passes = method.function(model, tokens, target, *contrasted), method.n_forward
    else:
        keywords = {"scope": "semantic", **(method if isinstance(method, Mapping) else {"scope": method})}
        result, passes = _attributed(keywords, model, tokens, target), 0
    if isinstance(result, Attribution):
        passes += result.provenance.n_forward + result.provenance.n_backward
        result = result.scores
    return _checked(name, result, tokens), passes


def _attributed(keywords: dict[str, Any], model: Any, tokens: Int[Tensor, "pos"], target: int) -> Attribution:
    """The attribution with these keywords; a scope that needs a target and has none explains ``target``."""
    for name in ("model", "prompt", "position"):
        if name in keywords:
            raise InputError(
                f"{name!r} is set by the evaluation, which explains the last position of each of its prompts. Leave it out."
            )
    settings = {key: value for key, value in keywords.items() if key in RESERVED}
    scope = resolve_scope(settings.pop("scope"), {k: v for k, v in keywords.items() if k not in RESERVED})
    scope = scope.with_target(target) if scope.needs_target else scope
    return attribute(model, tokens, scope, **{**settings, "progress": False})


def _checked(name: str, result: Any, tokens: Int[Tensor, "pos"]) -> Float[Tensor, "pos"]:
    try:
        result = torch.as_tensor(result)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Method {name!r} returned {type(result).__name__}; needed is one number for each token."
        ) from error
    if result.shape != tokens.shape or result.is_complex() or not result.isfinite().all():
        raise InputError(
            f"Method {name!r} returned scores of shape {list(result.shape)}, {result.dtype}; needed are {len(tokens)} finite "
            "real numbers, one for each token."
        )
    return result.detach().double().cpu()
