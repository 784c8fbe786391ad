"""Several predictions as one: gradients of sums, and Fisher information that adds up."""

from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.attribution.setup import set_up
from jscope_tl.scopes.factor import FisherFactor
from jscope_tl.scopes.stacked_factor import Stacked
from tests import oracles
from tests.conftest import dense
from tests.models import TOKENS, Tiny

PROMPT, ANSWER = TOKENS[:5], TOKENS[5:]
POSITIONS = [4, 5, 6]


def span(model: Any, scope: Any, **how: Any) -> torch.Tensor:
    return js.attribute_text(model, PROMPT, ANSWER, scope=scope, spans="message", **how).token_scores[0]


def test_fisher_information_adds_up(tiny: Tiny) -> None:
    expected = torch.stack(
        [torch.nn.functional.pad(oracles.fisher(dense(tiny.family, p)), (0, 0))[: len(TOKENS)] for p in POSITIONS]
    ).sum(0)
    found = span(tiny.model, "fisher", method="exact")
    assert oracles.relative_difference(found[: len(expected)], expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{}, {"method": "sampled", "rank": 4, "probes": 8}, {"method": "krylov", "rank": 4, "images": 2}]
)
def test_estimates_hold_their_error(pocket: Any, how: dict[str, Any]) -> None:
    given = (pocket, "the keys to the cabinet near the doors", " are old and")
    exact = js.attribute_text(*given, scope="fisher", spans="message", method="exact")
    inside, total = 0, 0
    for seed in range(6):
        found = js.attribute_text(*given, scope="fisher", spans="message", seed=seed, **how)
        assert found.token_stderr is not None
        inside += int(((found.token_scores - exact.token_scores).abs() <= 2 * found.token_stderr + 1e-6)[0, 1:9].sum())
        total += 8
    assert inside >= 0.85 * total
    assert found.provenance.n_backward < exact.provenance.n_backward


def test_low_rank_takes_the_leading_directions_of_all_predictions(pocket: Any) -> None:
    """``tr(J^T F J)`` of the block-diagonal ``F``, whose eigenvectors lie each in one block."""
    given = (pocket, "the keys near", " the doors")
    every = js.attribute_text(*given, scope="fisher", spans="message", method="exact").token_scores
    most = js.attribute_text(*given, scope="fisher", spans="message", method="low_rank", rank=2 * 128).token_scores
    torch.testing.assert_close(most, every, rtol=1e-3, atol=1e-3 * float(every.max()))
    few = [
        js.attribute_text(*given, scope="fisher", spans="message", method="low_rank", rank=k).token_scores
        for k in (1, 4, 16)
    ]
    assert (few[0] <= few[1] + 1e-6).all()
    assert (few[1] <= few[2] + 1e-6).all()


def test_a_stacked_factor_is_block_diagonal() -> None:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(6, 40, generator=generator).double()
    blocks = tuple(
        FisherFactor(
            W,
            torch.rand(40, generator=generator).double() + 0.5,
            torch.randn(40, generator=generator).double().mul(s).softmax(-1),
            torch.float64,
        )
        for s in (1.0, 4.0)
    )
    S = Stacked(blocks)
    dense_S = torch.block_diag(*(block.left(torch.eye(6).double()).T * block.size / S.size for block in blocks))
    V, U = torch.randn(3, 12, generator=generator).double(), torch.randn(3, 80, generator=generator).double()
    torch.testing.assert_close(S.left(V), V @ dense_S.T)
    torch.testing.assert_close(S.right(U), U @ dense_S)
    torch.testing.assert_close(S.gram(), dense_S.T @ dense_S)
    values = torch.linalg.eigvalsh(dense_S.T @ dense_S).flip(0)
    torch.testing.assert_close(S.principal().square().sum(1), values[values > 1e-12])
    torch.testing.assert_close(S.leading(3).square().sum(1), values[:3], rtol=1e-6, atol=1e-12)
    directions = S.leading_directions(3)
    torch.testing.assert_close(directions @ directions.T, torch.eye(3).double())
    assert S.size**2 == pytest.approx(sum(block.size**2 for block in blocks))


def test_several_cotangents_add_up_and_one_is_a_gradient(llama: Any) -> None:
    """Of two directions at each position the squares of all four add up; of one the rows do."""

    def two(state: js.State) -> torch.Tensor:
        return torch.stack([state.gradient(lambda z: z[7]), state.gradient(lambda z: z[9])])

    def one(state: js.State) -> torch.Tensor:
        return state.gradient(lambda z: z[7])

    alone = [js.attribute(llama, TOKENS, two, position=p).scores for p in POSITIONS]
    torch.testing.assert_close(span(llama, two), torch.stack(alone).square().sum(0).sqrt(), rtol=1e-4, atol=1e-6)
    rows = []
    for p in POSITIONS:
        setup = set_up(llama, one, {})
        with setup.run(TOKENS, [p]) as (forward, backward):
            rows.append(next(backward.rows(setup.scope.rows(forward.state())))[0])
    torch.testing.assert_close(span(llama, one), torch.as_tensor(sum(rows)).norm(dim=-1), rtol=1e-4, atol=1e-6)


def test_scopes_without_a_score_of_several(llama: Any) -> None:
    with pytest.raises(js.InputError, match="'spectral' has no score of several predictions together"):
        span(llama, "spectral")
