"""`JacobianRows`: what `jacobian` returns, a tensor that knows its prompt."""

from typing import Any

import torch
from torch import Tensor


class JacobianRows(Tensor):
    """Rows ``C J_t [k, pos, d]``: a tensor like any other, which in a notebook shows the prompt with the norm at each position.

    What is computed from it, and what is saved of it, is a plain tensor.

    Attributes:
        str_tokens: text of the prompt's tokens.
        position: the explained position.
        at: hook point of ``x``.
        prepended: the BOS token that was put before a prompt given as text; None where nothing was, or ids were given.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as of torch.nn.Parameter

    str_tokens: list[str]
    position: int
    at: str
    prepended: str | None

    @property
    def plain(self) -> Tensor:
        """The same numbers as a plain tensor."""
        return self.as_subclass(Tensor)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.plain.__reduce_ex__(protocol)

    def headline(self) -> str:
        """Shape, explained position and hook point in one line."""
        where = f"position {self.position} ({self.str_tokens[self.position]!r})"
        prepended = "" if self.prepended is None else f"; {self.prepended!r} was prepended"
        return f"Jacobian rows [k, pos, d] = {list(self.shape)} of y at {where}, at {self.at}: ‖C J_t‖ of every token{prepended}"

    def _repr_html_(self) -> str:
        from jscope_tl.views.notebook import fragment  # against the direction of the data, as in `Saved`

        return fragment(self)
