"""Load models by name or from a local folder, as the class that the installed TransformerLens provides."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from jscope_tl.model.devices import to_device, to_dtype


class LoadingError(Exception):
    """The model could not be loaded; the message says why in one line."""


def has_bridge() -> bool:
    """Whether the installed TransformerLens has `TransformerBridge` (from version 3)."""
    try:
        from transformer_lens.model_bridge import TransformerBridge  # noqa: F401
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output and progress bars of TransformerLens and transformers while loading."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def no_installs() -> Iterator[None]:
    """Prevent TransformerLens from installing torchvision when it loads an image model, which could replace torch."""
    blocked = {"PIP_NO_INDEX": "1", "PIP_DRY_RUN": "1", "UV_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in blocked}
    os.environ.update(blocked)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def load_model(name: str, device: str = "cpu", dtype: str = "float32") -> Any:
    """The named model in evaluation mode with unprocessed weights (nothing folded, nothing centred).

    Args:
        name: a HuggingFace name or a local folder.
        device, dtype: the device and the precision of the weights.

    Raises:
        InputError: the device or dtype is not available.
        LoadingError: the model cannot be found or read.
    """
    where, precision = to_device(device), to_dtype(dtype)
    name = _checked(name)
    if not has_bridge() and Path(name).is_dir():
        raise LoadingError(
            "TransformerLens before version 3 cannot load local folders; upgrade it, or give a HuggingFace name."
        )
    try:
        with quiet(), no_installs():
            return _boot(name, where, precision).eval()
    except Exception as error:  # any error of a hub client, a configuration or a checkpoint
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        taken = (
            ""
            if Path(name).exists()
            else f" There is no folder {name!r} either, so it was taken for a HuggingFace name."
        )
        raise LoadingError(f"Model {name!r} could not be loaded: {reason}{taken}") from error


def _checked(name: str) -> str:
    """The name, or the path of a folder; an invalid name is refused before the hub is queried."""
    path = Path(name).expanduser()
    if not name.strip():
        raise LoadingError("The model's name is empty; give a HuggingFace name or a local folder.")
    if path.is_file():
        raise LoadingError(f"Model {name!r} is a file; give the folder that contains it.")
    is_path = name.startswith((".", "/", "~", "\\")) or name.count("/") > 1 or path.is_absolute()
    if is_path and not path.is_dir():
        raise LoadingError(f"There is no folder {name!r} to load a model from; give another, or a HuggingFace name.")
    if path.is_dir() and not any(path.glob("*.json")):
        raise LoadingError(
            f"The folder {name!r} contains no model; give a folder that a model's save_pretrained has written."
        )
    return str(path) if path.is_dir() else name


def _boot(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    if has_bridge():
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(name, device=str(device), dtype=dtype)
    from transformer_lens import HookedTransformer

    return HookedTransformer.from_pretrained_no_processing(name, device=str(device), dtype=dtype)
