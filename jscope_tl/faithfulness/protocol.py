"""What is ablated, whose probability is watched, and how a curve becomes a number."""

from dataclasses import dataclass, fields, replace
from typing import Any

from jscope_tl.errors import InputError, nearest
from jscope_tl.patching.ablated_runs import REPLACEMENTS

FULL = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Protocol:
    """Conventions of the ablation measures.

    Attributes:
        fractions: shares of the tokens that are ablated together, rising.
        ablation: what takes an embedding's place: ``"zero"``, ``"mean"`` (of the vocabulary), ``"pad"`` or ``"filler"``.
        filler: the token that ``"filler"`` puts there, a string of one token or an id.
        explained: the token that scopes explain: ``"target"``, the one that follows, or ``"argmax"``, the model's own choice.
        evaluated: the token whose log-probability is followed, named alike.
        over: ``"width"``: the area under the curve divided by its width, a mean change; ``"area"``: not divided.
        stderr: ``"paired"``: from the spread of the prompts' own numbers; ``"independent"``: as if the points of a prompt's
            curve had nothing to do with each other, which is too small.
        bos: whether BOS is ranked and ablated with the others.
        prepend_bos: for strings; None is the model's default.
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
                f"ablation='filler' and filler='...', the token that is put there, go together; got {self.ablation!r} and "
                f"{self.filler!r}."
            )
        rising = all(a < b for a, b in zip(self.fractions, self.fractions[1:], strict=False))
        if len(self.fractions) < 2 or not rising or self.fractions[0] < 0 or self.fractions[-1] > 1:
            raise InputError(f"fractions are two or more increasing numbers between 0 and 1; got {self.fractions}.")

    def count(self, fraction: float, n: int) -> int:
        """How many of ``n`` tokens are ablated: one at least, unless the fraction is 0."""
        return 0 if fraction == 0 else max(1, int(fraction * n + 1e-9))

    def token(self, which: str, target: int, argmax: int) -> int:
        """The one that is meant."""
        return target if which == "target" else argmax


CORRECTED = Protocol()
"""The whole curve from no token to all, its mean change, one token explained and evaluated, errors by prompt."""

AUTHORS = Protocol((0.05, 0.1, 0.2), "zero", "target", "argmax", "area", "independent", bos=True, prepend_bos=False)
"""The authors' conventions, for comparison with their tables."""

NAMED = {"corrected": CORRECTED, "authors": AUTHORS}


def resolve_protocol(protocol: Any, changes: dict[str, Any]) -> Protocol:
    """A protocol by name or as it is, with some of its fields changed."""
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
