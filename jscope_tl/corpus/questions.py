"""From a line of prompts to the arguments of an explanation, and from its result to a row."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from math import isfinite
from typing import Any

from jscope_tl.attribution.batch import Numbered
from jscope_tl.attribution.describe import of_prompt
from jscope_tl.attribution.explain import NOT_TAKEN, cause_setup, need_defaults
from jscope_tl.attribution.setup import Setup, set_up
from jscope_tl.attribution.span import several_tokens
from jscope_tl.corpus.prompts import Line
from jscope_tl.corpus.schema import ROW
from jscope_tl.errors import InputError
from jscope_tl.model.chats import is_chat
from jscope_tl.model.prompts import to_position
from jscope_tl.model.text import tokenized
from jscope_tl.results.attribution import Attribution
from jscope_tl.scopes.base import FunctionScope, Scope


@dataclass(frozen=True)
class Question:
    """The settings of a run, with which every line is explained unless it has its own.

    Attributes:
        setup: the scope and its settings.
        position: the position whose next-token prediction is explained.
        prepend_bos, template: how texts and chats are converted to ids.
    """

    setup: Setup
    position: int
    prepend_bos: bool | None = None
    template: str | None = None

    def of(self, line: Line) -> Numbered:
        """The line as ids, with the scope for its target.

        Raises:
            InputError: the line cannot be explained.
        """
        if line.error is not None:
            raise InputError(line.error)
        view = self.setup.view
        if is_chat(line.prompt):
            tokens = tokenized(view, line.prompt, template=self.template).tokens
        else:
            tokens, _ = self.setup.prompt(line.prompt, self.prepend_bos if isinstance(line.prompt, str) else None, -1)
        position = to_position(self.position if line.position is None else line.position, len(tokens))
        given = asked_of(self.setup.scope, line)
        setup = replace(self.setup, scope=with_options(self.setup.scope, given)) if given else self.setup
        return Numbered(line.n, line.prompt, tokens, position, setup)


@dataclass(frozen=True)
class Asked:
    """The settings of a run without a model: a scope, its options, and the keywords of `set_up`. It can be sent to other processes."""

    scope: Any
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    position: Any
    prepend_bos: Any
    template: str | None

    def of(self, model: Any) -> Question:
        """The settings with a model. Settings that would fail for every prompt are refused.

        Raises:
            InputError: the settings cannot be used with this model.
        """
        setup = self._setup(model)
        several_tokens(setup)  # raises an error if the target is not a token
        to_position(self.position, setup.view.n_ctx)
        if self.prepend_bos not in (None, True, False):
            raise InputError(f"prepend_bos is True, False or None (the model's default); got {self.prepend_bos!r}.")
        if not isinstance(setup.at, str) or (setup.entries is None and [setup.at] != list(setup.settings.at)):
            raise InputError(
                f"A row has one score for each token, but at={setup.at!r} gives a layer map. Give one hook point, or use js.attribute_batch "
                "for layer maps."
            )
        return Question(setup, self.position, self.prepend_bos, self.template)

    def _setup(self, model: Any) -> Setup:
        given = {name: value for name, value in self.settings.items() if name != "gradient" or value is not None}
        if self.scope != "explain":
            return set_up(model, self.scope, dict(self.options), **given, per=None, progress=False)
        need_defaults(given)
        how = {name: value for name, value in given.items() if name not in NOT_TAKEN}
        return cause_setup(model, self.options, **how, progress=False)


def asked_of(scope: Scope, line: Line) -> dict[str, Any]:
    """The target and baseline of a line, if the scope has these options; ``"temperature"``, for example, has no target."""
    given = {key: value for key in ("target", "baseline") if (value := getattr(line, key)) is not None}
    return {key: value for key, value in given.items() if key in options_of(scope)}


def options_of(scope: Scope) -> set[str]:
    """The names of a scope's options."""
    if isinstance(scope, FunctionScope):
        return set(scope.options)
    return {f.name for f in fields(scope)} if is_dataclass(scope) else set()


def with_options(scope: Any, given: Mapping[str, Any]) -> Scope:
    """The same scope with other options."""
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return replace(scope, given={**scope.given, **own}) if isinstance(scope, FunctionScope) else replace(scope, **own)


def explained(line: Line, result: Attribution, scope: Scope) -> dict[str, Any]:
    """The row of a result."""
    result, target = of_prompt(result, line.prompt), result.prediction.target
    return {
        "id": line.id,
        "position": result.position,
        "tokens": result.tokens.tolist(),
        "str_tokens": result.str_tokens,
        "scores": result.scores.numpy(),
        "stderr": None if result.stderr is None else result.stderr.numpy(),
        "off_scale": list(result.off_scale),
        "target": target.token,
        "target_str": target.str_token,
        "probability": target.probability,
        "rank": result.prediction.target_rank - 1,
        "entropy": result.prediction.entropy,
        "n_forward": result.provenance.n_forward,
        "n_backward": result.provenance.n_backward,
        "warnings": result.warnings,
        "error": None,
        "carried": carried(line, scope),
    }


def failed(line: Line, error: str, scope: Scope) -> dict[str, Any]:
    """The row of a prompt that could not be explained."""
    return {**dict.fromkeys(ROW.names), "id": line.id, "error": error, "carried": carried(line, scope)}


def carried(line: Line, scope: Scope) -> str | None:
    """The values of the line that were not used, as JSON."""
    unasked = {key: value for key in ("target", "baseline") if (value := getattr(line, key)) is not None}
    left = {key: value for key, value in unasked.items() if key not in options_of(scope)} | {**(line.carried or {})}
    return json.dumps(_strict(left), ensure_ascii=False, default=lambda value: repr(value)[:200]) if left else None


def _strict(value: Any) -> Any:
    """Values with null in place of infinity and NaN, which are not valid JSON."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value
