"""Models by name: the pocket model, a HuggingFace name, or a local folder, as the class that this TransformerLens has."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from jscope_tl.errors import InputError
from jscope_tl.pocket.load import has_bridge, load_pocket_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


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
    if dtype not in DTYPES:
        raise InputError(f"There is no dtype {dtype!r}; use one of {', '.join(DTYPES)}.")
    where = _checked_device(device)
    if name is None:
        return load_pocket_model(device=where, dtype=DTYPES[dtype])
    if not has_bridge() and Path(name).is_dir():
        raise LoadingError("TransformerLens before 3 loads no local folders; upgrade it, or give a HuggingFace name.")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return _boot(name, where, DTYPES[dtype]).eval()
    except Exception as error:  # whatever a hub client, a configuration or a checkpoint may raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise LoadingError(f"Model {name!r} could not be loaded: {reason}") from error


def _checked_device(device: str) -> torch.device:
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"Device {device!r} cannot be used here: {reason}") from error
    return where


def _boot(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    if has_bridge():
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(name, device=str(device), dtype=dtype)
    from transformer_lens import HookedTransformer

    return HookedTransformer.from_pretrained_no_processing(name, device=str(device), dtype=dtype)
