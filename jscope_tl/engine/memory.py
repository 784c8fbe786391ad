"""The memory that a computation takes on its device, and the memory that is available."""

import weakref
from math import inf
from pathlib import Path
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jscope_tl.errors import InputError, whole

CPU_BUDGET = 24 * 2**20
"""Memory for one chunk of backward rows on a CPU; larger chunks are slower because of its caches and memory bandwidth."""
GPU_SHARE = 0.25
"""Share of an accelerator's free memory for one chunk."""


@no_type_check  # its methods and the two functions below run at every operation of torch
class LiveBytes(TorchDispatchMode):
    """The peak size in bytes of all tensors that are created inside and alive at the same time.

    Example:
        >>> import torch
        >>> from jscope_tl.engine.memory import LiveBytes
        >>> with LiveBytes() as meter:
        ...     x = torch.zeros(1000).exp().sum()
        >>> meter.peak >= 8000
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {_storage(x) for x in (*args, *(kwargs or {}).values()) if _has_storage(x)}
        for made in output if isinstance(output, tuple | list) else (output,):
            if _has_storage(made) and _storage(made) not in given | self._seen:
                self._count(made)
        return output

    def _count(self, made: torch.Tensor) -> None:
        storage, key, size = made.untyped_storage(), _storage(made), made.untyped_storage().nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@no_type_check
def _has_storage(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.layout == torch.strided


@no_type_check
def _storage(x: torch.Tensor) -> int:
    return x.untyped_storage()._cdata


def chunk_budget(device: torch.device) -> int:
    """The memory in bytes that a chunk of backward rows may take on the device."""
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return CPU_BUDGET


def available_bytes(device: torch.device) -> float:
    """The memory in bytes that can still be allocated on the device; infinity if the system does not report it."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return inf
    return next((1024.0 * int(line.split()[1]) for line in meminfo.open() if line.startswith("MemAvailable")), inf)


def graph_bytes(y: Float[Tensor, "*shape"]) -> int:
    """The size in bytes of the activations that the graph of ``y`` keeps for a backward pass; weights are not counted."""
    seen, todo, sizes = set[Any](), [y.grad_fn], dict[int, int]()
    names: dict[type, list[str]] = {}
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        if type(node) not in names:
            names[type(node)] = [name for name in dir(node) if name.startswith("_saved_")]
        for kept in (getattr(node, name, None) for name in names[type(node)]):
            for tensor in kept if isinstance(kept, tuple | list) else (kept,):
                if _has_storage(tensor) and not tensor.is_leaf:
                    sizes[_storage(tensor)] = tensor.untyped_storage().nbytes()
    return sum(sizes.values())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed: on some devices torch has a class for it, on others only a message."""
    said = str(error).lower()
    sentences = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sentence in said for sentence in sentences)


def check_chunk_size(chunk_size: Any) -> int | None:
    """The chunk size if it is valid; else an error."""
    size = whole(chunk_size)
    if chunk_size is not None and (size is None or size < 1):
        raise InputError(
            f"chunk_size is the number of backward rows to compute at once, 1 or more; got {chunk_size!r}."
        )
    return size
