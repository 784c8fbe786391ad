"""`side_by_side`: the same scope for a clean, a corrupted and a patched run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.attribute import explain
from jscope_tl.attribution.describe import of_prompt
from jscope_tl.attribution.paths import Path
from jscope_tl.attribution.setup import set_up
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.inputs import Reduction
from jscope_tl.engine.rules import Rules
from jscope_tl.errors import InputError
from jscope_tl.model.pairs import need_patchable, source_activations, to_pair
from jscope_tl.model.prompts import Prompt, to_position
from jscope_tl.model.running import Passes
from jscope_tl.patching.patched_runs import put
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.checks import need
from jscope_tl.results.files import Saved
from jscope_tl.scopes.base import Scope

Name = Literal["clean", "corrupted", "patched"]


@dataclass(frozen=True, eq=False)
class SideBySide(Saved):
    """The results of one scope for three runs: the clean prompt, the corrupted prompt, and one of them with activations of the other.

    Attributes:
        clean, corrupted, patched: the results. The patched run has the corrupted prompt for ``"denoising"``, else the clean one.
        patched_at: the hook point and the positions that were patched.
    """

    clean: Attribution
    corrupted: Attribution
    patched: Attribution
    patched_at: tuple[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        """Refuse runs of different shapes, as in a damaged file."""
        shape = self.clean.scores.shape
        need(shape == self.corrupted.scores.shape == self.patched.scores.shape, "the scores of the runs have one shape")
        need(all(0 <= t < shape[-1] for t in self.patched_at[1]), f"patched positions are below {shape[-1]}")

    def difference(self, of: Name, minus: Name) -> Float[Tensor, "*layer pos"]:
        """The scores of one run minus those of another, signed, in the unit of the scores.

        Args:
            of, minus: the names of the two runs, ``"clean"``, ``"corrupted"`` or ``"patched"``.
        """
        runs = {"clean": self.clean, "corrupted": self.corrupted, "patched": self.patched}
        for name in (of, minus):
            if name not in runs:
                raise InputError(f"The runs are clean, corrupted and patched; there is no {name!r}.")
        return runs[of].scores - runs[minus].scores


@documented
def side_by_side(
    model: Any,
    clean: Prompt,
    corrupted: Prompt,
    patch_at: str,
    patch_positions: Iterable[int] | int,
    scope: str | Scope | Callable[..., Any] = "semantic",
    *,
    direction: str = "denoising",
    position: int = -1,
    at: str | Sequence[str] = "hook_embed",
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    reduction: str | Reduction | None = None,
    path: str | Path | None = None,
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> SideBySide:
    """Explain a clean, a corrupted and a patched run of one prompt pair.

    Args:
        clean, corrupted: prompts of the same number of tokens.
        patch_at, patch_positions: the hook point and the positions at which the patched run has the activations of the other run.
        direction: ``"denoising"`` puts clean activations into the corrupted run, ``"noising"`` corrupted ones into the clean run.
        at: the hook point of the scores. If it comes before ``patch_at``, scores do not include paths through the patched activations,
            which are constant.
        options: options of the scope, if it is given by name. Without a ``target``, all three runs explain the target of the clean run.
        {shared}

    Raises:
        InputError: the cases in which `attribute` raises it; prompts of different length, or identical prompts; positions outside the
            prompt.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> pair = "the keys near the door", "the key near the door"
        >>> runs = js.patching.side_by_side(model, *pair, "blocks.2.hook_resid_pre", [5], "log_prob", target=" are")
        >>> runs.clean.prediction.target.probability > 0.9 > runs.corrupted.prediction.target.probability
        True
    """
    setup = set_up(
        model, scope, options, at=at, fwd_hooks=fwd_hooks, reduction=reduction, path=path, gradient=gradient, frozen=frozen,
        chunk_size=chunk_size, matmul_precision=matmul_precision, progress=progress,
    )  # fmt: skip
    view, hooks = setup.view, setup.settings.fwd_hooks
    pair, explained = to_pair(view, clean, corrupted, direction, prepend_bos, position)
    point, positions = view.hook_point(patch_at), _positions(patch_positions, len(pair.base))
    need_patchable(view, [point])
    source = source_activations(view, pair, [point], hooks, Passes())
    where = torch.zeros(1, len(pair.base), dtype=torch.bool, device="cpu")
    where[:, list(positions)] = True
    patch = (point, partial(put, source[point], where))
    clean_tokens, corrupted_tokens = (pair.source, pair.base) if direction == "denoising" else (pair.base, pair.source)
    clean_run = of_prompt(explain(setup, clean_tokens, explained), clean)
    if setup.scope.needs_target:  # all three explain the token of the clean run
        setup = replace(setup, scope=setup.scope.with_target(clean_run.prediction.target.token))
    patched_setup = replace(setup, settings=replace(setup.settings, fwd_hooks=[*hooks, patch]))
    corrupted_run = of_prompt(explain(setup, corrupted_tokens, explained), corrupted)
    patched = of_prompt(explain(patched_setup, pair.base, explained), corrupted if direction == "denoising" else clean)
    return SideBySide(clean_run, corrupted_run, patched, (point, positions))


def _positions(positions: Any, n_tokens: int) -> tuple[int, ...]:
    given = list(positions) if isinstance(positions, Iterable) and not isinstance(positions, str) else [positions]
    places = tuple(dict.fromkeys(to_position(position, n_tokens) for position in given))
    if not places:
        raise InputError(
            "patch_positions are the positions to replace by those of the other run, one or more; got none."
        )
    return places
