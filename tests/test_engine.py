"""Rows of C J: chunked, counted, and with the graph gone at the end."""

import gc
import inspect
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.engine import vjp as engine
from jscope_tl.engine.forward import run
from jscope_tl.engine.jvp import jvp
from jscope_tl.engine.memory import LiveBytes, is_out_of_memory
from jscope_tl.engine.one_position import VJP
from jscope_tl.engine.precision import matmul_precision
from jscope_tl.engine.run import Settings
from jscope_tl.engine.vjp import Backward
from jscope_tl.model.view import ModelView
from tests.conftest import shared_tiny
from tests.models import D_MODEL, TOKENS


def test_rows_are_linear_in_the_cotangents(llama: Any) -> None:
    C = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(0))
    mix = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward:
        backward = Backward(forward.xs, forward.y, forward.positions)
        rows = torch.cat(list(backward.rows(C, retain_graph=True)))
        mixed = torch.cat(list(backward.rows(mix @ C)))
    torch.testing.assert_close(mixed, torch.einsum("ij,jpd->ipd", mix, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, None])
def test_chunks_in_order_and_counted(llama: Any, chunk_size: int | None) -> None:
    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward:
        backward = Backward(forward.xs, forward.y, forward.positions, chunk_size)
        sizes = [len(chunk) for chunk in backward.rows(torch.eye(D_MODEL)[:7])]
        assert sum(sizes) == backward.passes.n_backward == 7
        assert all(size <= (chunk_size or 64) for size in sizes)


def test_squared_norms_are_those_of_the_rows(llama: Any) -> None:
    C = torch.eye(D_MODEL)[:4]
    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [5]) as forward:
        backward = Backward(forward.xs, forward.y, forward.positions)
        rows = torch.cat(list(backward.rows(C, retain_graph=True)))
        squares = backward.squared_norms(C)
    torch.testing.assert_close(squares[:, :6], rows[:, :6].square().sum(-1))
    assert (squares[:, 6:] == 0).all()


def test_graph_is_gone_after_the_last_chunk(llama: Any) -> None:
    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward:
        backward = Backward(forward.xs, forward.y, forward.positions, chunk_size=2)
        backward.squared_norms(torch.eye(D_MODEL)[:3])
        with pytest.raises(RuntimeError, match="retain_graph"):
            backward.squared_norms(torch.eye(D_MODEL)[:3])
        with pytest.raises(RuntimeError, match="second time"):  # torch's own word that the buffers are freed
            torch.autograd.grad(forward.y.sum(), forward.xs)


def test_nothing_outlives_the_run(llama: Any) -> None:
    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward:
        Backward(forward.xs, forward.y, forward.positions).squared_norms(torch.eye(D_MODEL)[:3])
        alive = weakref.ref(forward.y)
    del forward
    gc.collect()
    assert alive() is None


