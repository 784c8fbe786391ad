"""Scopes: what is explained. A module for each family, the base class, and the registry of their names.

To add one to the package, write a class with ``@register_scope`` in a module here and import the module below.

A scope of one's own is a function from the `State` to cotangents, the output directions that are pulled back:

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

Its keywords are its options, and a keyword ``target`` is the token that it explains. For checks of options, a score other
than ``‖C J_t‖`` or an effect of its own, subclass `Scope`, a frozen dataclass whose fields are the options; for a number
computed from the logits, subclass `QuantityScope` and return that function from ``quantity``:

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
