"""Rows of C J: chunked, counted, and with the graph gone at the end."""

import gc
import weakref
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.engine import Puller, default_chunk_size
from jscope_tl.forward import run
from jscope_tl.model import ModelView
from tests.conftest import shared_tiny
from tests.models import D_MODEL, TOKENS


def test_rows_are_linear_in_the_cotangents(llama: Any) -> None:
    C = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(0))
    mix = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    with run(ModelView(llama), TOKENS, [7], ["hook_embed"]) as forward:
        puller = Puller(forward.xs, forward.y, forward.positions)
        rows = torch.cat(list(puller.rows(C, more_to_come=True)))
        mixed = torch.cat(list(puller.rows(mix @ C)))
    torch.testing.assert_close(mixed, torch.einsum("ij,jpd->ipd", mix, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, None])
def test_chunks_in_order_and_counted(llama: Any, chunk_size: int | None) -> None:
    with run(ModelView(llama), TOKENS, [7], ["hook_embed"]) as forward:
        puller = Puller(forward.xs, forward.y, forward.positions, chunk_size)
        sizes = [len(chunk) for chunk in puller.rows(torch.eye(D_MODEL)[:7])]
        assert sum(sizes) == puller.n_backward == 7
        assert all(size <= (chunk_size or 64) for size in sizes)


def test_energies_are_squared_norms(llama: Any) -> None:
    C = torch.eye(D_MODEL)[:4]
    with run(ModelView(llama), TOKENS, [5], ["hook_embed"]) as forward:
        puller = Puller(forward.xs, forward.y, forward.positions)
        rows = torch.cat(list(puller.rows(C, more_to_come=True)))
        energies = puller.energies(C)
    torch.testing.assert_close(energies[:, :6], rows[:, :6].square().sum(-1))
    assert (energies[:, 6:] == 0).all()


def test_graph_is_gone_after_the_last_chunk(llama: Any) -> None:
    with run(ModelView(llama), TOKENS, [7], ["hook_embed"]) as forward:
        puller = Puller(forward.xs, forward.y, forward.positions, chunk_size=2)
        puller.energies(torch.eye(D_MODEL)[:3])
        with pytest.raises(RuntimeError, match="more_to_come"):
            puller.energies(torch.eye(D_MODEL)[:3])
        with pytest.raises(RuntimeError, match="second time"):  # torch's own word that the buffers are freed
            torch.autograd.grad(forward.y.sum(), forward.xs)


def test_nothing_outlives_the_run(llama: Any) -> None:
    with run(ModelView(llama), TOKENS, [7], ["hook_embed"]) as forward:
        Puller(forward.xs, forward.y, forward.positions).energies(torch.eye(D_MODEL)[:3])
        alive = weakref.ref(forward.y)
    del forward
    gc.collect()
    assert alive() is None


def test_default_chunks_shrink_with_the_prompt() -> None:
    assert default_chunk_size(8, 32, 4) == 64
    assert default_chunk_size(10**6, 4096, 4) == 1
    assert default_chunk_size(1000, 2048, 4) == 2


def test_progress_bar(llama: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with run(ModelView(llama), TOKENS, [7], ["hook_embed"]) as forward:
        Puller(forward.xs, forward.y, forward.positions, 4, progress=False).energies(
            torch.eye(D_MODEL), more_to_come=True
        )
        Puller(forward.xs, forward.y, forward.positions, 4, progress=None).energies(
            torch.eye(D_MODEL), more_to_come=True
        )
        assert capsys.readouterr().err == ""  # nothing for a wait below a second
        Puller(forward.xs, forward.y, forward.positions, 4, progress=True).energies(torch.eye(D_MODEL))
    assert "backward passes" in capsys.readouterr().err


class NoBatching(torch.autograd.Function):
    """A kernel that cannot be batched, as some hand-written ones cannot."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(grad.detach().numpy().copy())


def test_models_that_cannot_be_batched_go_row_by_row(llama: Any) -> None:
    hooks = [("blocks.1.hook_resid_post", lambda activation, hook: NoBatching.apply(activation))]
    expected = js.attribute(llama, TOKENS, "fisher", method="exact")
    result = js.attribute(llama, TOKENS, "fisher", method="exact", fwd_hooks=hooks)
    torch.testing.assert_close(result.scores, expected.scores)
    assert any("one by one" in warning for warning in result.warnings)
    assert expected.warnings == []


def test_energies_of_half_precision_are_summed_in_full(kind: str) -> None:
    model = shared_tiny(kind, "llama", torch.bfloat16).model
    with run(ModelView(model), TOKENS, [7], ["hook_embed"]) as forward:
        puller = Puller(forward.xs, forward.y, forward.positions)
        small = torch.eye(D_MODEL)[:3] * 2.0**-100  # far below what float16 holds
        rows = torch.cat(list(puller.rows(torch.eye(D_MODEL)[:3], more_to_come=True)))
        energies = puller.energies(torch.eye(D_MODEL)[:3], more_to_come=True)
        tiny_rows = torch.cat(list(puller.rows(small)))
    assert energies.dtype == rows.dtype == torch.float32
    torch.testing.assert_close(energies, rows.square().sum(-1))
    torch.testing.assert_close(tiny_rows * 2.0**100, rows)
