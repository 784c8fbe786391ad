"""One forward pass, cut at the hook point and at the unembedding; the user's model and hooks are left unchanged."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jscope_tl.engine.cuts import Cuts
from jscope_tl.engine.inputs import NORM, Inputs
from jscope_tl.engine.recomputed import recomputed
from jscope_tl.engine.ruled_pass import HeldConstant, RuledPass
from jscope_tl.engine.run import Run, Settings
from jscope_tl.engine.under_rules import under_rules
from jscope_tl.errors import InputError
from jscope_tl.model.hooks import hooked
from jscope_tl.model.running import ONE_AT_A_TIME, Passes, full_precision, logits_of
from jscope_tl.model.view import ModelView

AS_IT_IS = Inputs()
FwdHooks = Iterable[tuple[str | Callable[[str], bool], Callable[..., Any]]] | None


def run(
    settings: Settings,
    tokens: Int[Tensor, "pos"],
    positions: Sequence[int],
    inputs: Inputs = AS_IT_IS,
    passes: Passes | None = None,
    how: Mapping[str, Any] | None = None,
) -> AbstractContextManager[Run]:
    """Run the model once; inside the context the `Run` can be differentiated, independent of the gradient mode outside.

    ``how``: further arguments of the forward pass. Raises `InputError` if a hook point does not run, the prediction does not depend on
    any hook point, or activations are not finite.
    """
    held = HeldConstant()
    return _forward(settings, [tokens], [0] * len(positions), positions, inputs, held, passes or Passes(), how)


def run_together(
    settings: Settings,
    prompts: Sequence[Int[Tensor, "_"]],
    positions: Sequence[int],
    inputs: Inputs = AS_IT_IS,
    passes: Passes | None = None,
    rows: Sequence[int] | None = None,
) -> AbstractContextManager[Run]:
    """`run` for several prompts in one forward pass, with one explained position in each, or in the prompts with the numbers ``rows``.

    Shorter prompts are padded on the right, which does not affect a causal model.
    """
    held = HeldConstant()
    return _forward(
        settings, prompts, range(len(prompts)) if rows is None else rows, positions, inputs, held, passes or Passes()
    )


def run_again(first: Run, n: int, inputs: Inputs, i: int = 0) -> AbstractContextManager[Run]:
    """A batch of ``n`` copies of the prompt of a run's ``i``-th explained position, with activations moved by ``inputs``.

    Values that the first run held constant are reused; passes are counted with those of the first run.
    """
    prompts, positions = [first.prompts[first.rows[i]]] * n, [first.positions[i]] * n
    return _forward(first.settings, prompts, range(n), positions, inputs, first.held, first.passes)


@contextmanager
def _forward(
    settings: Settings,
    prompts: Sequence[Int[Tensor, "_"]],
    rows: Sequence[int],
    positions: Sequence[int],
    inputs: Inputs,
    held: HeldConstant,
    passes: Passes,
    how: Mapping[str, Any] | None = None,
) -> Iterator[Run]:
    """One forward pass under the cuts, the gradient rules and the user's hooks.

    Everything that the package shares with the user (hooks, parameter flags, the hook level) is changed inside the inner block and
    restored at its end, before the `Run` is yielded: backward passes need only the graph, and may take long.
    """
    view, hooks = settings.view, settings.fwd_hooks
    view.check_hook_names(hooks)
    tokens = _filled(prompts, view.tokenizer)
    with torch.inference_mode(False), torch.enable_grad(), full_precision(view):
        with ExitStack() as stack:
            stack.enter_context(ONE_AT_A_TIME)
            cuts = Cuts(rows, positions, narrow=not view.unembedding_is_hooked(hooks), inputs=inputs)
            stack.enter_context(_parameters_frozen(view))
            # The cut comes last, so that it is applied after the user's hooks at the same point.
            own = [(name, _cut(view, cuts, name)) for name in settings.at]
            own += [(name, cuts.watch(name)) for name in settings.watched]
            stack.enter_context(hooked(view, hooks, own))
            for handle in cuts.attach(view.model.unembed):
                stack.callback(handle.remove)
            stack.enter_context(_inference_tensors_named())
            batch, pos = tokens.shape
            again = stack.enter_context(recomputed(settings, batch * pos, partial(_parameters_frozen, view)))
            ruled = stack.enter_context(under_rules(view, settings.rules, held, pos, batch, settings.patterns))
            output = logits_of(view, tokens.clone(), passes, how)
        yield _run(settings, prompts, cuts, output, ruled, passes, again.saved)


def _cut(view: ModelView, cuts: Cuts, name: str) -> Callable[..., Any]:
    """A hook that cuts the graph at the point, or only reads the activation if the point is outside the stream."""
    if not view.reads_beside(name):
        return cuts.cut_input(name)
    if cuts.inputs.reduction is not NORM or cuts.inputs.place is not None:
        raise InputError(
            f"On a {type(view.model).__name__} {name!r} is a copy of the stream that only the MLP reads, so the stream cannot be "
            "changed there, which this reduction or path needs. Use 'hook_resid_pre' or 'hook_resid_post'."
        )
    return cuts.read_input(name)


def _filled(prompts: Sequence[Int[Tensor, "_"]], tokenizer: Any) -> Int[Tensor, "batch pos"]:
    """Prompts padded to the length of the longest, with a token that is neither a padding nor a BOS token."""
    special = {getattr(tokenizer, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    filler = next(token for token in range(len(special) + 1) if token not in special)
    longest = max(map(len, prompts))
    return torch.stack([nn.functional.pad(prompt, (0, longest - len(prompt)), value=filler) for prompt in prompts])


@contextmanager
def _inference_tensors_named() -> Iterator[None]:
    """Explain torch's error about inference tensors, which does not say that the tensor comes from a hook."""
    try:
        yield
    except RuntimeError as error:
        if "Inference tensors" not in str(error):
            raise
        raise InputError(
            "A hook returns a tensor that was created inside torch.inference_mode(), through which gradients cannot be "
            "computed. Create it outside, or let the hook return a clone() created outside."
        ) from error


