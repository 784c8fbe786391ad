"""How near the engine is to the machine: ratios, each measured within one run."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange

import jscope_tl as js
from jscope_tl.engine.forward import run
from jscope_tl.engine.memory import LiveBytes
from jscope_tl.engine.run import Settings
from jscope_tl.engine.vjp import Backward
from jscope_tl.model.view import ModelView
from jscope_tl.scopes import trace
from jscope_tl.scopes.factor import leading_directions, without
from jscope_tl.scopes.fisher import fisher_factor


def seconds(*works: Callable[[], Any], repeats: int = 5) -> list[float]:
    """The fastest of several times of each, taken in turns, after one for warming up."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for work, of_one in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            of_one.append(time.perf_counter() - start)
    return [min(of_one[1:]) for of_one in times]


def single_cotangent(model: Any, tokens: torch.Tensor) -> dict[str, float]:
    """A scope with one cotangent against a plain forward pass without gradients."""
    plain = torch.no_grad()(lambda: model(rearrange(tokens, "pos -> 1 pos"), return_type="logits"))
    forward, scope = seconds(
        plain, lambda: js.attribute(model, tokens, "semantic", target=0, progress=False), repeats=10
    )
    return {"forward_s": forward, "semantic_s": scope, "semantic / forward": scope / forward}


def overhead(model: Any, tokens: torch.Tensor, repeats: int = 15) -> dict[str, float]:
    """What `js.attribute` takes beside the same computation by hand, in CPU seconds; taken in turns, the median of the ratios."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ratios: list[float] = []
    for turn in range(repeats + 1):
        times = []
        for work in (
            lambda: js.attribute(model, tokens, "semantic", target=0, progress=False),
            lambda: _bare(model, tokens),
        ):
            for parameter in trainable:
                parameter.requires_grad_(False)
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        ratios += [times[0] / times[1]] * (turn > 0)
    for parameter in trainable:
        parameter.requires_grad_(True)
    return {"semantic / bare forward and backward": statistics.median(ratios)}


def _bare(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Semantic Scope by hand: the embeddings a leaf, no weight's gradient, one position unembedded, one backward pass."""
    leaves = []

    def leaf(x: torch.Tensor, hook: Any) -> torch.Tensor:
        leaves.append(x.detach().clone().requires_grad_())
        return leaves[0]

    last = model.unembed.register_forward_pre_hook(lambda module, args: (args[0][:, -1:],))
    try:
        with model.hooks(fwd_hooks=[("hook_embed", leaf)]):
            logits = model(rearrange(tokens, "pos -> 1 pos"), return_type="logits")
    finally:
        last.remove()
    (gradient,) = torch.autograd.grad(logits[0, -1, 0], leaves[0])
    return gradient[0].norm(dim=-1)


def row_throughput(model: Any, tokens: torch.Tensor, n_rows: int = 24) -> dict[str, float]:
    """Backward rows in chunks of the default size, against bare products of the same matrices in the same chunks."""
    view = ModelView(model)
    with run(Settings(view, ["hook_embed"]), tokens, [len(tokens) - 1]) as forward:
        backward = Backward(forward.xs, forward.y, forward.positions, progress=False)
        C = torch.randn(n_rows, int(view.cfg.d_model), device=forward.y.device)
        backward.squared_norms(C, retain_graph=True)
        chunk = backward.rows_at_once()
        rows, bare = seconds(
            lambda: backward.squared_norms(C, retain_graph=True), lambda: _products(view, chunk, len(tokens)), repeats=4
        )
    row = rows / n_rows
    return {"row_s": row, "rows at once": chunk, "bare products / row": bare / chunk / row}


def _products(view: ModelView, chunk: int, pos: int) -> None:
    """The matrix products of ``chunk`` backward rows through all blocks: weights once, attention four times."""
    cfg, device = view.cfg, view.W_U.device
    d, heads, d_head = int(cfg.d_model), int(cfg.n_heads), int(cfg.d_head)
    d_mlp = int(cfg.d_mlp)
    weights = [(d, d)] * 4 + [(d, d_mlp)] * (3 if getattr(cfg, "gated_mlp", False) else 2)
    inputs = {size: torch.ones(chunk * pos, size, device=device) for size in {d, d_mlp}}
    matrices = [torch.ones(rows, columns, device=device) for rows, columns in weights]
    per_head, square = (torch.ones(chunk * heads, pos, size, device=device) for size in (d_head, pos))
    for _ in range(int(cfg.n_layers)):
        for matrix in matrices:
            torch.mm(inputs[matrix.shape[0]], matrix)
        for _ in range(2):
            torch.bmm(square, per_head)
            torch.bmm(per_head, per_head.mT)


def preparation(model: Any, tokens: torch.Tensor, n_rows: int = 32) -> dict[str, float]:
    """What an estimate does with the unembedding, against its backward rows."""
    view = ModelView(model)
    with run(Settings(view, ["hook_embed"]), tokens, [len(tokens) - 1]) as forward:
        state = forward.state()

        def prepare() -> None:
            S = fisher_factor(state)
            leading = leading_directions(S, 8)
            S.right(leading)
            trace._new_directions(torch.randn(5, S.d_model, device=S.p.device), S, leading)
            signs = trace.random_signs(8, S.n, torch.Generator()).to(leading)
            S.right(without(signs, leading))

        backward = Backward(forward.xs, forward.y, forward.positions, progress=False)
        C = torch.randn(n_rows, int(view.cfg.d_model), device=state.y.device)
        prepared, rows = seconds(prepare, lambda: backward.squared_norms(C, retain_graph=True), repeats=2)
    return {"preparation / 32 rows": prepared / rows}


def memory(model: Any, tokens: torch.Tensor) -> dict[str, float]:
    """Live bytes above those of the graph while rows are computed, against the full Jacobian; and whether k matters."""
    view, found = ModelView(model), {}
    d, pos = int(view.cfg.d_model), len(tokens)
    for k in (16, min(128, d)):
        with run(Settings(view, ["hook_embed"]), tokens, [pos - 1]) as forward:
            backward = Backward(forward.xs, forward.y, forward.positions, progress=False)
            C = torch.randn(k, d, device=forward.y.device)
            backward.squared_norms(C[:2], retain_graph=True)  # measures a row, which is not measured again inside
            with LiveBytes() as meter:
                backward.squared_norms(C)
        found[k] = meter.peak
    few, many = found.values()
    jacobian = 4 * d * d * pos
    return {"rows_MB": many / 1e6, "full Jacobian / rows": jacobian / many, "k=128 / k=16": many / few}


def batch_throughput(n_prompts: int = 64) -> dict[str, float]:
    """`attribute_batch` against `attribute`, short prompts of the pocket model."""
    model = js.load_pocket_model()
    texts = [p.text for task in js.pocket_tasks() for p in js.pocket_prompts(task, 24) if len(p.text.split()) < 20]
    texts = texts[:n_prompts]
    one, many = seconds(
        lambda: [js.attribute(model, text, progress=False) for text in texts],
        lambda: list(js.attribute_batch(model, texts, batch_size=32, progress=False)),
    )
    return {"one by one_s": one, "batch_s": many, "one by one / batch": one / many}
