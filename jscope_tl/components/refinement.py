"""Refined predictions for the strongest components: a few blocks run with the change before it is taken to be linear."""

from dataclasses import replace

from einops import einsum

from jscope_tl.components.effects import strongest
from jscope_tl.components.linear import Found
from jscope_tl.components.runs import ComponentRuns

PASSES = 8
"""The cost of refining in forward passes; it sets how many blocks run with the change before it is taken to be linear."""
LARGE = 1.0
"""The relative change of the residual stream above which no linear prediction holds."""
BEHIND = ("ln_final.", "unembed.")
"""Hook points after the last block, whose changes are not visible in the residual stream."""
WHOLE = 4
"""How many of the components with larger changes are measured."""
TOO_LARGE = (
    "The changes of {n} components are larger, at some position after {n_blocks} blocks, than the residual stream itself: their "
    "predictions are unreliable. Measure them: effects.measure(...)."
)


def refined(found: Found, runs: ComponentRuns, most: int, progress: bool | None) -> Found:
    """The prediction with the ``most`` strongest components refined."""
    if not most or found.sites.points[0].startswith(BEHIND):
        return found
    cells = strongest(found.effect_rows.effects(found.moved)[0], most)
    n = max(1, min(runs.n_blocks, PASSES * runs.n_blocks // len(cells)))
    changes, sizes = runs.streams(cells, n, progress)
    moved = found.moved.flatten(1).clone()
    for cell, change in zip(cells, changes, strict=True):
        rows = found.streams[f"blocks.{runs.end(cell, n)}.hook_resid_post"]
        moved[:, cell] = einsum(rows, change.to(rows), "k pos d, pos d -> k").to(moved)
    large = [cell for cell, size in zip(cells, sizes, strict=True) if size > LARGE]
    rough = found.effect_rows.effects(moved)[0].abs()
    moved[:, large] = found.moved.flatten(1)[:, large]
    whole = sorted(large, key=lambda cell: -float(rough[cell]))[:WHOLE]
    measured = dict(zip(whole, runs.effects(whole, found.effect, progress).tolist(), strict=True)) if whole else {}
    left = len(large) - len(whole)
    notes = [*found.notes, *([TOO_LARGE.format(n=left, n_blocks=n)] if left else [])]
    return replace(
        found, moved=moved.view_as(found.moved), refined=tuple(cell for cell in cells if cell not in large), measured=measured,
        notes=notes, resolved={"refined": len(cells) - len(large), "blocks": n, "measured": len(whole)},
    )  # fmt: skip
