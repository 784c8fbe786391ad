"""Descriptions of the arguments that all entry points share; `documented` inserts them into each docstring."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
PLACE = "        {shared}\n"
ARGUMENTS = {
    "model": "a `HookedTransformer` or `TransformerBridge`, in evaluation mode, on any device.",
    "prompt": """a string (tokenized with the model's tokenizer and BOS default), a list of ids, or an integer tensor ``[pos]`` or
            ``[1, pos]``, used unchanged; or the output of a tokenizer or chat template for one prompt (``input_ids``).""",
    "scope": """the name of a registered scope, with its options as further keywords; a scope object; or a function that maps the
            `State` to cotangents ``[d_model]`` or ``[k, d_model]``.""",
    "position": """the position whose next-token prediction is explained; negative numbers count from the end. Later positions
            score 0.""",
    "at": "the name of the residual-stream hook point whose activation ``x`` the gradients refer to.",
    "prepend_bos": "whether BOS is prepended to strings. None: the model's default.",
    "fwd_hooks": "TransformerLens hooks that are active in every run, to explain a patched or ablated model.",
    "reduction": """how rows become a score. ``"row_norm"``: the norm of ``C J_t``, per unit of ``x``; ``"dot"``: the norm of
            ``C J_t (x_t - x0_t)``, for one cotangent the absolute value of gradient x input; ``"elementwise"``: the norm of
            ``C J_t ⊙ (x_t - x0_t)``. The last two are in units of the explained quantity (for Fisher half of the sum of squares,
            the second-order KL divergence). None: the scope's default.""",
    "path": """the points at which the model is linearised, and the origin ``x0``: `js.Point` (the prompt itself; None), `js.Line`
            (integrated gradients), `js.Noise` (SmoothGrad), or ``"line"``, ``"noise"``.""",
    "gradient": """how gradients pass through norms, attention and MLPs: ``"plain"`` (the derivative itself, as in the paper), or rules
            that also credit inputs that matter although the derivative is small: ``"attnlrp"``, ``"relp"``, ``"gim"``, or
            `js.Rules`. The forward pass is unchanged. If some layers have no rule, an error names them.""",
    "frozen": """``"attn"`` holds attention patterns constant (linear attention has none), ``"norm"`` normalisation scales; or
            both. If some of them cannot be held constant, an error names them.""",
    "chunk_size": """the number of backward rows computed at once; by default as many as fit into memory, estimated from the first
            row. If memory runs out, half as many are tried, and the result says so.""",
    "matmul_precision": """``"high"`` (TF32) or ``"medium"`` (bfloat16) matrix products for the backward rows of a float32
            model, on devices that support them; the result's warnings state the loss of accuracy. None: torch's current setting.""",
    "progress": "show a progress bar always (True), never (False), or if the computation takes more than a second (None).",
    "options": "options of the scope if it is given by name, for example ``target``.",
}


def documented(function: F) -> F:
    """Replace the line ``{shared}`` of a docstring with the shared arguments that the docstring does not describe itself."""
    text = function.__doc__ or ""
    own = [name for name in inspect.signature(function).parameters if name in ARGUMENTS]
    missing = [name for name in own if f"\n        {name}: " not in text]
    function.__doc__ = text.replace(PLACE, "".join(f"        {name}: {ARGUMENTS[name]}\n" for name in missing))
    return function
