"""From a kind of components to its hook points, and to its sites in a run."""

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
    """The hook points of a kind; edges are seen through what their heads put out.

    Raises:
        InputError: the model does not have them.
    """
    if of == "features":
        return (features.features_point(view, sae, at),)
    if sae is not None or at is not None:
        raise InputError(f"sae and at go with of='features'; {of} have hook points of their own. Leave them out.")
    return parts.points_of(view, "heads" if of == "edges" else of)


def to_sites(
    setup: Setup, source: Source, forward: Run, of: str, points: tuple[str, ...], sae: Any, each: bool
) -> Sites:
    """The components of a run, and what takes their place."""
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
            "Patterns have no mean over positions, each of which looks at other ones. Give prompts of as many tokens to take the mean "
            "over, or source='zero'."
        )

    def collect(tokens: Int[Tensor, "pos"]) -> Activations:
        if len(tokens) != len(forward.tokens):
            raise InputError(
                f"The mean of patterns needs prompts of {len(forward.tokens)} tokens, as the prompt has; one has {len(tokens)}."
            )
        with setup.run(tokens, [forward.positions[0]]) as (other, _):
            forward.passes.n_forward += 1
            return patterns_of(other)

    base = patterns_of(forward)
    put = source.activations(base, forward.positions[0], collect)
    deltas = {int(layer): rearrange(put[layer] - base[layer], "dest head src -> head dest src") for layer in base}
    if len(deltas) != len(points):
        raise InputError(
            f"{setup.view.name} shows {len(deltas)} attention patterns and {len(points)} outputs of heads; needed is one for each."
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
