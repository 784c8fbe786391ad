"""The hook points of each kind of components, and the components of a run."""

from typing import Any

from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.attribution.setup import Setup
from jscope_tl.components import features
from jscope_tl.components import sites as parts
from jscope_tl.components.edges import Edges, patterns_of
from jscope_tl.components.sites import Sites
from jscope_tl.components.sources import Activations, Source
from jscope_tl.engine.run import Run
from jscope_tl.errors import InputError
from jscope_tl.model.running import Passes, captured
from jscope_tl.model.view import ModelView


def points_of(view: ModelView, of: str, sae: Any, at: Any) -> tuple[str, ...]:
    """The hook points of a kind of components; for edges these are the outputs of the heads.

    Raises:
        InputError: the model does not have them.
    """
    if of == "features":
        return (features.features_point(view, sae, at),)
    if sae is not None or at is not None:
        raise InputError(f"sae and at need of='features'; {of} have their own hook points. Leave sae and at out.")
    return parts.points_of(view, "heads" if of == "edges" else of)


def to_sites(
    setup: Setup, source: Source, forward: Run, of: str, points: tuple[str, ...], sae: Any, each: bool
) -> Sites:
    """The components of a run, with the activations that replace theirs."""
    if of == "edges":
        return _edges(setup, source, forward, points)
    if of == "features":
        return _features(setup, source, forward, points, sae, each)
    view, last = setup.view, forward.positions[0]

    def collect(tokens: Int[Tensor, "pos"]) -> Activations:
        found = _captured(setup, tokens, points, forward.passes)
        return {name: parts.shaped(view, of, name, found[name]) for name in points}

    base = parts.base_activations(view, of, forward)
    put = source.activations(base, last, collect)
    return parts.ActivationParts(of, points, put, {name: put[name] - base[name] for name in points}, each)


def _captured(
    setup: Setup, tokens: Int[Tensor, "pos"], points: tuple[str, ...], passes: Passes
) -> dict[str, Float[Tensor, "1 pos ..."]]:
    return captured(setup.view, rearrange(tokens, "pos -> 1 pos"), points, setup.settings.fwd_hooks, passes)


def _edges(setup: Setup, source: Source, forward: Run, points: tuple[str, ...]) -> Edges:
    if source.kind == "mean" and not source.prompts:
        raise InputError(
            "Attention patterns have no mean over positions, because each position attends to different ones. Give prompts with the same "
            "number of tokens to average over, or source='zero'."
        )

    def collect(tokens: Int[Tensor, "pos"]) -> Activations:
        if len(tokens) != len(forward.tokens):
            raise InputError(
                f"The mean of patterns needs prompts of {len(forward.tokens)} tokens, like the explained prompt; one has {len(tokens)}."
            )
        with setup.run(tokens, [forward.positions[0]]) as (other, _):
            forward.passes.n_forward += 1
            return patterns_of(other)

    base = patterns_of(forward)
    put = source.activations(base, forward.positions[0], collect)
    deltas = {int(layer): rearrange(put[layer] - base[layer], "dest head src -> head dest src") for layer in base}
    if len(deltas) != len(points):
        raise InputError(
            f"{setup.view.name} has {len(deltas)} attention patterns and {len(points)} hook points of head outputs; edges need one pattern for "
            "each hook point."
        )
    return Edges(points, tuple(deltas), deltas)


def _features(setup: Setup, source: Source, forward: Run, points: tuple[str, ...], sae: Any, each: bool) -> Sites:
    (name,), last = points, forward.positions[0]
    sae = features.fitted(sae, forward.watched[name])

    def collect(tokens: Int[Tensor, "pos"]) -> Activations:
        return vars(features.encoded(sae, _captured(setup, tokens, points, forward.passes)[name], name))

    base = features.encoded(sae, forward.watched[name], name)
    put = features.Encoded(**source.activations(vars(base), last, collect))
    return features.Features(
        sae, points, features.vectors_of(forward.watched[name]), base, put, features.active(base, put, last), each
    )
