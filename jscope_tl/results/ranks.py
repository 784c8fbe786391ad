"""Rank correlations, for comparing scores with each other and with measured effects."""

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata


def spearman(a: Float[np.ndarray, "*n m"], b: Float[np.ndarray, "m"]) -> Float[np.ndarray, "*n"]:
    """Spearman's correlation along the last axis; equal values get their mean rank; 0 if one side is constant.

    It is computed for all rows of ``a`` at once, without the p-values of `scipy.stats.spearmanr`, which would take most of the time.
    """
    ranks_a, ranks_b = (_centred(rankdata(values, axis=-1)) for values in (a, b))
    norms = np.linalg.norm(ranks_a, axis=-1) * np.linalg.norm(ranks_b)
    return np.divide(ranks_a @ ranks_b, norms, out=np.zeros_like(norms), where=norms > 0)


def kendall(a: Float[np.ndarray, "m"], b: Float[np.ndarray, "m"]) -> float:
    """Kendall's tau-b; 0 if one side is constant."""
    signs_a, signs_b = (np.sign(values[:, None] - values) for values in (a, b))
    norms = np.linalg.norm(signs_a) * np.linalg.norm(signs_b)
    return float((signs_a * signs_b).sum() / norms) if norms else 0.0


def _centred(ranks: Float[np.ndarray, "*n m"]) -> Float[np.ndarray, "*n m"]:
    return ranks - ranks.mean(-1, keepdims=True)
