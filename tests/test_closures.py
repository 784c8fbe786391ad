"""Inner functions are checked wherever they are defined again."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

from tests import closures

ONE, TWO = torch.ones(1), torch.ones(2)


def plus(n: Any) -> Callable[..., Any]:
    @jaxtyping.jaxtyped(typechecker=beartype)
    def inner(x: Float[Tensor, "a"], times: int) -> Float[Tensor, "a"]:
        return x + n if times == 1 else inner(x + n, times - 1)

    return inner


def test_each_definition_is_checked_and_runs_its_own_body() -> None:
    assert jaxtyping.jaxtyped is closures.shared
    for n in (3, 4):
        inner = plus(n)
        assert inner(TWO, 2).tolist() == [1 + 2 * n] * 2
        assert (inner.__name__, inner.__annotations__["times"]) == ("inner", int)
        for wrong in ((2, 1), (TWO[None], 1), (TWO, "once")):
            with pytest.raises(jaxtyping.TypeCheckError, match="the parameters of"):
                inner(*wrong)
        assert inner(TWO, 1).tolist() == [1 + n] * 2  # also after an error
    with pytest.raises(jaxtyping.TypeCheckError, match="the return value"):
        plus(TWO)(ONE, 1)


def test_functions_are_not_kept_alive() -> None:
    plus(1)(TWO, 1)
    function = plus(2)
    function(TWO, 3)
    gone = weakref.ref(function.__wrapped__)
    del function
    gc.collect()
    assert gone() is None
