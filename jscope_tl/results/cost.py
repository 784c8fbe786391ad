"""`Cost`: the cost of a computation."""

from dataclasses import dataclass

from jscope_tl.model.running import Passes
from jscope_tl.results.base import Provenance
from jscope_tl.results.checks import need


@dataclass(frozen=True)
class Cost:
    """The cost of a computation: the forward and backward passes that were run (see `Provenance`), and the seconds.

    A pass through some of the blocks counts as that fraction of a pass. Cells that cannot have an effect are counted as skipped and
    are not run: those with the same activation in both runs, and those after the explained position.
    """

    n_forward: int | float
    n_backward: int
    seconds: float
    n_skipped: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible costs, which a damaged file may have."""
        counted = (self.n_forward, self.n_backward, self.seconds, self.n_skipped)
        need(all(0 <= number < 2**53 for number in counted), "costs are numbers, not negative")

    @classmethod
    def of(cls, counted: Provenance | Passes, seconds: float, more: Passes | None = None) -> "Cost":
        """The cost from counted passes, plus the passes in ``more``."""
        more = more or Passes()
        return cls(counted.n_forward + more.n_forward, counted.n_backward + more.n_backward, seconds)

    @property
    def forward_equivalents(self) -> int | float:
        """The total number of passes; a backward row counts as one forward pass."""
        return self.n_forward + self.n_backward
