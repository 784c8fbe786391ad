"""`components`: the effects of heads, edges, MLPs, neurons and features on the quantity that a scope explains."""

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.describe import of_prompt
from jscope_tl.attribution.keywords import refuse
from jscope_tl.attribution.setup import Setup, set_up
from jscope_tl.components.effects import KINDS, ComponentEffects, Measurer, measurable
from jscope_tl.components.kinds import points_of
from jscope_tl.components.linear import Found, linear
from jscope_tl.components.refinement import refined
from jscope_tl.components.runs import ComponentRuns
from jscope_tl.components.sites import Sites
from jscope_tl.components.sources import Source, texts_of_source, to_source
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.inputs import NORM
from jscope_tl.engine.rules import Rules
from jscope_tl.errors import InputError, count, nearest
from jscope_tl.model.prompts import Prompt
from jscope_tl.model.running import ONE_AT_A_TIME
from jscope_tl.model.view import ModelView
from jscope_tl.results.cost import Cost
from jscope_tl.scopes.base import Scope

REFINED = 44
"""How many components are refined by default."""
POSITIONS = ("all", "each")


@documented
@torch.inference_mode(False)
def components(
    model: Any,
    prompt: Prompt,
    scope: str | Scope | Callable[..., Any] = "fisher",
    *,
    of: str = "heads",
    source: Any = "zero",
    position: int = -1,
    positions: str = "all",
    prompts: Sequence[Any] | None = None,
    resample_seed: int = 0,
    direction: str = "noising",
    sae: Any = None,
    at: str | None = None,
    refine: int | None = None,
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> ComponentEffects:
    """Predict the effect of changing each head, edge, MLP, neuron or feature on a prediction, for all of them at once.

    One forward pass and backward passes of a few cotangents ``C`` (the rows) give, for every component, the change of each row's product
    with the final hidden state when the component's activation ``a`` is changed, ``m = C J_a (a_source - a)``. For a scope with one
    cotangent this is the first-order change of the quantity that the scope explains (attribution patching, signed). For ``"fisher"``
    the effect is the KL divergence between the prediction and the changed one: that of ``softmax(z + D Δy)`` along 12 leading
    directions of the Fisher matrix, plus ``½ E m²`` from 8 random probes of the rest.

    Networks are not linear, above all when early components are ablated. The ``refine`` components with the largest predicted effects
    are therefore refined: the model runs its next blocks with the component changed, in batches that together cost eight forward
    passes, and only after these blocks the change is taken to be linear. If the change is then larger than the residual stream itself
    at some position, no linear prediction holds: the effects of up to four such components are measured, and the result has a warning
    about the others. `ComponentEffects.measure` measures the strongest components in whole runs.

    Args:
        of: ``"heads"``: outputs of heads before ``W_O`` (``attn.hook_z``); ``"edges"``: entries of their attention patterns (with
            ``source="zero"``, the effect if the head did not attend there); ``"attn"``, ``"mlps"``: outputs of layers; ``"neurons"``
            (``mlp.hook_post``); ``"features"``: the active features of an autoencoder ``sae``, and its error as one more component.
        source: the activations that replace those of a component: ``"zero"``; ``"mean"``, over the positions of the prompt up to the
            explained one, or over ``prompts``; ``"resample"``, from one of ``prompts``, drawn at random; or another prompt with the
            same number of tokens, from which they are taken.
        positions: ``"all"``: a component is changed at all positions together; ``"each"``: at one position at a time (not for edges).
        prompts: for ``"mean"`` and ``"resample"``. If all have as many tokens as the prompt, there is a mean for each position, else one
            mean for all positions.
        resample_seed: the seed that draws one of the prompts.
        direction: with another prompt as source: ``"noising"`` puts its activations into ``prompt``; ``"denoising"`` runs the source,
            which is the corrupted prompt, and puts the activations of ``prompt`` into it.
        sae: an object with ``encode`` and ``decode``, for ``of="features"``, such as an SAE of SAELens.
        at: the hook point of the autoencoder; None: the one in ``sae.cfg``.
        refine: how many components are refined; 0 for none. None: 44, or none if hooks of the user are active.
        options: options of the scope, if it is given by name: ``target``; for ``"fisher"`` also ``rank``, ``probes``, ``method="exact"``.
        {shared}

    Returns:
        `ComponentEffects`.

    Raises:
        InputError: an unknown kind or source, an autoencoder of another width, a source of another length, a model without the hook
            points or without attention patterns, and the cases in which `attribute` raises it.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> effects = js.patching.components(model, "the keys to the cabinet near the doors", "fisher")
        >>> effects.axes, tuple(effects.predicted.shape), effects.unit
        (('layer', 'head'), (4, 4), 'nat (KL)')
    """
    start = time.perf_counter()
    refuse("patching.components", options)
    _check(of, positions)
    setup = set_up(
        model, scope, options, fwd_hooks=fwd_hooks, reduction=NORM, gradient=gradient, frozen=frozen, chunk_size=chunk_size,
        matmul_precision=matmul_precision, progress=progress,
    )  # fmt: skip
    view = setup.view
    put, tokens, explained = to_source(view, prompt, source, prompts, direction, prepend_bos, position, resample_seed)
    most = _most_refined(setup, refine)
    setup, points = _watching(setup, of, sae, at, streams=most > 0)
    found = linear(setup, put, tokens, explained, of, points, sae, positions == "each")
    runs = ComponentRuns(view, found.sites, tokens, explained, setup.settings.fwd_hooks)
    found = refined(found, runs, most, progress)
    effects = _effects(setup, found, put, runs, time.perf_counter() - start)
    return measurable(of_prompt(effects, prompt), _measurer(view, found, runs))


def _check(of: Any, positions: Any) -> None:
    if not isinstance(of, str) or of not in KINDS:
        raise InputError(f"There are no components {of!r}.{nearest(str(of), KINDS)} Known: {', '.join(KINDS)}.")
    if positions not in POSITIONS:
        raise InputError(f"positions is 'all' or 'each', not {positions!r}.")
    if of == "edges" and positions == "each":
        raise InputError("Edges have their own positions, dest and src; leave positions='each' out.")


def _most_refined(setup: Setup, refine: Any) -> int:
    """How many components are refined. With hooks of the user, which need whole runs, refining would take as long as measuring."""
    with ONE_AT_A_TIME:  # waits until the hooks of another thread's run are removed
        hooked = setup.view.is_hooked(setup.settings.fwd_hooks)
    return count("refine", (0 if hooked else REFINED) if refine is None else refine, 0)


def _watching(setup: Setup, of: str, sae: Any, at: Any, streams: bool) -> tuple[Setup, tuple[str, ...]]:
    """The settings with which a run keeps the activations that are needed, and the hook points of the components."""
    view, names = setup.view, list[str]()
    points = points_of(view, of, sae, at)
    if streams:
        names = [f"blocks.{layer}.hook_resid_post" for layer in range(int(view.cfg.n_layers))]
    watched = tuple(dict.fromkeys([*points, *(name for name in names if name in view.points)]))
    return replace(setup, settings=replace(setup.settings, watched=watched, patterns=of == "edges")), points


def _effects(setup: Setup, found: Found, source: Source, runs: ComponentRuns, seconds: float) -> ComponentEffects:
    values, stderr = found.effect_rows.effects(found.moved)
    if not values.isfinite().all():
        raise InputError(f"Some effects on {setup.view.name} are infinite or undefined. Try a model in float32.")
    refined = torch.zeros(values.numel(), dtype=torch.bool, device="cpu")
    refined[list(found.refined)] = True
    about_it, resolved = found.described, dict(found.resolved or {})
    resolved |= {"rows": len(found.effect_rows.rows), "probes": found.effect_rows.n_probes}
    if setup.scope.needs_target:
        resolved["target"] = about_it["prediction"].target.str_token
    provenance = about_it["provenance"]
    cost = Cost(provenance.n_forward + runs.n_forward, provenance.n_backward, seconds)
    return ComponentEffects(
        of=found.sites.of,
        axes=found.sites.axes,
        predicted=values.detach().float().cpu(),
        stderr=None if stderr is None else stderr.detach().float().cpu(),
        refined=refined.view(values.shape),
        measured=_measured(found.measured, values),
        index=found.sites.index,
        hook_points=_hook_points(found.sites),
        source=source.name,
        direction=source.direction,
        scope=about_it["scope"],
        asked=about_it["asked"],
        options={**setup.options(), "resolved": resolved},
        unit=setup.scope.effect_unit,
        tokens=about_it["tokens"],
        str_tokens=about_it["str_tokens"],
        position=runs.position,
        bos_positions=about_it["bos_positions"],
        source_str_tokens=texts_of_source(setup.view, source),
        prediction=about_it["prediction"],
        provenance=provenance,
        costs={"prediction": cost},
        warnings=found.notes,
    )


def _measured(found: dict[int, float], like: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"] | None:
    measured = torch.full((like.numel(),), torch.nan, device="cpu")
    measured[list(found)] = torch.tensor(list(found.values()), device="cpu")
    return measured.view(like.shape) if found else None


def _hook_points(sites: Sites) -> tuple[str, ...]:
    """The hook points that a result names: for edges those of patterns, although their gradients are taken at ``z``."""
    return (
        tuple(name.replace("hook_z", "hook_pattern") for name in sites.points) if sites.of == "edges" else sites.points
    )


def _measurer(view: ModelView, found: Found, runs: ComponentRuns) -> Measurer:
    """The function that measures effects in whole runs for `ComponentEffects.measure`. It has only a weak reference to the model."""
    model, sites, effect, y = weakref.ref(view.model), found.sites, found.effect, found.y
    rest = (runs.tokens, runs.position, runs.hooks)

    def measure(
        effects: ComponentEffects, cells: list[int], progress: bool | None
    ) -> tuple[Float[Tensor, "cells"], Cost]:
        alive = model()
        if alive is None:
            raise InputError("The model of these effects was deleted; load it again, and call js.patching.components.")
        start = time.perf_counter()
        again = ComponentRuns(ModelView(alive), sites, *rest)
        values = again.effects(cells, effect, progress) if cells else torch.zeros(0, device="cpu")
        if cells and not again.ends_like(y):
            raise InputError(
                "The model's prediction has changed since these effects were predicted, because of other hooks or weights. Call "
                "js.patching.components again, and measure its result."
            )
        return values.float(), Cost(again.n_forward, 0, time.perf_counter() - start)

    return measure
