"""`attribute_batch`: many prompts, several of them in one forward and backward pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.attribute import explain_target
from jscope_tl.attribution.describe import attribution, of_prompt
from jscope_tl.attribution.paths import Path, Point
from jscope_tl.attribution.setup import Setup, set_up
from jscope_tl.attribution.span import several_tokens
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.inputs import Reduction
from jscope_tl.engine.progress import progress_bar
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.run import Run
from jscope_tl.engine.vjp import Backward
from jscope_tl.errors import InputError, whole
from jscope_tl.results.attribution import Attribution
from jscope_tl.scopes.base import Scope, Score

MOST_PROMPTS = 10**6
"""Upper limit of ``batch_size``; a larger number is reduced to it."""


@documented
def attribute_batch(
    model: Any,
    prompts: Iterable[Any],
    scope: str | Scope | Callable[..., Any] = "semantic",
    *,
    batch_size: int = 16,
    position: int = -1,
    at: str | Sequence[str] = "hook_embed",
    per: str | None = None,
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    reduction: str | Reduction | None = None,
    path: str | Path | None = None,
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Iterator[Attribution]:
    """Explain many prompts; yields the result of `attribute` for each prompt, in the order of the prompts.

    Prompts of different lengths run in one batch; shorter ones are padded on the right, which does not affect a causal
    model. An additive scope (all but ``fisher``, ``fisher_input`` and ``spectral``) takes one backward pass for the whole
    batch. The other scopes run prompt by prompt, and so does every scope while hooks are active, because hooks may expect
    a single prompt.

    Args:
        prompts: strings, lists of ids or tensors; a generator is read only as far as it is needed.
        batch_size: the number of prompts in one forward pass. Sort prompts by length to reduce padding.
        position: the position whose next-token prediction is explained; negative numbers count from the end of each prompt.
        at: the residual-stream hook point whose activation ``x`` the scores refer to. Several hook points, or ``"resid_pre"``,
            ``"resid_mid"`` or ``"resid_post"`` for all layers, give layer maps; ``"pattern"`` gives scores of the entries of
            attention patterns, as in `attribute`.
        per: with ``at="pattern"``: ``"layer"`` or ``"head"`` returns separate scores for each.
        progress: show a progress bar over prompts always (True), never (False), or if it takes more than a second (None).
        {shared}

    Returns:
        A generator of `Attribution`; a prompt is explained when its batch is reached.

    Raises:
        InputError: as in `attribute`; the message starts with the number of the prompt, counted from 0.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompts = ["the keys near the door", "the key to the cabinet near the doors"]
        >>> [result.prediction.top[0].str_token for result in js.attribute_batch(model, prompts, "log_prob")]
        [' are', ' is']
    """
    if (size := whole(batch_size) or 0) < 1:
        raise InputError(f"batch_size is the number of prompts to run at once, 1 or more; got {batch_size!r}.")
    single = isinstance(prompts, str | Mapping) or (isinstance(prompts, Tensor) and prompts.ndim < 2)
    if single or not isinstance(prompts, Iterable):
        raise InputError(f"prompts must be several prompts; for one prompt, use js.attribute. Got {prompts!r}.")
    setup = set_up(
        model, scope, options, at=at, per=per, fwd_hooks=fwd_hooks, reduction=reduction, path=path, gradient=gradient, frozen=frozen,
        chunk_size=chunk_size, matmul_precision=matmul_precision, progress=False,
    )  # fmt: skip

    def results() -> Iterator[Attribution]:
        given = progress_bar(progress, "prompts", "prompt", prompts)
        for batch in _batches(setup, given, min(size, MOST_PROMPTS), position, prepend_bos):
            together = len(batch) > 1 and can_run_together(setup)
            found = explain_together(batch) if together else map(_alone, batch)
            for result, prompt in zip(found, batch, strict=True):
                yield of_prompt(result, prompt.given)

    return results()


@dataclass(frozen=True)
class Numbered:
    """A prompt, its number, and how it is explained; the setups of one batch differ in the target alone."""

    n: int
    given: Any
    tokens: Int[Tensor, "pos"]
    position: int
    setup: Setup


def _batches(
    setup: Setup, prompts: Iterable[Any], size: int, position: Any, prepend_bos: bool | None
) -> Iterator[list[Numbered]]:
    numbered = enumerate(prompts)
    while taken := list(islice(numbered, size)):
        batch = []
        for n, prompt in taken:
            with _named(n):
                batch.append(Numbered(n, prompt, *setup.prompt(prompt, prepend_bos, position), setup))
        yield batch


@contextmanager
def _named(n: int) -> Iterator[None]:
    """Add the number of the prompt to an error's message."""
    try:
        yield
    except InputError as error:
        raise InputError(f"Prompt {n}: {error}") from error


def _alone(prompt: Numbered) -> Attribution:
    with _named(prompt.n):
        return explain_target(prompt.setup, prompt.tokens, prompt.position)


def can_run_together(setup: Setup) -> bool:
    """Whether prompts can share passes: not with hooks, which may expect one prompt, nor with scopes that are not additive."""
    view, origin = setup.view, setup.path.origin
    hooked = view.is_hooked(setup.settings.fwd_hooks) or view.unembedding_is_hooked([])
    own_origin = isinstance(origin, Tensor) and origin.ndim == 2
    beside = any(view.reads_beside(name) for name in setup.settings.at)
    apart = own_origin or hooked or beside or not isinstance(setup.path, Point)
    return setup.additive and not apart and several_tokens(setup) is None


def explain_together(batch: Sequence[Numbered]) -> list[Attribution]:
    """Explain prompts that `can_run_together` in one forward and one backward pass."""
    setup = batch[0].setup
    warnings = [prompt.setup.warnings(prompt.tokens) for prompt in batch]
    with setup.run_together([prompt.tokens for prompt in batch], [prompt.position for prompt in batch]) as forward:
        rows = []
        for i, prompt in enumerate(batch):
            with _named(prompt.n):
                prompt.setup.scope.target_id(forward.state(i))
                rows.append(prompt.setup.scope.rows(forward.state(i)))
        backward = setup.backward(forward)
        scores, passes = _scores(setup, forward, backward, rows), forward.passes.each(len(batch))
        found = []
        for i, (prompt, score) in enumerate(zip(batch, scores, strict=True)):
            with _named(prompt.n):
                notes, own = [*warnings[i], *backward.notes], prompt.setup
                found.append(attribution(own, forward, own.in_units(score), notes, i, passes))
        return found


def _scores(setup: Setup, forward: Run, backward: Backward, rows: list[Float[Tensor, "_ d_model"]]) -> list[Score]:
    """One backward pass for the ``j``-th rows of all prompts: no prompt's ``y`` depends on another's ``x``."""
    sizes = [of_one.abs().max().clamp_min(torch.finfo(of_one.dtype).tiny) for of_one in rows]
    placed = rows[0].new_zeros(max(map(len, rows)), *forward.y.shape)
    for i, (of_one, size) in enumerate(zip(rows, sizes, strict=True)):
        placed[: len(of_one), i] = of_one / size  # rows of similar size, for half precision
    numbers = setup.numbers(backward, placed)
    degree = 2 if setup.entries is not None and len(placed) > 1 else 1  # how the score scales with the rows
    scores = []
    for i, size in enumerate(sizes):
        own = setup.combined(numbers[..., forward.part(i)]) * size**degree
        own[..., forward.positions[i] + 1 :] = 0
        scores.append(Score(own))
    return scores
