"""The keywords that entry points share, and the keywords that an entry point refuses, with the reason."""

from collections.abc import Sequence
from typing import Any

from jscope_tl.errors import InputError, nearest

SHARED = (
    "position", "at", "prepend_bos", "fwd_hooks", "reduction", "path", "gradient", "frozen", "chunk_size", "matmul_precision", "progress"
)  # fmt: skip
"""Keywords of every entry point."""
OF_COMPONENTS = dict.fromkeys(("reduction", "path"), "effects are predicted at the prompt itself, from whole rows")
NOT_TAKEN = {
    "attribute_text": {"position": "it explains the tokens of the continuation; choose among them with spans"},
    "influence_pattern": {"position": "it explains several; give them as positions"},
    "jacobian": {
        "reduction": "it returns the rows themselves, and no scores",
        "path": "it is the Jacobian at the prompt itself; to average over inputs, average the Jacobians of several prompts",
    },
    "spectrum": {
        "reduction": "singular vectors are directions of x itself",
        "path": "the singular vectors of rows averaged along a path belong to no point of the path",
    },
    "patching.compare": {
        "reduction": "effects are predicted from whole rows, times the difference of the two runs",
        "path": "effects are predicted at the base run",
    },
    "patching.components": OF_COMPONENTS,
    "patching.agreement": OF_COMPONENTS,
    "patching.ablate": {"at": "tokens are ablated at hook_embed, so the scores must refer to hook_embed too"},
    "patching.flow": {
        "at": "the vector that is followed is the token's own, at hook_embed",
        "reduction": "it multiplies rows with the vector that is followed, entry by entry",
        "path": "it is the linear approximation at the prompt itself",
        "gradient": "attention patterns and norms are held constant, and MLPs are replaced by their derivative",
        "frozen": "attention patterns and norms are held constant anyway",
        "chunk_size": "it takes one backward row",
        "matmul_precision": "it takes one backward row, and the sum of its entries is compared with the total influence",
    },
    "diagnostics.linearity": {
        "reduction": "it moves whole vectors, along directions that it chooses itself",
        "path": "the test is of the linear approximation at the prompt itself",
    },
}
"""For each entry point the keywords of `SHARED` that it refuses, with the reason."""


def refuse(function: str, given: dict[str, Any], more: Sequence[str] | None = None) -> None:
    """Refuse keywords that an entry point does not take.

    Args:
        function: a key of `NOT_TAKEN`.
        given: the further keywords that were passed.
        more: the other keywords of an entry point without scope options; all keywords outside these are then refused too.

    Raises:
        InputError: a keyword is refused; the message gives the reason, or the nearest known keyword.
    """
    for name in given:
        if name in NOT_TAKEN[function]:
            raise InputError(f"js.{function} takes no {name!r}: {NOT_TAKEN[function][name]}.")
        if more is not None:
            known = [*more, *(shared for shared in SHARED if shared not in NOT_TAKEN[function])]
            raise InputError(
                f"js.{function} has no keyword {name!r}.{nearest(name, known)} It takes {', '.join(known)}."
            )
