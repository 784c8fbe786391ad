"""Models by name: the pocket model, a HuggingFace name, or a local folder, as the class that this TransformerLens has."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from jscope_tl.model.devices import to_device, to_dtype
from jscope_tl.pocket.load import has_bridge, load_pocket_model


class LoadingError(Exception):
    """The model could not be loaded; the message says why in one line."""


def load_model(name: str | None, device: str = "cpu", dtype: str = "float32") -> Any:
    """The named model in evaluation mode with unprocessed weights (nothing folded, nothing centred).

    Args:
        name: a HuggingFace name or a local folder; None is the pocket model.

    Raises:
        InputError: there is no such device or dtype here.
        LoadingError: the model cannot be found or read.
    """
    where, precision = to_device(device), to_dtype(dtype)
    if name is None:
        return load_pocket_model(device=where, dtype=precision)
    if not has_bridge() and Path(name).is_dir():
        raise LoadingError("TransformerLens before 3 loads no local folders; upgrade it, or give a HuggingFace name.")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
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
