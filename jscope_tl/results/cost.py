"""`Cost`: what something took."""

from dataclasses import dataclass

from jscope_tl.model.running import Passes
from jscope_tl.results.base import Provenance
from jscope_tl.results.checks import need


@dataclass(frozen=True)
class Cost:
    """What something took: forward and backward passes that were run (see `Provenance`), and seconds.

    A pass through some of the blocks counts as that share of one. Cells that cannot have an effect are counted as skipped and
    not run: those where both runs have the same activation, and those after the explained position.
    """

    n_forward: int | float
    n_backward: int
    seconds: float
    n_skipped: int = 0

    def __post_init__(self) -> None:
        """Refuse what no run can have cost, as a damaged file may hold."""
        counted = (self.n_forward, self.n_backward, self.seconds, self.n_skipped)
        need(all(0 <= number < 2**53 for number in counted), "costs are numbers, not negative")

    @classmethod
    def of(cls, counted: Provenance | Passes, seconds: float, more: Passes | None = None) -> "Cost":
        """From passes that were counted, and those that were counted elsewhere."""
        more = more or Passes()
        return cls(counted.n_forward + more.n_forward, counted.n_backward + more.n_backward, seconds)

    @property
    def forward_equivalents(self) -> int | float:
        """All passes, a backward row counted as one forward pass."""
        return self.n_forward + self.n_backward
