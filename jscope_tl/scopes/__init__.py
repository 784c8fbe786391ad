"""Scopes define the quantity that is explained. This package has a module for each family, the base class, and the registry.

To add a scope to the package, write a class with ``@register_scope`` in a module here and import the module below.

The simplest custom scope is a function from the `State` to cotangents, the output directions of the vector-Jacobian products:

    >>> from dataclasses import dataclass
    >>> import torch, jscope_tl as js
    >>> @js.register_scope("margin", unit="logit per unit of x")
    ... def margin(state, target=None):
    ...     "The target's logit against the best other one."
    ...     token = state.to_id(target)
    ...     return state.gradient(lambda z: z[token] - z[torch.arange(len(z)) != token].max())
    >>> model = js.load_pocket_model()
    >>> js.attribute(model, "the keys to the cabinet", "margin", target=" are").prediction.target.str_token
    ' are'

The function's keywords are the scope's options, and a keyword ``target`` is the token that it explains. To check options, or to
define another score than ``‖C J_t‖`` or another effect, subclass `Scope`, a frozen dataclass whose fields are the options. To
explain a number that is computed from the logits, subclass `QuantityScope` and return a function of the logits from ``quantity``:

    >>> @js.register_scope("top_probability")
    ... @dataclass(frozen=True)
    ... class TopProbability(js.QuantityScope):
    ...     "The largest probability."
    ...     unit = "probability per unit of x"
    ...     def quantity(self, state):
    ...         return lambda z: z.softmax(-1).max()
    >>> js.attribute(model, "the keys to the cabinet", "top_probability").unit
    'probability per unit of x'
"""

from jscope_tl.scopes import alternatives, directions, fisher, spectral

__all__ = ["alternatives", "directions", "fisher", "spectral"]
