"""The precision of backward rows: the precision of float32 matrix products, and the scaling of rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError, nearest
from jscope_tl.model.turns import Turns

MATMUL_PRECISIONS = ("highest", "high", "medium")
ONE_PRECISION = Turns()
"""Lock for torch's setting, which is global in the process."""


def check_matmul_precision(name: Any) -> str | None:
    """A precision of float32 matrix products by torch's names; an error if it is unknown."""
    if name is None or name in MATMUL_PRECISIONS:
        return name
    raise InputError(
        f"There is no matmul_precision {name!r}.{nearest(name, MATMUL_PRECISIONS)} Use 'highest', 'high' (TF32 if the "
        "device supports it), 'medium' (bfloat16), or None for torch's current setting."
    )


@contextmanager
def matmul_precision(name: str | None) -> Iterator[None]:
    """Set `torch.set_float32_matmul_precision` inside, and restore the previous setting afterwards; None changes nothing."""
    if name is None:
        yield
        return
    with ONE_PRECISION:
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError as error:
            raise InputError(
                "matmul_precision is set by torch.set_float32_matmul_precision, which torch refuses after its newer settings "
                "(torch.backends...fp32_precision) were used. Use only one of the two."
            ) from error
        try:
            torch.set_float32_matmul_precision(name)
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def power_of_two(rows: Float[Tensor, "k *rest"]) -> Float[Tensor, "k"]:
    """A power of two near the size of each row, for scaling without rounding: small rows would underflow in half precision."""
    largest = rows.abs().flatten(1).amax(1)
    return torch.where(largest > 0, torch.exp2(largest.log2().floor()), torch.ones_like(largest))


def beside(scale: Float[Tensor, "k"], rows: Float[Tensor, "k *rest"]) -> Float[Tensor, "k *ones"]:
    """One factor for each row, on its device."""
    return scale.to(rows.device).view(-1, *[1] * (rows.ndim - 1))
