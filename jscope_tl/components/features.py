"""Features of a sparse autoencoder as components, and its error as one more component."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.components.names import ERROR
from jscope_tl.components.sites import Sites
from jscope_tl.errors import InputError, nearest
from jscope_tl.model.hooks import hooked
from jscope_tl.model.view import ModelView


@dataclass(frozen=True)
class Encoded:
    """The vector of every position as encoded by an autoencoder: activations of features, and the error ``x - decode(encode(x))``."""

    acts: Float[Tensor, "pos d_sae"]
    error: Float[Tensor, "pos d_in"]


@dataclass(frozen=True)
class Features(Sites):
    """The active features of an autoencoder at one hook point, and its error.

    Attributes:
        sae: an object with ``encode`` and ``decode``.
        vectors: the unchanged vectors at the hook point.
        base, source: the encodings of the run, and of the replacing activations.
        ids: the numbers of the features that are active in either of them; -1 for the error.
        each: whether every position is a separate component.
    """

    sae: Any
    points: tuple[str, ...]
    vectors: Float[Tensor, "pos d_in"]
    base: Encoded
    source: Encoded
    ids: Int[Tensor, "feature"]
    each: bool
    of = "features"

    @property
    def index(self) -> Int[Tensor, "feature"]:  # type: ignore[override]
        """The ids."""
        return self.ids

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """``feature``, and ``pos`` if every position is a separate component."""
        return ("feature", "pos") if self.each else ("feature",)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of the array of components."""
        return (len(self.ids), len(self.base.acts)) if self.each else (len(self.ids),)

    def moved(self, rows: Sequence[Float[Tensor, "chunk pos ..."]]) -> Float[Tensor, "chunk *axes"]:
        """The vector-Jacobian product of each row with the decoder, times the change of each feature; and rows times the change of the error."""
        vectors = rows[0].flatten(2)
        with torch.enable_grad():
            acts = self.base.acts.clone().requires_grad_()
            decoded = self._decoded(acts)
        if not decoded.requires_grad:
            raise InputError(
                "The autoencoder's decode gives no gradients with respect to the features, so their effects cannot be predicted. Give an "
                "autoencoder whose decode is differentiable, without torch.no_grad inside."
            )
        grads = [torch.autograd.grad(decoded, acts, row.to(decoded), retain_graph=True)[0] for row in vectors]
        ids = self.ids[self.ids != ERROR].to(acts.device)
        change = (self.source.acts - self.base.acts)[:, ids]
        parts = torch.stack([grad[:, ids] * change for grad in grads]).to(vectors)
        error = (vectors * (self.source.error - self.base.error).to(vectors)).sum(-1, keepdim=True)
        moved = rearrange(torch.cat([parts, error], -1), "chunk pos feature -> chunk feature pos")
        return moved if self.each else moved.sum(-1)

    @contextmanager
    def changed(self, view: ModelView, cells: Sequence[int | None]) -> Iterator[None]:
        """A hook that adds the change of the decoded vectors that comes from changing a feature."""
        deltas = [None if cell is None else self._delta(cell) for cell in cells]
        with hooked(view, [], [(self.points[0], partial(_added, deltas))]):
            yield

    @torch.no_grad()
    def _delta(self, cell: int) -> Float[Tensor, "pos d_in"]:
        feature, pos = divmod(cell, len(self.base.acts)) if self.each else (cell, slice(None))
        if int(self.ids[feature]) == ERROR:
            delta = torch.zeros_like(self.base.error)
            delta[pos] = (self.source.error - self.base.error)[pos]
            return delta
        acts = self.base.acts.clone()
        acts[pos, self.ids[feature]] = self.source.acts[pos, self.ids[feature]]
        return self._decoded(acts) - self._decoded(self.base.acts)

    def _decoded(self, acts: Float[Tensor, "pos d_sae"]) -> Float[Tensor, "pos d_in"]:
        """The decoded vectors. ``encode`` comes first, because autoencoders that normalise their input keep its scale for the next ``decode``."""
        with torch.no_grad():
            self.sae.encode(self.vectors)
        return self.sae.decode(acts)


