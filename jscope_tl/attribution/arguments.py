"""The arguments that entry points share, described once; `documented` puts them into each docstring."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
PLACE = "        {shared}\n"
ARGUMENTS = {
    "model": "a `HookedTransformer` or `TransformerBridge`, in evaluation mode, on any device.",
    "prompt": """a string (the model's tokenizer and BOS default apply), a list of ids, or an integer tensor ``[pos]`` or
            ``[1, pos]``, taken as it is; or what a tokenizer or its chat template returns for one prompt (``input_ids``).""",
    "scope": """a registered name, with its options as further keywords; a scope object; or a function from the
            `State` to cotangents ``[d_model]`` or ``[k, d_model]``.""",
    "position": """whose next-token prediction is explained; negative counts from the end. Later positions score 0.""",
    "at": "the residual-stream hook point whose activation ``x`` is meant, by its name.",
    "prepend_bos": "overrides the model's default for strings.",
    "fwd_hooks": "TransformerLens hooks that are active in every run, to explain a patched or ablated model.",
    "reduction": """from rows to a score. ``"row_norm"``: of ``C J_t``, per unit of ``x``; ``"dot"``: of ``C J_t (x_t - x0_t)``, for
            one cotangent the absolute gradient x input; ``"elementwise"``: of ``C J_t ⊙ (x_t - x0_t)``. The last two are in
            units of what is explained (Fisher: half of it, the second-order KL divergence). None: the scope's own.""",
    "path": """where the model is linearised, and the origin ``x0``: `js.Point` (the prompt itself; None), `js.Line`
            (integrated gradients), `js.Noise` (SmoothGrad), or ``"line"``, ``"noise"``.""",
    "gradient": """how gradients go through norms, attention and MLPs: ``"plain"`` (the derivative itself, as in the paper), or rules that
            say what inputs contribute where the derivative is small although they matter: ``"attnlrp"``, ``"relp"``, ``"gim"``, or
            `js.Rules`. The forward pass is unchanged. Refused, with their names, where some layers have no rule.""",
    "frozen": """``"attn"`` holds attention patterns constant (linear attention has none), ``"norm"`` normalisation scales; or
            both. Refused, with their names, where some cannot be held.""",
    "chunk_size": """backward rows computed at once; by default what the memory that the first row took leaves room for. Where
            memory runs out, half as many are tried, and the result says so.""",
    "matmul_precision": """``"high"`` (TF32) or ``"medium"`` (bfloat16) matrix products for the backward rows of a float32
            model, on devices that have them; the result's warnings say what it cost in accuracy. None: as torch is set.""",
    "progress": "a progress bar always (True), never (False), or where the wait is over a second (None).",
    "options": "of the scope, where it is given by name: ``target`` for one.",
}


def documented(function: F) -> F:
    """Put the shared arguments that a docstring does not describe itself in place of its line ``{shared}``."""
    text = function.__doc__ or ""
    own = [name for name in inspect.signature(function).parameters if name in ARGUMENTS]
    missing = [name for name in own if f"\n        {name}: " not in text]
    function.__doc__ = text.replace(PLACE, "".join(f"        {name}: {ARGUMENTS[name]}\n" for name in missing))
    return function
