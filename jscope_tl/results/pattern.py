"""`InfluencePattern`: scores for the predictions at several positions, in the layout of an attention pattern."""

from dataclasses import dataclass, fields

from jaxtyping import Float
from torch import Tensor

from jscope_tl.results.attribution import Attribution
from jscope_tl.results.base import PredictedToken, Result
from jscope_tl.results.checks import need


@dataclass(frozen=True, eq=False, kw_only=True)
class InfluencePattern(Result):
    """The scores of one scope for the predictions at several positions, over all earlier positions.

    Row ``i`` has the scores of `attribute` with ``position=positions[i]``. Scores of one row can be compared with each other; scores
    of two rows only as far as the predictions are comparable (if a prediction is certain, all scores of its row are small).

    Attributes:
        scores: ``[dest, src]``, float32 on the CPU; unsigned, 0 where ``src`` is after ``dest``.
        stderr: ``[dest, src]``, standard errors of estimated scores (0 in exact rows); None if all are exact.
        positions: the explained position of each row.
        targets: the token that each row explains or reports, and its probability.
        tokens, str_tokens, position, scope, options, unit, basis, provenance, warnings, bos_positions, baseline: as in `Result`;
            ``options["resolved"]`` has an entry for each row.
    """

    scores: Float[Tensor, "dest src"]
    stderr: Float[Tensor, "dest src"] | None
    positions: tuple[int, ...]
    targets: tuple[PredictedToken, ...]

    def __post_init__(self) -> None:
        """Refuse inconsistent fields, which a damaged file may have."""
        super().__post_init__()
        need(len(self.targets) == len(self.positions), "there is a target for each position")

    def _rows(self) -> tuple[Float[Tensor, "row pos"], Float[Tensor, "row pos"] | None]:
        return self.scores, self.stderr

    def _labels(self) -> list[tuple[str | None, int]]:
        return [(None, position) for position in self.positions]

    def _index(self) -> list[str]:
        return ["explained"]

    def headline(self) -> str:
        """Scope, shape, targets, baseline, unit, hook point, and prepended token, in one line."""
        shape = f"[dest, src] = {len(self.positions)} x {len(self.str_tokens)}"
        return (
            f"{self.scope} scope, {shape}{self.asked}, in {self.unit}, at {self.provenance.hook_point}{self.prepended}"
        )

    @property
    def asked(self) -> str:
        """``, target ' are' against ' is'`` or ``, each with its own target``; empty if the scope explains no single token."""
        return self._asked({target.str_token for target in self.targets})

    def __repr__(self) -> str:
        return "\n".join(
            [f"InfluencePattern: {self.headline()}", *(f"  warning: {warning}" for warning in self.warnings)]
        )


def as_pattern(result: InfluencePattern | Attribution) -> InfluencePattern:
    """An attribution as an influence pattern of one row."""
    if isinstance(result, InfluencePattern):
        return result
    scores, stderr = result._rows()
    shared = {f.name: getattr(result, f.name) for f in fields(Result)}
    targets = (result.prediction.target,)
    return InfluencePattern(scores=scores, stderr=stderr, positions=(result.position,), targets=targets, **shared)