def _added(
    deltas: Sequence[Float[Tensor, "pos d_in"] | None], activation: Float[Tensor, "batch pos ..."], hook: Any
) -> Float[Tensor, "batch pos ..."]:
    changed = activation.clone()
    for row, delta in enumerate(deltas):
        if delta is not None:
            changed[row] += delta.to(changed).view_as(changed[row])
    return changed


def features_point(view: ModelView, sae: Any, at: Any) -> str:
    """The hook point of an autoencoder: ``at`` if it is given, else the one in the autoencoder's configuration.

    Raises:
        InputError: neither names a hook point, the model does not have it, or ``sae`` is not an autoencoder.
    """
    if not (callable(getattr(sae, "encode", None)) and callable(getattr(sae, "decode", None))):
        raise InputError(
            f"of='features' needs sae=, an object with encode and decode, such as an SAE of SAELens; got {type(sae).__name__}."
        )
    cfg = getattr(sae, "cfg", None)
    own = getattr(cfg, "hook_name", None) or getattr(getattr(cfg, "metadata", None), "hook_name", None)
    name = at if at is not None else own
    if not isinstance(name, str) or name not in view.points:
        unknown = "" if name is None else f" {view.name} has no hook point {name!r}.{nearest(str(name), view.points)}"
        raise InputError(
            f"Features need the hook point at which the autoencoder was trained.{unknown} Give it as at=, such as "
            "at='blocks.5.hook_resid_post'."
        )
    return name


def vectors_of(x: Float[Tensor, "1 pos ..."]) -> Float[Tensor, "pos d_in"]:
    """The activation as one vector for each position."""
    return x.detach()[0].flatten(1)


@dataclass(frozen=True)
class OfHeads:
    """Adapter for an autoencoder that needs a separate axis for heads (as SAELens' at ``hook_z``), to vectors of all heads together."""

    sae: Any
    heads: int

    def encode(self, vectors: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos d_sae"]:
        """The features of all heads together."""
        return self.sae.encode(rearrange(vectors, "pos (head d) -> pos head d", head=self.heads))

    def decode(self, acts: Float[Tensor, "pos d_sae"]) -> Float[Tensor, "pos d_in"]:
        """The vectors of all heads together."""
        return self.sae.decode(acts).flatten(1)


@torch.no_grad()
def fitted(sae: Any, x: Float[Tensor, "1 pos ..."]) -> Any:
    """The autoencoder, with an adapter if it needs a separate axis for heads at this hook point."""
    if x.ndim == 3:
        return sae
    with suppress(RuntimeError, ValueError, TypeError):
        sae.encode(vectors_of(x))
        return sae
    return OfHeads(sae, x.shape[2])


@torch.no_grad()
def encoded(sae: Any, x: Float[Tensor, "1 pos ..."], name: str) -> Encoded:
    """The vectors at a hook point as encoded by an autoencoder.

    Raises:
        InputError: the autoencoder has another width, or its values are not finite.
    """
    vectors = vectors_of(x)
    try:
        acts = sae.encode(vectors)
        decoded = sae.decode(acts)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(
            f"The autoencoder does not accept the vectors [pos, {vectors.shape[1]}] at {name!r} ({reason}). Give one that was trained at "
            "this hook point of this model."
        ) from error
    fits = isinstance(acts, Tensor) and acts.ndim == 2 and len(acts) == len(vectors)
    if not fits or getattr(decoded, "shape", None) != vectors.shape:
        raise InputError(
            f"For the vectors {list(vectors.shape)} at {name!r}, the autoencoder's encode and decode return the shapes "
            f"{list(getattr(acts, 'shape', []))} and {list(getattr(decoded, 'shape', []))}; needed are features [pos, d_sae], and vectors of "
            "the same width."
        )
    if not (acts.isfinite().all() and decoded.isfinite().all()):
        raise InputError(f"The autoencoder gives infinite or undefined values at {name!r}.")
    return Encoded(acts, vectors - decoded)


def active(base: Encoded, source: Encoded, last: int) -> Int[Tensor, "feature"]:
    """Numbers of the features that are active in either encoding up to the explained position, and -1 for the error."""
    any_active = ((base.acts != 0) | (source.acts != 0))[: last + 1].any(0)
    return torch.cat([any_active.nonzero().flatten().cpu(), torch.tensor([ERROR], device="cpu")])
