"""Devices and dtypes by name, refused before anything is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
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
    """A device that holds data here, from itself or its name."""
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"Device {device!r} cannot be used here: {reason}") from error
    if where.type == "meta":
        raise InputError("Device 'meta' holds no data, so nothing can be computed on it; use 'cpu' or an accelerator.")
    return where


MATMUL_PRECISIONS = ("highest", "high", "medium")
ONE_PRECISION = RLock()
"""The setting is the process's: threads that change it take turns."""


def check_matmul_precision(name: Any) -> str | None:
    """A precision of float32 matrix products by torch's names, or a refusal."""
    if name is None or name in MATMUL_PRECISIONS:
        return name
    raise InputError(
        f"There is no matmul_precision {name!r}.{nearest(name, MATMUL_PRECISIONS)} Use 'highest', 'high' (TF32 where the "
        "device has it), 'medium' (bfloat16), or None for what torch is set to."
    )


@contextmanager
def matmul_precision(name: str | None) -> Iterator[None]:
    """`torch.set_float32_matmul_precision` inside, and what was set before again afterwards; None changes nothing."""
    if name is None:
        yield
        return
    with ONE_PRECISION:
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError as error:
            raise InputError(
                "matmul_precision is set by torch.set_float32_matmul_precision, which torch refuses after its newer settings "
                "(torch.backends...fp32_precision) were used. Leave one of the two."
            ) from error
        try:
            torch.set_float32_matmul_precision(name)
            yield
        finally:
            torch.set_float32_matmul_precision(before)