def test_default_chunks_fill_the_memory_that_was_measured(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row is pulled alone and measured; the others share what there is, 64 at most."""
    for budget, expected in ((10**12, [1, 31]), (0, [1] * 32)):
        monkeypatch.setattr(engine, "chunk_budget", lambda device, budget=budget: budget)
        with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward:
            backward = Backward(forward.xs, forward.y, forward.positions)
            assert [len(rows) for rows in backward.rows(torch.eye(D_MODEL))] == expected
    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward:
        backward = Backward(forward.xs, forward.y, forward.positions)
        list(backward.rows(torch.eye(D_MODEL)[:2], retain_graph=True))
        one = backward._row_bytes
        with LiveBytes() as meter:
            backward._grad(torch.eye(D_MODEL)[:8].unsqueeze(1), True, is_grads_batched=True)
    assert 4 * one < meter.peak < 12 * one


def test_long_prompts_take_more_memory(llama: Any) -> None:
    sizes = []
    for tokens in (TOKENS, TOKENS.repeat(4)):
        with run(Settings(ModelView(llama), ["hook_embed"]), tokens, [7]) as forward:
            backward = Backward(forward.xs, forward.y, forward.positions)
            list(backward.rows(torch.eye(D_MODEL)[:2]))
            sizes.append(backward._row_bytes)
    assert 3 < sizes[1] / sizes[0] < 17


class Narrow(Backward):
    """As if the device had room for three rows: memory runs out on the way, when part of the graph is freed already."""

    def _grad(self, cotangents: torch.Tensor, keep: bool, **how: bool) -> Any:
        rows = super()._grad(cotangents, keep, **how)
        if how and len(cotangents) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return rows


@pytest.mark.parametrize("chunk_size", [None, 32, 5])
def test_out_of_memory_halves_the_chunk(llama: Any, chunk_size: int | None) -> None:
    C = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(0))
    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward:
        wanted = Backward(forward.xs, forward.y, forward.positions).squared_norms(C, retain_graph=True)
        narrow = Narrow(forward.xs, forward.y, forward.positions, chunk_size)
        torch.testing.assert_close(narrow.squared_norms(C), wanted)
    assert narrow.passes.n_backward == 20
    assert all("Memory ran out" in note for note in narrow.notes)
    assert len(narrow.notes) >= 1


def test_out_of_memory_in_the_last_chunk_finds_the_graph(llama: Any) -> None:
    """More rows than were ever no trouble, in a chunk that nothing follows: the graph is kept for another try, then freed."""
    C = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(0))
    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward:
        wanted = Backward(forward.xs, forward.y, forward.positions).squared_norms(C, retain_graph=True)
        narrow = Narrow(forward.xs, forward.y, forward.positions)
        narrow.squared_norms(C[:4], retain_graph=True)  # one row, then three: batches work
        assert narrow.notes == []
        torch.testing.assert_close(narrow.squared_norms(C), wanted)
        assert "Memory ran out with 20 backward rows" in narrow.notes[0]
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(forward.y.sum(), forward.xs)


def test_out_of_memory_for_one_row_is_an_error(llama: Any) -> None:
    class Full(Backward):
        def _grad(self, cotangents: torch.Tensor, keep: bool, **how: bool) -> Any:
            raise torch.OutOfMemoryError("out of memory")

    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward, pytest.raises(torch.OutOfMemoryError):
        Full(forward.xs, forward.y, forward.positions).squared_norms(torch.eye(D_MODEL)[:4])


def test_matmul_precision_is_stated_and_put_back(llama: Any) -> None:
    before = torch.get_float32_matmul_precision()
    plain = js.attribute(llama, TOKENS, "fisher", method="exact")
    fast = js.attribute(llama, TOKENS, "fisher", method="exact", matmul_precision="medium")
    assert torch.get_float32_matmul_precision() == before
    torch.testing.assert_close(fast.scores, plain.scores, rtol=0.05, atol=0)
    assert any("matmul_precision='medium'" in warning and "of its norm" in warning for warning in fast.warnings)
    assert plain.warnings == []
    with pytest.raises(js.InputError, match="Did you mean 'medium'"):
        inspect.unwrap(js.attribute)(llama, TOKENS, matmul_precision="medum")


@pytest.mark.slow
def test_torchs_newer_precision_settings_are_left_alone(llama: Any) -> None:
    code = (
        "import torch, jscope_tl as js; torch.backends.fp32_precision = 'ieee'; m = js.load_pocket_model(); "
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'; js.attribute(m, 'the keys', 'fisher')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_put_the_precision_back() -> None:
    before = torch.get_float32_matmul_precision()

    def often(name: str) -> None:
        for _ in range(200):
            with matmul_precision(name):
                assert torch.get_float32_matmul_precision() == name

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(often, ["high", "medium", "highest"]))
    assert torch.get_float32_matmul_precision() == before


def test_sparse_hooks_do_not_disturb_the_measurement(llama: Any) -> None:
    eye = torch.eye(D_MODEL).to_sparse()
    hooks = [("blocks.1.hook_resid_pre", lambda resid, hook: torch.sparse.mm(eye, resid[0].T).T[None])]
    plain = js.attribute(llama, TOKENS, "fisher", method="exact")
    sparse = js.attribute(llama, TOKENS, "fisher", method="exact", fwd_hooks=hooks)
    torch.testing.assert_close(sparse.scores, plain.scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("said", ["CUDA error: out of memory", "DefaultCPUAllocator: not enough memory: you tried"])
def test_what_is_out_of_memory(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_a_jacobian_vector_product_is_the_product_with_the_jacobian(llama: Any) -> None:
    tangents = torch.randn(3, len(TOKENS), D_MODEL, generator=torch.Generator().manual_seed(0))
    J = js.jacobian(llama, TOKENS)
    for size in (None, 2):
        with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [5, 7]) as forward:
            backward = Backward(forward.xs, forward.y, forward.positions, size)
            moved = jvp(backward, tangents * torch.tensor([1.0, 1e-20, 1e20])[:, None, None], of=1)
    assert moved is not None
    wanted = torch.einsum("dpi,mpi->md", J, tangents)
    torch.testing.assert_close(moved / torch.tensor([1.0, 1e-20, 1e20])[:, None], wanted, rtol=1e-3, atol=1e-4)
    assert backward.passes.n_backward == 5


@pytest.mark.parametrize("n_points", [1, 2])
def test_models_spread_over_devices(n_points: int) -> None:
    """Placement only, on devices that need not be there: what lies on two of them is never combined."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Placed(Backward):  # autograd brings each row to the device of its hook point
        def _grad(self, cotangents: torch.Tensor, keep: bool, **how: bool) -> Any:
            assert cotangents.device == self.y.device
            chunk = cotangents.shape[:-2]
            return [torch.empty(*chunk, *x.shape, device=x.device) for x in self.xs]

    with FakeTensorMode():
        xs = [torch.empty(1, 5, 8, device=device) for device in ("cpu", "meta")[:n_points]]
        vjp = VJP(Placed(xs, torch.empty(1, 8, device="meta"), [4], chunk_size=2))
        C = torch.empty(4, 8, device="cpu")
        assert vjp.squared_norms(C, retain_graph=True).device.type == "meta"
        assert vjp.rows(C, retain_graph=True).device.type == "cpu"


def test_progress_bar(llama: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with run(Settings(ModelView(llama), ["hook_embed"]), TOKENS, [7]) as forward:
        Backward(forward.xs, forward.y, forward.positions, 4, progress=False).squared_norms(
            torch.eye(D_MODEL), retain_graph=True
        )
        Backward(forward.xs, forward.y, forward.positions, 4, progress=None).squared_norms(
            torch.eye(D_MODEL), retain_graph=True
        )
        assert capsys.readouterr().err == ""  # nothing for a wait below a second
        Backward(forward.xs, forward.y, forward.positions, 4, progress=True).squared_norms(torch.eye(D_MODEL))
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


def test_squares_of_half_precision_are_summed_in_full(kind: str) -> None:
    model = shared_tiny(kind, "llama", torch.bfloat16).model
    with run(Settings(ModelView(model), ["hook_embed"]), TOKENS, [7]) as forward:
        backward = Backward(forward.xs, forward.y, forward.positions)
        small = torch.eye(D_MODEL)[:3] * 2.0**-100  # far below what float16 holds
        rows = torch.cat(list(backward.rows(torch.eye(D_MODEL)[:3], retain_graph=True)))
        squares = backward.squared_norms(torch.eye(D_MODEL)[:3], retain_graph=True)
        tiny_rows = torch.cat(list(backward.rows(small)))
    assert squares.dtype == rows.dtype == torch.float32
    torch.testing.assert_close(squares, rows.square().sum(-1))
    torch.testing.assert_close(tiny_rows * 2.0**100, rows)
