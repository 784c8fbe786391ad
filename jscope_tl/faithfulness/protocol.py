"""Conventions of the ablation measures: what is ablated, which token is evaluated, and how a curve becomes a number."""

from dataclasses import dataclass, fields, replace
from typing import Any

from jscope_tl.errors import InputError, nearest
from jscope_tl.patching.ablated_runs import REPLACEMENTS

FULL = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Protocol:
    """Conventions of the ablation measures.

    Attributes:
        fractions: the fractions of the tokens that are ablated together, increasing.
        ablation: the replacement of an embedding: ``"zero"``, ``"mean"`` (of the vocabulary), ``"pad"`` or ``"filler"``.
        filler: the token that ``ablation="filler"`` inserts, a string of one token or an id.
        explained: the token that scopes explain: ``"target"``, the one that follows in the text, or ``"argmax"``, the model's most
            probable one.
        evaluated: the token whose log-probability is measured, ``"target"`` or ``"argmax"``.
        over: ``"width"``: the area under the curve divided by its width, which is a mean change; ``"area"``: not divided.
        stderr: ``"paired"``: from the spread of the numbers of the prompts; ``"independent"``: treats the points of a prompt's curve as
            independent, which makes the standard error too small.
        bos: whether BOS is ranked and ablated like other tokens.
        prepend_bos: whether strings get a BOS token; None: the model's default.
    """

    fractions: tuple[float, ...] = FULL
    ablation: str = "zero"
    explained: str = "argmax"
    evaluated: str = "argmax"
    over: str = "width"
    stderr: str = "paired"
    bos: bool = False
    prepend_bos: bool | None = None
    filler: str | int | None = None

    def __post_init__(self) -> None:
        choices = {
            "ablation": (*REPLACEMENTS, "filler"), "explained": ("target", "argmax"), "evaluated": ("target", "argmax"),
            "over": ("width", "area"), "stderr": ("paired", "independent"),
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                near = nearest(str(getattr(self, name)), known)
                raise InputError(f"{name} is one of {', '.join(known)}; got {getattr(self, name)!r}.{near}")
        if (self.ablation == "filler") != (self.filler is not None):
            raise InputError(
                f"ablation='filler' needs filler='...', the token that is inserted, and no other ablation has a filler; got "
                f"{self.ablation!r} and {self.filler!r}."
            )
        rising = all(a < b for a, b in zip(self.fractions, self.fractions[1:], strict=False))
        if len(self.fractions) < 2 or not rising or self.fractions[0] < 0 or self.fractions[-1] > 1:
            raise InputError(f"fractions are two or more increasing numbers between 0 and 1; got {self.fractions}.")

    def count(self, fraction: float, n: int) -> int:
        """The number of tokens to ablate out of ``n``: at least one, unless the fraction is 0."""
        return 0 if fraction == 0 else max(1, int(fraction * n + 1e-9))

    def token(self, which: str, target: int, argmax: int) -> int:
        """The token id that ``"target"`` or ``"argmax"`` stands for."""
        return target if which == "target" else argmax


CORRECTED = Protocol()
"""The whole curve from no token to all tokens, the mean change, the same token explained and evaluated, and standard errors over prompts."""

AUTHORS = Protocol((0.05, 0.1, 0.2), "zero", "target", "argmax", "area", "independent", bos=True, prepend_bos=False)
"""The conventions of the authors of Jacobian Scopes, for comparison with their tables."""

NAMED = {"corrected": CORRECTED, "authors": AUTHORS}


def resolve_protocol(protocol: Any, changes: dict[str, Any]) -> Protocol:
    """A protocol, given by its name or as an object, with some of its fields changed."""
    found = NAMED.get(protocol) if isinstance(protocol, str) else protocol
    if not isinstance(found, Protocol):
        near = nearest(str(protocol), NAMED)
        raise InputError(f"protocol is 'corrected', 'authors' or a Protocol; got {protocol!r}.{near}")
    known = [f.name for f in fields(Protocol)]
    for name in changes:
        if name not in known:
            raise InputError(f"A protocol has no {name!r}.{nearest(name, known)} It has {', '.join(known)}.")
    if "fractions" in changes:
        try:
            changes = {**changes, "fractions": tuple(float(fraction) for fraction in changes["fractions"])}
        except (TypeError, ValueError) as error:
            raise InputError(f"fractions are two or more increasing numbers; got {changes['fractions']!r}.") from error
    return replace(found, **changes)
