"""`components`: the mean effect of each component over many prompts, as a starting point for a circuit search."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jscope_tl.components.effects import ComponentEffects, strongest
from jscope_tl.components.prediction import components as of_one_prompt
from jscope_tl.corpus.component_means import AXES, ComponentMeans
from jscope_tl.corpus.means import Means
from jscope_tl.corpus.prompts import Line, read_prompts
from jscope_tl.corpus.questions import asked_of, with_options
from jscope_tl.corpus.resampling import Resampled
from jscope_tl.engine.progress import progress_bar
from jscope_tl.errors import InputError, count, nearest
from jscope_tl.model.chats import is_chat
from jscope_tl.model.text import tokenized
from jscope_tl.model.view import ModelView
from jscope_tl.scopes.base import Scope
from jscope_tl.scopes.registry import scope_entry

NAMED = 20
"""The largest number of failed prompts that are listed."""
CORRUPTED = "corrupted"
"""The column with the source of each prompt."""


def components(
    model: Any,
    prompts: Any,
    scope: Any = "fisher",
    *,
    of: str = "heads",
    most: int = 10,
    measure: int = 0,
    bootstrap_seed: int = 0,
    progress: bool | None = None,
    **how: Any,
) -> ComponentMeans:
    """The mean effect of each head, layer or neuron over prompts, with 95 % intervals, from `jscope_tl.patching.components` on each prompt.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, in evaluation mode, on any device.
        prompts: prompts as for `jscope_tl.corpus.run`: a file, a data set, or an iterable of strings, lists of ids, chats and mappings,
            optionally with ``id``, ``target``, ``baseline`` and ``position`` for each prompt. A column ``corrupted`` has for each prompt
            another prompt with the same number of tokens, which is its ``source`` in `jscope_tl.patching.components`.
        scope: the scope, as for `jscope_tl.patching.components`.
        of: ``"heads"``, ``"attn"``, ``"mlps"`` or ``"neurons"``, which are the same in every prompt.
        most: how many components of a prompt count as the strongest, for the share of prompts in which each component is among them.
        measure: how many of the strongest components of each prompt are measured in whole runs (see `ComponentEffects.measure`), instead
            of predicted; 0 for none.
        bootstrap_seed: the seed of the bootstrap over prompts, from which the intervals come.
        progress: a progress bar over prompts always (True), never (False), or if the call takes more than a second (None).
        how: further options of `jscope_tl.patching.components`, for all prompts: ``source``, ``refine``, ``target``, ...

    Returns:
        `ComponentMeans`. It has the number of prompts that cannot be explained, and the first of them with the reasons.

    Raises:
        InputError: an unknown kind, no prompts, or no prompt that can be explained.

    Example:
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), [prompt.text for prompt in js.pocket_prompts("agreement", 4)]
        >>> means = js.corpus.components(model, prompts, "log_prob")
        >>> tuple(means.mean.shape), means.n
        ((4, 4), 4)
    """
    _check(of, how)
    found = _Found(count("most", most, 1), count("bootstrap_seed", bootstrap_seed, 0))
    n_measured, view, lines = count("measure", measure, 0), ModelView(model), read_prompts(prompts)
    for line in progress_bar(progress, "prompts", "prompt", lines.lines(), total=lines.total):
        try:
            prompt, asked, own = _asked(view, line, scope)
            effects = of_one_prompt(model, prompt, asked, of=of, progress=False, **{**how, **own})
            found.add(line.id, effects.measure(n_measured, progress=False) if n_measured else effects)
        except InputError as error:
            found.failure(line.id, error)
    return found.means(of)


def _check(of: Any, how: Mapping[str, Any]) -> None:
    if of not in AXES:
        raise InputError(
            f"Means over prompts need components that are the same in every prompt: {', '.join(AXES)}; got {of!r}.{nearest(str(of), AXES)}"
        )
    if how.get("positions", "all") != "all":
        raise InputError("positions='each' has no means over prompts, because their positions differ; leave it out.")


def _asked(view: ModelView, line: Line, scope: Any) -> tuple[Any, Any, dict[str, Any]]:
    """A prompt, its scope, and the keywords for this prompt alone."""
    if line.error is not None:
        raise InputError(line.error)
    prompt = tokenized(view, line.prompt).tokens if is_chat(line.prompt) else line.prompt
    carried = line.carried or {}
    own = {"position": line.position, "source": carried.get(CORRUPTED)}
    if isinstance(scope, Scope):
        scope = with_options(scope, asked_of(scope, line))
    elif isinstance(scope, str):
        taken = scope_entry(scope).options
        own |= {key: getattr(line, key) for key in ("target", "baseline") if key in taken}
    return prompt, scope, {key: value for key, value in own.items() if value is not None}


@dataclass
class _Found:
    """The sums over the prompts so far."""

    most: int
    seed: int
    resampled: Resampled | None = None
    first: ComponentEffects | None = None
    numbers: Means = field(default_factory=lambda: Means(4))
    n: int = 0
    n_failed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    doubted: int = 0
    doubt: str = ""
    sources: set[str] = field(default_factory=set)

    def add(self, name: str, effects: ComponentEffects) -> None:
        """Add the effects of one prompt."""
        self.first = self.first or effects
        values = effects.values.flatten().double().numpy()
        self.resampled = self.resampled or Resampled(len(values), self.seed)
        self.resampled.add(values)
        top = np.zeros(len(values))
        top[strongest(effects.values, self.most)] = 1
        refined = effects.refined if effects.measured is None else effects.refined | ~effects.measured.isnan()
        self.numbers.add(
            np.arange(len(values)), np.stack([values, np.abs(values), top, refined.flatten().double().numpy()])
        )
        self.n += 1
        self.sources.add(effects.source)
        if effects.warnings:
            self.doubted += 1
            self.doubt = self.doubt or f"{name}: {effects.warnings[0]}"

    def failure(self, name: str, error: InputError) -> None:
        """Add a prompt that cannot be explained."""
        self.n_failed += 1
        if len(self.failed) < NAMED:
            self.failed[name] = str(error)

    def means(self, of: str) -> ComponentMeans:
        """The means over all prompts."""
        first = self.first
        if first is None or self.resampled is None:
            why = (
                f"all {self.n_failed} failed; the error of the first is: {next(iter(self.failed.values()))}"
                if self.failed
                else "there are none"
            )
            raise InputError(f"No prompt can be explained: {why}")
        mean, absolute, in_top, refined = (self._tensor(values) for values in self.numbers.means)
        low, high = map(self._tensor, self.resampled.interval())
        options = {name: value for name, value in first.options.items() if name != "resolved"}
        warned = (
            [f"{self.doubted} of {self.n} prompts have warnings; the first is that of prompt {self.doubt}"]
            if self.doubted
            else []
        )
        return ComponentMeans(
            of=of, axes=first.axes, mean=mean, stderr=self._tensor(self.numbers.stderrs(0)), low=low, high=high, absolute=absolute, in_top=in_top,
            refined=refined, n=self.n, n_failed=self.n_failed, failed=self.failed, most=self.most, hook_points=first.hook_points,
            source=" or ".join(sorted(self.sources)), direction=first.direction, scope=first.scope, options=options, unit=first.unit, seed=self.seed,
            model=first.provenance.model_name, warnings=warned,
        )  # fmt: skip

    def _tensor(self, values: np.ndarray) -> Float[Tensor, "*axes"]:
        assert self.first is not None  # for mypy
        return torch.from_numpy(values.copy()).float().reshape(self.first.predicted.shape)
