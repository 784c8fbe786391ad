"""Number series as the paper's appendix A.2 defines them."""

import numpy as np
import pytest

from jscope_tl import series

KINDS = [series.lorenz, series.logistic_map, series.brownian, series.sine]


@pytest.mark.parametrize("kind", KINDS)
def test_integers_fill_the_papers_range(kind: object) -> None:
    values = kind(172, np.random.default_rng(0))  # type: ignore[operator]
    integers = series.to_integers(values)
    assert (integers.min(), integers.max()) == (14, 84)
    assert np.corrcoef(values, integers)[0, 1] > 0.999
    np.testing.assert_array_equal(values, kind(172, np.random.default_rng(0)))  # type: ignore[operator]


def test_a_constant_series_is_the_middle() -> None:
    assert set(series.to_integers(np.ones(5)).tolist()) == {49}


def test_lorenz_solves_the_equations() -> None:
    """Steps of a tenth of the size follow the same path for a while: the scheme is first-order, its error linear in dt."""
    x0 = series.lorenz(40, np.random.default_rng(3))
    fine = series.lorenz(400, np.random.default_rng(3), dt=0.002)[::10]
    finer = series.lorenz(4000, np.random.default_rng(3), dt=0.0002)[::100]
    coarse_error, fine_error = np.abs(x0 - finer).max(), np.abs(fine - finer).max()
    assert 5 < coarse_error / fine_error < 20
    assert np.allclose(series.lorenz(9, np.random.default_rng(3), drift=0.2), x0[:9] + 0.2 * np.arange(9))


def test_logistic_map_iterates() -> None:
    x = series.logistic_map(50, np.random.default_rng(0))
    np.testing.assert_allclose(x[1:], 3.8 * x[:-1] * (1 - x[:-1]))


def test_brownian_steps() -> None:
    steps = np.diff(series.brownian(20001, np.random.default_rng(0)))
    assert steps.std() == pytest.approx(0.1 * 0.1**0.5, rel=0.03)
    assert abs(np.corrcoef(steps[1:], steps[:-1])[0, 1]) < 0.03
