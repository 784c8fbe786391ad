"""A bootstrap over prompts that arrive one at a time; its memory does not grow with their number."""

import numpy as np
from jaxtyping import Float

RESAMPLES, FEWEST, MOST_NUMBERS = 1000, 200, 20_000_000
"""The number of resamples; for very many components there are fewer, so that resamples have at most ``MOST_NUMBERS`` numbers, but at least
``FEWEST``, which is enough for a 95 % interval."""


class Resampled:
    """Means over resamples of the prompts. Each resample has every prompt ``Poisson(1)`` times, which for many prompts is equivalent to
    drawing the same number with replacement (Oza and Russell 2001; Chamandy et al. 2012)."""

    def __init__(self, n_components: int, seed: int) -> None:
        n = min(RESAMPLES, max(FEWEST, MOST_NUMBERS // max(1, n_components)))
        self._rng = np.random.default_rng(seed)
        self._times = np.zeros(n)
        self._sums = np.zeros((n, n_components), dtype=np.float32 if n < RESAMPLES else np.float64)

    def add(self, values: Float[np.ndarray, "component"]) -> None:
        """Add the effects in one more prompt."""
        times = self._rng.poisson(1.0, len(self._times))
        drawn = times > 0
        self._times += times
        self._sums[drawn] += times[drawn, None] * values

    def interval(self) -> tuple[Float[np.ndarray, "component"], Float[np.ndarray, "component"]]:
        """The limits of the 95 % interval of each component's mean; resamples without a prompt are left out."""
        drawn = self._times > 0
        low, high = np.quantile(self._sums[drawn] / self._times[drawn, None], [0.025, 0.975], axis=0)
        return low, high
