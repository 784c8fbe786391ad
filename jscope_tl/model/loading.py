"""Models by name or from a local folder, as the class that this TransformerLens has."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from jscope_tl.model.devices import to_device, to_dtype


class LoadingError(Exception):
    """The model could not be loaded; the message says why in one line."""


def has_bridge() -> bool:
    """Whether this TransformerLens has `TransformerBridge` (3 on)."""
    try:
        from transformer_lens.model_bridge import TransformerBridge  # noqa: F401
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """TransformerLens and transformers print and draw bars while loading."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def load_model(name: str, device: str = "cpu", dtype: str = "float32") -> Any:
    """The named model in evaluation mode with unprocessed weights (nothing folded, nothing centred).

    Args:
        name: a HuggingFace name or a local folder.
        device, dtype: where and in which precision its weights are.

    Raises:
        InputError: there is no such device or dtype here.
        LoadingError: the model cannot be found or read.
    """
    where, precision = to_device(device), to_dtype(dtype)
    if not has_bridge() and Path(name).is_dir():
        raise LoadingError("TransformerLens before 3 loads no local folders; upgrade it, or give a HuggingFace name.")
    try:
        with quiet():
            return _boot(name, where, precision).eval()
    except Exception as error:  # whatever a hub client, a configuration or a checkpoint may raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise LoadingError(f"Model {name!r} could not be loaded: {reason}") from error


def _boot(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    if has_bridge():
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(name, device=str(device), dtype=dtype)
    from transformer_lens import HookedTransformer

    return HookedTransformer.from_pretrained_no_processing(name, device=str(device), dtype=dtype)
