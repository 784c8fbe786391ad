"""Means over prompts by category, in one pass; memory is needed for each category, not for each prompt."""

from functools import cache

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student

from jscope_tl.corpus.tokens import Tokens
from jscope_tl.faithfulness.results import Mean

CONFIDENCE = 0.95
QUANTITIES = ("share", "expected", "ratio", "top")
"""Quantities of a category in a prompt: its share of the scores, the share by chance, their ratio, and whether it has the highest score."""


class Means:
    """Running means of several quantities by category, with the sums of squared deviations (Chan, Golub and LeVeque 1979)."""

    def __init__(self, n_quantities: int) -> None:
        self.n = np.zeros(0)
        self.n_tokens = np.zeros(0)
        self.means = np.zeros((n_quantities, 0))
        self._squares = np.zeros((n_quantities, 0))

    def add(self, category: Int[np.ndarray, "m"], values: Float[np.ndarray, "quantity m"]) -> None:
        """Add one value of each quantity for each of these categories."""
        if not len(category):
            return
        kinds, place = np.unique(category, return_inverse=True)
        self._grow(int(kinds[-1]) + 1)
        n = np.bincount(place).astype(float)
        means = np.stack([np.bincount(place, row) for row in values]) / n
        squares = np.stack([np.bincount(place, row) for row in (values - means[:, place]) ** 2])
        before, both = self.n[kinds], self.n[kinds] + n
        apart = means - self.means[:, kinds]
        self.means[:, kinds] += apart * n / both
        self._squares[:, kinds] += squares + apart**2 * before * n / both
        self.n[kinds] = both

    def add_tokens(self, category: Int[np.ndarray, "n"], tokens: Tokens) -> None:
        """Add the `QUANTITIES` of each prompt by the category of its tokens; categories below 0 are skipped."""
        kept = category >= 0
        category, row = category[kept], tokens.row[kept]
        if not len(category):
            return
        width = int(category.max()) + 1
        pairs, place = np.unique(row * width + category, return_inverse=True)
        share, expected, top = (
            np.bincount(place, values[kept].astype(float))
            for values in (tokens.share, tokens.expected, tokens.strongest)
        )
        self.add(pairs % width, np.stack([share, expected, share / expected, top]))
        self.n_tokens[:width] += np.bincount(category, minlength=width)

    def mean(self, category: int, quantity: int) -> Mean:
        """The mean of a quantity over the prompts that have the category, with the interval of Student's t, which is NaN for one prompt."""
        n, mean = int(self.n[category]), float(self.means[quantity, category])
        if n < 2:
            return Mean(mean, np.nan, np.nan, np.nan, n)
        error = float(np.sqrt(self._squares[quantity, category] / (n - 1) / n))
        half = error * _quantile(n - 1)
        return Mean(mean, error, mean - half, mean + half, n)

    def stderrs(self, quantity: int) -> Float[np.ndarray, "category"]:
        """The standard errors of the means of a quantity; NaN for a single value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(self._squares[quantity] / np.where(self.n > 1, self.n - 1, np.nan) / self.n)

    def _grow(self, width: int) -> None:
        more = max(0, width - len(self.n))
        if more:
            self.n, self.n_tokens = (np.pad(old, (0, more)) for old in (self.n, self.n_tokens))
            self.means, self._squares = (np.pad(old, ((0, 0), (0, more))) for old in (self.means, self._squares))


@cache
def _quantile(freedom: int) -> float:
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom))
