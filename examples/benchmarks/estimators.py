"""Fisher estimators: mean relative error per position against their cost in backward passes.

The Jacobian of a prompt is computed once; the estimators then run on the linear map that it is, through the same engine and
the same code as on the model, so that many seeds cost little.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

import jscope_tl as js
from jscope_tl.engine.forward import run
from jscope_tl.engine.one_position import VJP
from jscope_tl.engine.run import Settings
from jscope_tl.engine.vjp import Backward
from jscope_tl.model.prompts import to_tokens
from jscope_tl.model.view import ModelView
from jscope_tl.scopes import trace
from jscope_tl.scopes.base import Score
from jscope_tl.scopes.factor import Matrix, principal_rows
from jscope_tl.scopes.fisher import fisher_factor

BUDGETS = (16, 32, 64)


@dataclass(frozen=True)
class Linear:
    """One prompt: ``S`` with ``S^T S = F_u``, the Jacobian ``[d_model, pos, d_in]``, and the exact trace."""

    S: Float[Tensor, "n d_model"]
    J: Float[Tensor, "d_model pos d_in"]
    exact: Float[Tensor, "pos"]

    def vjp(self) -> VJP:
        """Vector-Jacobian products of this map, by the engine."""
        x = torch.zeros(1, *self.J.shape[1:], device=self.J.device).requires_grad_()
        y = einsum(x, self.J, "one pos d_in, d_model pos d_in -> one d_model")
        return VJP(Backward([x], y, [self.J.shape[1] - 1], progress=False))


def linear(model: Any, prompt: Any) -> Linear:
    """The linear map of a prompt's last prediction."""
    view = ModelView(model)
    tokens = to_tokens(view, prompt)
    with run(Settings(view, ["hook_embed"]), tokens, [len(tokens) - 1]) as forward:
        factor = fisher_factor(forward.state())
    J = js.jacobian(model, tokens)
    # The rows of S in fewer dimensions, where there are more tokens than directions: what is random stays as it is.
    S = principal_rows(factor.gram()).to(J.device) * factor.size
    mixed = torch.linalg.qr(torch.randn(len(S), len(S), generator=torch.Generator().manual_seed(0))).Q.to(S) @ S
    rows = einsum(S, J, "k d_model, d_model pos d_in -> k pos d_in")
    return Linear(mixed, J, reduce(rows.square(), "k pos d_in -> pos", "sum"))


def plain_probes(case: Linear, budget: int, seed: int) -> Score:
    """No leading directions: Hutchinson's estimator alone."""
    signs = trace.random_signs(budget, len(case.S), torch.Generator().manual_seed(seed)).to(case.S)
    return Score(case.vjp().squared_norms(signs @ case.S).mean(0))


def finite_differences(case: Linear, budget: int, seed: int) -> Score:
    """Each position by itself: ``‖S J_t v‖²`` for random directions ``v`` of ``x_t``, a forward pass each."""
    pos, d_in = case.J.shape[1:]
    n = max(1, budget // pos)
    v = torch.randn(n, pos, d_in, generator=torch.Generator().manual_seed(seed)).to(case.J)
    moved = einsum(v, case.J, case.S, "n pos d_in, d_model pos d_in, k d_model -> n pos k")
    return Score(reduce(moved.square(), "n pos k -> n pos", "sum").mean(0))


METHODS: dict[str, Callable[[Linear, int, int], Score]] = {
    "leading directions only": lambda case, b, seed: trace.low_rank(Matrix(case.S), b, case.vjp()),
    "finite differences per position": finite_differences,
    "random probes only": plain_probes,
    "leading directions + probes (`sampled`)": lambda case, b, seed: trace.sampled(
        Matrix(case.S), b // 2, 0, b - b // 2, seed, case.vjp()
    ),
    "leading, their images, probes (`krylov`)": lambda case, b, seed: trace.sampled(
        Matrix(case.S), *krylov_split(b), seed, case.vjp()
    ),
}  # fmt: skip


def krylov_split(budget: int) -> tuple[int, int, int]:
    """Leading directions, images and probes within a budget: an image costs a product and a row, all together two more."""
    rank = 3 * budget // 8
    images = rank // 2 - 1
    return rank, images, budget - rank - 2 * images - 2


@dataclass(frozen=True)
class Measured:
    """Mean over positions, prompts and seeds of the relative error, and how often two standard errors hold it."""

    model: str
    method: str
    cost: int
    error: float
    within: float | None


def field(name: str, cases: list[Linear], seeds: int) -> Iterator[Measured]:
    """All methods at all budgets; one that cannot do with less than it costs appears once."""
    for method, estimate in METHODS.items():
        least = max(len(case.exact) for case in cases) if estimate is finite_differences else 0
        for budget in dict.fromkeys(max(least, budget) for budget in BUDGETS):
            scores = [(case, estimate(case, budget, seed)) for case in cases for seed in range(seeds)]
            errors = [((score.values - case.exact).abs() / case.exact).mean() for case, score in scores]
            within = [
                ((s.values - c.exact).abs() <= 2 * s.stderr).float().mean() for c, s in scores if s.stderr is not None
            ]
            mean = float(torch.stack(within).mean()) if within else None
            yield Measured(name, method, budget, float(torch.stack(errors).mean()), mean)
    yield Measured(name, "all directions (`exact`)", max(min(case.S.shape) for case in cases), 0.0, None)
