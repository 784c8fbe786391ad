"""Number series of the paper (section 3.3, appendix A.2) and their form as two-digit integers."""

import numpy as np
from jaxtyping import Float, Int

Series = Float[np.ndarray, "time"]


def lorenz(n: int, rng: np.random.Generator, dt: float = 0.02, drift: float = 0.0) -> Series:
    r"""First coordinate of the Lorenz system, σ = 10, ρ = 28, β = 8/3, by a first-order explicit scheme.

    Starts at ``(U(0, 0.3), 2.01, 23.02)`` as in the paper; ``drift`` adds ``drift * t`` (in units of the time step).
    """
    x, y, z = rng.uniform(0.0, 0.3), 2.01, 23.02
    values = np.empty(n)
    for i in range(n):
        values[i] = x + drift * i
        x, y, z = x + dt * 10 * (y - x), y + dt * (x * (28 - z) - y), z + dt * (x * y - 8 / 3 * z)
    return values


def logistic_map(n: int, rng: np.random.Generator, r: float = 3.8) -> Series:
    """Iterates of ``x -> r x (1 - x)`` from a uniform start; chaotic at the paper's r = 3.8."""
    values = np.empty(n)
    x = rng.uniform(0.05, 0.95)
    for i in range(n):
        values[i] = x
        x = r * x * (1 - x)
    return values


def brownian(n: int, rng: np.random.Generator, dt: float = 0.1, sigma: float = 0.1) -> Series:
    """Standard Brownian motion sampled every ``dt``: the sum of normal steps of size ``sigma * sqrt(dt)``."""
    return np.cumsum(rng.normal(0.0, sigma * np.sqrt(dt), n))


def sine(n: int, rng: np.random.Generator) -> Series:
    """A sine of random period (6 to 30 steps) and phase, half of the time with a second one of smaller amplitude."""
    t = np.arange(n)
    values = np.sin(2 * np.pi * (t / rng.uniform(6, 30) + rng.uniform()))
    if rng.uniform() < 0.5:
        values += rng.uniform(0.2, 0.6) * np.sin(2 * np.pi * (t / rng.uniform(6, 30) + rng.uniform()))
    return values


def to_integers(values: Series) -> Int[np.ndarray, "time"]:
    """Scale a series to the integers 14..84 of the paper's prompts: ``100 ((x - min) / (max - min) 0.7 + 0.15) - 1``.

    Example:
        >>> to_integers(np.array([0.0, 1.0, 2.0])).tolist()
        [14, 49, 84]
    """
    low, high = values.min(), values.max()
    unit = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    return np.rint(100 * (unit * 0.7 + 0.15)).astype(int) - 1
