"""`attribute_batch`: many prompts, several in one forward and backward pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.attribution.attribute import attribute, attribution
from jscope_tl.engine.backward import Puller, check_chunk_size
from jscope_tl.errors import InputError, whole
from jscope_tl.engine.forward import FwdHooks, Run
from jscope_tl.attribution.linearised import Linearised
from jscope_tl.model.view import ModelView
from jscope_tl.attribution.paths import Path, Point
from jscope_tl.engine.progress import bar
from jscope_tl.model.prompts import prompt_warnings, to_position, to_tokens
from jscope_tl.results.attribution import Attribution
from jscope_tl.scopes.base import Scope, Score, checked_cotangents
from jscope_tl.scopes.registry import resolve_scope
from jscope_tl.engine.state import State

MOST_PROMPTS = 10**6
"""Side by side; more would be all of them."""


def attribute_batch(
    model: Any,
    prompts: Iterable[Any],
    scope: str | Scope | Callable[..., Any] = "semantic",
    *,
    batch_size: int = 16,
    position: int = -1,
    at: str | Sequence[str] = "hook_embed",
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    reduction: str | None = None,
    path: str | Path | None = None,
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Iterator[Attribution]:
    """Explain many prompts; the results come in the order of the prompts, each as `attribute` would give it.

    Prompts of different lengths run side by side, shorter ones filled up behind their end, where a causal model does not
    look. A scope whose rows add up plainly (all but ``fisher`` and ``spectral``, unless a subclass overrides `Scope.score`) takes one backward
    pass for the whole batch. The others, and every scope while hooks are active (which may count on one prompt), run prompt
    by prompt.

    Args:
        model, scope, position, at, prepend_bos, fwd_hooks, reduction, path, frozen, chunk_size, options: see `attribute`. A negative position counts
            from the end of each prompt.
        prompts: strings, lists of ids or tensors; a generator is read as far as it is needed.
        batch_size: prompts in one forward pass. Prompts of similar length next to each other waste less.
        progress: a progress bar over prompts always (True), never (False), or where the wait is over a second (None).

    Returns:
        A generator of `Attribution`; a prompt is explained when its batch is reached.

    Raises:
        InputError: as `attribute`, with the number of the prompt, counted from 0.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompts = ["the keys near the door", "the key to the cabinet near the doors"]
        >>> [result.prediction.top[0].str_token for result in js.attribute_batch(model, prompts, "log_prob")]
        [' are', ' is']
    """
    if (whole(batch_size) or 0) < 1:
        raise InputError(f"batch_size is how many prompts to run at once, 1 or more; got {batch_size!r}.")
    single = isinstance(prompts, str | Mapping) or (isinstance(prompts, Tensor) and prompts.ndim < 2)
    if single or not isinstance(prompts, Iterable):
        raise InputError(f"prompts are several prompts; for one, use js.attribute. Got {prompts!r}.")
    view, scope = ModelView(model), resolve_scope(scope, options)
    how = Linearised.checked(scope, reduction, path, frozen, fwd_hooks)
    alone = partial(
        attribute, model, scope=scope, at=at, fwd_hooks=how.hooks, reduction=how.reduction, path=how.path,
        frozen=how.frozen, chunk_size=chunk_size, progress=False,
    )  # fmt: skip
    together = _Together(view, scope, how, at, view.hook_points(at), check_chunk_size(chunk_size))

    def results() -> Iterator[Attribution]:
        size = min(batch_size, MOST_PROMPTS)
        for batch in _batches(view, bar(prompts, progress, "prompts", "prompt"), size, position, prepend_bos):
            if len(batch) > 1 and together.possible():
                yield from together.explained(batch)
            else:
                yield from _one_by_one(alone, batch)

    return results()


@dataclass(frozen=True)
class _Numbered:
    """A prompt and its place in the order."""

    n: int
    tokens: Int[Tensor, "pos"]
    position: int


def _batches(
    view: ModelView, prompts: Iterable[Any], size: int, position: Any, prepend_bos: bool | None
) -> Iterator[list[_Numbered]]:
    numbered = enumerate(prompts)
    while taken := list(islice(numbered, size)):
        batch = []
        for n, prompt in taken:
            with _named(n):
                tokens = to_tokens(view, prompt, prepend_bos)
                batch.append(_Numbered(n, tokens, to_position(position, len(tokens))))
        yield batch


def _one_by_one(explain: Callable[..., Attribution], batch: list[_Numbered]) -> Iterator[Attribution]:
    for prompt in batch:
        with _named(prompt.n):
            result = explain(prompt.tokens, position=prompt.position)
        yield result


@contextmanager
def _named(n: int) -> Iterator[None]:
    """Say which prompt an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"Prompt {n}: {error}") from error


@dataclass(frozen=True)
class _Together:
    """Several prompts in one forward pass, where the scope and the model allow it."""

    view: ModelView
    scope: Scope
    how: Linearised
    at: Any
    points: list[str]
    chunk_size: int | None

    def possible(self) -> bool:
        """Hooks may count on one prompt; scopes with a score of their own ask for rows as they go."""
        hooked = self.view.is_hooked(self.how.hooks)
        own_baseline = isinstance(self.how.path.baseline, Tensor) and self.how.path.baseline.ndim == 2
        one_point = isinstance(self.how.path, Point) and not own_baseline
        beside = any(self.view.reads_beside(name) for name in self.points)
        plain = type(self.scope).score is Scope.score
        return plain and one_point and not (hooked or beside or self.view.unembedding_is_hooked([]))

    def explained(self, batch: list[_Numbered]) -> list[Attribution]:
        warnings = self.scope.check(self.view.basis)
        tokens, positions = [prompt.tokens for prompt in batch], [prompt.position for prompt in batch]
        with self.how.run_together(self.view, tokens, positions, self.points) as forward:
            rows = []
            for i, prompt in enumerate(batch):
                with _named(prompt.n):
                    rows.append(self._rows(forward.state(i)))
            puller = Puller(forward.xs, forward.y, forward.positions, self.chunk_size, progress=False)
            scores = _scores(self.scope, forward, puller, rows)
            found = []
            for i, (prompt, score) in enumerate(zip(batch, scores, strict=True)):
                own = [*warnings, *prompt_warnings(self.view, prompt.tokens)]
                with _named(prompt.n):
                    score = self.how.in_units(self.scope, score)
                    found.append(attribution(forward, self.scope, self.how, score, puller, self.at, own, i))
            return found

    def _rows(self, state: State) -> Float[Tensor, "k d_model"]:
        self.scope.explained_token(state)
        return checked_cotangents(self.scope.cotangents(state), state, self.scope.label)


def _scores(scope: Scope, forward: Run, puller: Puller, rows: list[Float[Tensor, "_ d_model"]]) -> list[Score]:
    """One backward pass for the ``j``-th rows of all prompts: no prompt's ``y`` depends on another's ``x``."""
    sizes = [of_one.abs().max().clamp_min(torch.finfo(of_one.dtype).tiny) for of_one in rows]
    placed = rows[0].new_zeros(max(map(len, rows)), *forward.y.shape)
    for i, (of_one, size) in enumerate(zip(rows, sizes, strict=True)):
        placed[: len(of_one), i] = of_one / size  # alike in size, for half precision
    energies = puller.energies(placed)
    scores = []
    for i, size in enumerate(sizes):
        own = scope.combined(energies[..., forward.part(i)]) * size
        own[..., forward.positions[i] + 1 :] = 0
        scores.append(Score(own))
    return scores
