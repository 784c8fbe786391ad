"""Devices and dtypes by name; unknown ones are refused before anything is loaded."""

from typing import Any

import torch

from jscope_tl.errors import InputError, nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def to_dtype(dtype: Any) -> torch.dtype:
    """A floating-point dtype from itself or its name."""
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype in DTYPES:
        return DTYPES[dtype]
    raise InputError(
        f"There is no dtype {dtype!r} to compute in.{nearest(dtype, DTYPES)} Use one of {', '.join(DTYPES)}."
    )


def to_device(device: Any) -> torch.device:
    """A usable device, from itself or its name."""
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"Device {device!r} cannot be used here: {reason}") from error
    if where.type == "meta":
        raise InputError("Device 'meta' holds no data, so nothing can be computed on it; use 'cpu' or an accelerator.")
    return where
