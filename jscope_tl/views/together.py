"""Checks of which results can share a picture (one prompt) and a scale (one unit), and names for them."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch

from jscope_tl.errors import InputError
from jscope_tl.model.chats import TEMPLATE
from jscope_tl.model.pieces import text_of
from jscope_tl.results.attribution import MOST_ROWS, Attribution
from jscope_tl.results.base import Result as AnyResult
from jscope_tl.results.pattern import InfluencePattern
from jscope_tl.results.text import visible
from jscope_tl.results.text_attribution import TextAttribution

Result = Attribution | InfluencePattern


def as_list(results: Any, kinds: tuple[type, ...] = (Attribution,)) -> list[Any]:
    """A list from one result or several; anything else is refused."""
    given = [results] if isinstance(results, kinds) else results
    names = " or ".join(kind.__name__ for kind in kinds)
    if isinstance(given, str | bytes | dict) or not isinstance(given, Sequence) or not given:
        raise InputError(f"This view takes one {names} or a list of them; got {_named(results)}.")
    for item in given:
        if not isinstance(item, kinds):
            raise InputError(f"This view takes one {names} or a list of them; the list has {_named(item)}.")
    return list(given)


def _named(thing: Any) -> str:
    return repr(thing) if isinstance(thing, str | int | float | list | None) else f"a {type(thing).__name__}"


def legible(result: Any) -> tuple[Any, list[str]]:
    """A map of many heads reduced to the strongest ones, with a note; other results are returned unchanged."""
    n = len(result.hook_points) if isinstance(result, Attribution) and result.of_heads else 0
    if n <= MOST_ROWS:
        return result, []
    return result.strongest(MOST_ROWS), [f"the {MOST_ROWS} strongest of {n} heads"]


def need_one_prompt(results: Sequence[AnyResult]) -> None:
    """Refuse results of different prompts, whose positions have different tokens."""
    for other in results[1:]:
        if not torch.equal(other.tokens, results[0].tokens):
            raise InputError(
                f"These results are of different prompts ({_start(results[0])} and {_start(other)}), which one picture "
                "cannot show. Draw one picture for each prompt; js.report takes several prompts."
            )


def need_no_map(results: Sequence[AnyResult]) -> None:
    """Refuse layer maps, for a view that shows one row of scores."""
    for result in results:
        if isinstance(result, Attribution) and result.hook_points:
            raise InputError(
                f"This view shows one score for each token, and this result is a layer map of {len(result.hook_points)} hook "
                "points. Use one of them, such as result.layer(0), or draw the map with js.views.heatmap."
            )


def need_one_unit(results: Sequence[AnyResult]) -> None:
    """Refuse results of different units, whose numbers are not comparable."""
    units = list(dict.fromkeys(result.unit for result in results))
    if len(units) > 1:
        raise InputError(
            f"These results are in different units ({'; '.join(units)}), which one scale cannot show. Draw one picture for "
            "each unit; js.report puts them on one page."
        )


def to_labels(labels: Any, results: Sequence[Result]) -> list[str]:
    """One name for each result: by default its scope, with further settings that differ if several have the same scope."""
    if labels is None:
        names = [result.scope for result in results]
        detailed = [f"{name} ({', '.join(facts)})" if facts else name
                    for name, facts in zip(names, _facts_that_differ(results), strict=True)]  # fmt: skip
        return [longer if names.count(name) > 1 else name for name, longer in zip(names, detailed, strict=True)]
    given = list(labels) if isinstance(labels, Iterable) and not isinstance(labels, str) else []
    if len(given) != len(results):
        raise InputError(f"labels are one name for each of the {len(results)} results; got {labels!r}.")
    return [str(label) for label in given]


def what_differs(results: Sequence[Result]) -> list[str]:
    """A name for each result from its hook point, position, target and baseline, as far as these differ; numbers if none of them does."""
    names = [", ".join(facts) for facts in _facts_that_differ(results)]
    if not all(names):
        names = [result.provenance.hook_point for result in results]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def _facts_that_differ(results: Sequence[Result]) -> list[list[str]]:
    facts = [[result.provenance.hook_point, _positions(result), _target(result)] for result in results]
    kept = [i for i in range(3) if len({fact[i] for fact in facts}) > 1]
    return [[fact[i] for i in kept if fact[i]] for fact in facts]


def _positions(result: Result) -> str:
    positions = result.positions if isinstance(result, InfluencePattern) else (result.position,)
    return f"position {positions[0]}" if len(positions) == 1 else f"{len(positions)} positions"


def _target(result: Result) -> str:
    """The target, even if the scope explains no single token, because results always name it."""
    if result.asked:
        return visible(result.asked.removeprefix(", "))
    return "" if isinstance(result, InfluencePattern) else f"target {visible(result.prediction.target.str_token)!r}"


def unique(names: list[str]) -> list[str]:
    """Unique names: names that occur several times are numbered."""
    return [name if names.count(name) == 1 else f"{name} {names[: i + 1].count(name)}" for i, name in enumerate(names)]


def prompt_text(result: Any, most: int) -> str:
    """The beginning of the prompt without BOS; for a `TextAttribution` also without the answer and the text of the chat template."""
    kept = [i for i in range(len(result.str_tokens)) if i not in result.bos_positions]
    parts = [kept]
    if isinstance(result, TextAttribution):
        own = [i for i in kept if i < result.text.n_prompt and result.text.roles[i] != TEMPLATE]
        parts = [list(message) for _, message in groupby(own, lambda i: result.text.messages[i])]
    text = " ".join(text_of([result.str_tokens[i] for i in part]).strip() for part in parts)
    return visible(text if len(text) <= most else f"{text[:most]}...")


def _start(result: AnyResult) -> str:
    return f"{len(result.tokens)} tokens, {prompt_text(result, 40)!r}"
