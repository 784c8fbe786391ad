"""Replay of recorded block outputs: if only later activations change, earlier blocks return their outputs of a previous run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from jscope_tl.model.hooks import on_this_thread
from jscope_tl.model.view import ModelView


def block_of(name: str) -> int:
    """The number of the block that contains a hook point; 0 for hook points before the blocks."""
    stack, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if stack == "blocks" and number.isdecimal() else 0


@contextmanager
def recorded_blocks(view: ModelView) -> Iterator[list[Any]]:
    """Record the outputs of all blocks, in order, in a run inside; the list stays empty if a block does not run exactly once."""
    outputs: list[Any] = []

    def record(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(_repeated(output, 1))

    handles = [block.register_forward_hook(on_this_thread(record)) for block in blocks_of(view)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
        if len(outputs) != len(handles):
            outputs.clear()


@contextmanager
def blocks_replayed(view: ModelView, outputs: Sequence[Any], which: Sequence[int], batch: int) -> Iterator[None]:
    """Inside, some blocks do not run; each returns its recorded output for one prompt, repeated ``batch`` times."""
    blocks = blocks_of(view)
    with ExitStack() as stack:
        for number in which:
            stack.enter_context(replaced(blocks[number], partial(_replayed, outputs[number], batch)))
        yield


@contextmanager
def replaced(block: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Inside, ``function`` runs instead of the block on this thread; other threads run the block."""
    own, forward, thread = vars(block).get("forward"), block.forward, get_ident()

    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if get_ident() == thread else forward(*args, **kwargs)

    vars(block)["forward"] = run  # bypasses the __setattr__ of a bridge, which sets attributes of the module inside it
    try:
        yield
    finally:
        if own is None:
            del vars(block)["forward"]
        else:
            vars(block)["forward"] = own


def blocks_of(view: ModelView) -> list[nn.Module]:
    """The layers, in order."""
    return list(getattr(view.model, "blocks", ()))


def _replayed(output: Any, batch: int, *args: Any, **kwargs: Any) -> Any:
    return _repeated(output, batch)


def _repeated(output: Any, n: int) -> Any:
    """The output repeated along the batch, as a copy, because models change activations in place."""
    if isinstance(output, tuple):
        return tuple(_repeated(part, n) for part in output)
    if isinstance(output, Tensor) and output.shape[:1] == (1,):
        return output.expand(n, *output.shape[1:]).clone()
    return output