@contextmanager
def _parameters_frozen(view: ModelView) -> Iterator[None]:
    """Inside, parameters do not require gradients; the flags are restored afterwards."""
    trainable = [parameter for parameter in view.parameters if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _run(
    settings: Settings,
    prompts: Sequence[Int[Tensor, "_"]],
    cuts: Cuts,
    output: Float[Tensor, "rows seen d_vocab"],
    ruled: RuledPass,
    passes: Passes,
    saved: float,
) -> Run:
    at = settings.at
    _need_one_cut_each(settings, cuts)
    activations, xs = ([kept[name][0] for name in at] for kept in (cuts.activations, cuts.xs))
    y = cuts.y[0]
    watched = {name: cuts.watched[name][0] for name in settings.watched}
    named = [
        *zip(at, activations, strict=True),
        *watched.items(),
        ("the final hidden state", y),
        ("the logits", output),
    ]
    for name, tensor in named:
        if not tensor.isfinite().all():
            raise InputError(
                f"There are infinite or undefined values in {name} of {settings.view.name}; nothing can be attributed to "
                f"them. {not_finite_cure(y.dtype)}"
            )
    if not y.requires_grad:
        raise InputError(
            f"The prediction does not depend on {at[-1]!r}: a hook between them replaces or detaches everything."
        )
    if not output.requires_grad:
        raise InputError(
            "A hook at or behind the unembedding detaches the logits, or returns a tensor that cannot be differentiated; nothing can be "
            "attributed through it. Return a float tensor computed from the hook's input."
        )
    explained = (0, slice(None)) if cuts.narrow else (list(cuts.rows), list(cuts.positions))
    logits = output[explained]
    slope = _slope(logits, cuts.unembedded[0])[explained]
    where = (prompts, cuts.rows, cuts.positions)
    return Run(
        settings, *where, activations, xs, y, cuts.y_cuts[0], logits, slope, cuts.inputs, ruled.patterns, ruled.entries, watched,
        ruled.held, passes, saved,
    )  # fmt: skip


def _need_one_cut_each(settings: Settings, cuts: Cuts) -> None:
    """Refuse a hook point or an unembedding that does not run or runs several times, because the Jacobian is not unique then."""
    points = [
        *((name, len(cuts.xs[name])) for name in settings.at),
        *((name, len(cuts.watched[name])) for name in settings.watched),
    ]
    for name, times in [*points, ("The unembedding", len(cuts.y))]:
        if times != 1:
            raise InputError(
                f"{name!r} ran {times} times in one forward pass of {settings.view.name}; it must run once. Choose another "
                "hook point, for example 'hook_embed'."
            )


def _slope(
    logits: Float[Tensor, "n d_vocab"], unembedded: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """The derivative of each logit through soft-cap and scale, in one backward pass, because they act on each logit separately."""
    (slope,) = torch.autograd.grad(logits.sum(), unembedded, retain_graph=True)
    return slope.to(torch.promote_types(slope.dtype, torch.float32))


def not_finite_cure(dtype: torch.dtype) -> str:
    """The advice against infinite values, which depends on the dtype."""
    if dtype in (torch.float16, torch.bfloat16):
        return f"{str(dtype).removeprefix('torch.')} overflows or rounds too much: try float32. Or check hooks and weights."
    return "Check the hooks and the weights."
