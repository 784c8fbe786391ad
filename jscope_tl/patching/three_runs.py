"""`side_by_side`: one scope of a clean, a corrupted and a patched run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.attribute import attribute
from jscope_tl.errors import InputError
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.model.view import ModelView
from jscope_tl.patching.pairs import source_activations, to_pair
from jscope_tl.patching.patched_runs import put
from jscope_tl.model.prompts import Prompt, to_position
from jscope_tl.results.attribution import Attribution
from jscope_tl.scopes.base import Scope
from jscope_tl.scopes.registry import resolve_scope

Name = Literal["clean", "corrupted", "patched"]


@dataclass(frozen=True)
class SideBySide:
    """The same scope of three runs: the clean prompt, the corrupted one, and one of them with activations of the other.

    Attributes:
        clean, corrupted, patched: the results. The patched run has the corrupted prompt for ``"denoising"``.
        patched_at: the hook point and the positions that were patched.
    """

    clean: Attribution
    corrupted: Attribution
    patched: Attribution
    patched_at: tuple[str, tuple[int, ...]]

    def difference(self, of: Name, minus: Name) -> Float[Tensor, "*layer pos"]:
        """Scores of one run minus those of another, in their unit; signed."""
        runs = {"clean": self.clean, "corrupted": self.corrupted, "patched": self.patched}
        for name in (of, minus):
            if name not in runs:
                raise InputError(f"The runs are clean, corrupted and patched; there is no {name!r}.")
        return runs[of].scores - runs[minus].scores


def side_by_side(
    model: Any,
    clean: Prompt,
    corrupted: Prompt,
    patch_at: str,
    patch_positions: Iterable[int] | int,
    scope: str | Scope | Callable[..., Any] = "semantic",
    *,
    direction: str = "denoising",
    at: str | Sequence[str] = "hook_embed",
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    **options: Any,
) -> SideBySide:
    """Explain a clean, a corrupted and a patched run of one prompt pair.

    Args:
        clean, corrupted: prompts of the same number of tokens.
        patch_at, patch_positions: the hook point and the positions that the patched run takes from the other run.
        direction: ``"denoising"``: clean activations in the corrupted run; ``"noising"``: the reverse.
        at: hook point of the scores; below the patch it sees only what the patch leaves to it.
        model, scope, prepend_bos, fwd_hooks, options: see `attribute`. Without a ``target`` all
            three explain that of the clean run.

    Raises:
        InputError: as `attribute`; prompts of different length or the same; positions outside the prompt.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> pair = "the keys near the door", "the key near the door"
        >>> runs = js.patching.side_by_side(model, *pair, "blocks.2.hook_resid_pre", [5], "log_prob", target=" are")
        >>> runs.clean.prediction.target.probability > 0.9 > runs.corrupted.prediction.target.probability
        True
    """
    view = ModelView(model)
    pair, _ = to_pair(view, clean, corrupted, direction, prepend_bos)
    point = view.hook_point(patch_at)
    if view.reads_beside(point):
        raise InputError(
            f"On a TransformerBridge a patch at {point!r} would not reach the stream. Patch at 'hook_resid_pre'."
        )
    positions = _positions(patch_positions, len(pair.base))
    hooks = list(fwd_hooks or ())
    source = source_activations(view, pair, [point], hooks)
    patches = [(point, partial(put, source[point], t)) for t in positions]
    scope = resolve_scope(scope, options)
    prompts = (pair.source, pair.base) if direction == "denoising" else (pair.base, pair.source)
    clean_run = attribute(model, prompts[0], scope, at=at, fwd_hooks=hooks)
    if getattr(scope, "target", "") is None:  # all three explain the token of the clean run
        scope = replace(scope, target=clean_run.prediction.target.token)  # type: ignore[type-var]
    corrupted_run = attribute(model, prompts[1], scope, at=at, fwd_hooks=hooks)
    patched = attribute(model, pair.base, scope, at=at, fwd_hooks=[*hooks, *patches])
    return SideBySide(clean_run, corrupted_run, patched, (point, positions))


def _positions(positions: Any, n_tokens: int) -> tuple[int, ...]:
    given = list(positions) if isinstance(positions, Iterable) and not isinstance(positions, str) else [positions]
    places = tuple(dict.fromkeys(to_position(position, n_tokens) for position in given))
    if not places:
        raise InputError("patch_positions are the positions to take from the other run, one or more; got none.")
    return places
