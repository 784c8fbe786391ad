"""`JacobianRows`: the return type of `jacobian`, a tensor with the tokens of its prompt."""

from typing import Any

import torch
from torch import Tensor


class JacobianRows(Tensor):
    """Rows ``C J_t [k, pos, d]``: a tensor that is displayed in a notebook as the prompt with the norm at each position.

    Operations on it return plain tensors, and it is saved as a plain tensor.

    Attributes:
        str_tokens: the text of the prompt's tokens.
        position: the explained position.
        at: the hook point of ``x``.
        prepended: the BOS token that was prepended to a prompt given as text; None if nothing was prepended or ids were given.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as in torch.nn.Parameter

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
        from jscope_tl.views.notebook import fragment  # imported here because views import results

        return fragment(self)
