"""Runs of many prompts for the page, which shows their rows and explains a row on a click."""

import json
import re
from itertools import islice
from os.path import expanduser
from typing import Any

from jscope_tl.attribution.explain import HOOK_POINT, N
from jscope_tl.corpus.dataset import CorpusRun, open_run
from jscope_tl.corpus.row import Row
from jscope_tl.errors import InputError
from jscope_tl.explorer.requests import SETTINGS, checked, number, text
from jscope_tl.model.view import ModelView

SHOWN = 50
"""The number of rows on a page."""
WITHOUT = ("reduction", "path", "frozen")
"""Settings of a run for which the page has no field."""
ASIDE = (*WITHOUT, "target", "baseline", "gradient", "resolved")
"""Names in the options of a run that are not options of the scope, or that have their own fields."""
FIELDS = {
    "folder": (text, "the folder of a run"),
    "contains": (text, "a part of a prompt's text"),
    "target": (text, "the text of a token"),
    "first": (number, "a whole number"),
    "job": SETTINGS["job"],
}


def runs(model: Any, given: Any) -> dict[str, Any]:
    """Rows of a run, the settings for which the page has fields, and a note if the run has another model or other settings."""
    given = checked(given, FIELDS)
    if not given.get("folder", "").strip():
        raise InputError("folder is missing: give the folder of a run, which jscope corpus wrote.")
    try:
        run = open_run(expanduser(given["folder"].strip()))
    except OSError as error:  # the name is too long, or the folder may not be read
        raise InputError(
            f"The folder cannot be opened: {error.strerror}. Give the folder of a run, which jscope corpus wrote."
        ) from error
    if given.get("contains") or given.get("target"):
        run = run.where(contains=given.get("contains"), target=given.get("target"))
    first = max(0, given.get("first", 0))
    rows = [_row(row) for row in islice(run, first, first + SHOWN)]
    return {
        "rows": rows,
        "how": _how(run),
        "says": _says(run, model, first, len(rows)),
        "first": first,
        "shown": SHOWN,
        "more": first + len(rows) < len(run),
    }


def _row(row: Row) -> dict[str, Any]:
    best = row.top(1)
    return {
        "id": row.id,
        "position": row.position,
        "tokens": row.tokens.tolist(),
        "str_tokens": row.str_tokens,
        "target_str": row.target_str,
        "probability": row.probability,
        "top": best[0][0] if best else None,
        "score": best[0][2] if best else None,
        "error": row.error,
    }


def _says(run: CorpusRun, model: Any, first: int, n: int) -> str:
    name = ModelView(model).name
    other = (
        ""
        if run.model == name
        else f" The run is of {run.model}; a click explains the row with {name}, whose tokens may differ."
    )
    return (
        f"{run.headline()}; rows {first + 1} to {first + n}.{other}{_unlike(run)}"
        if n
        else f"{run.headline()}; no rows."
    )


def _how(run: CorpusRun) -> dict[str, Any]:
    """Scope, rules, options and layer of the run, by their names in the page."""
    told = run.settings
    options = {name: value for name, value in _options(run).items() if value is not None}
    baseline = options.get("baseline")
    return {
        **{name: told[name] for name in ("scope", "gradient") if isinstance(told.get(name), str)},
        "options": {name: json.dumps(value) for name, value in options.items() if name not in ASIDE},
        "baseline": baseline if isinstance(baseline, str) else "",
        "layer": _layer(told.get("at")) or 0,
    }


def _options(run: CorpusRun) -> dict[str, Any]:
    """The options of the run; empty if its settings are damaged."""
    options = run.settings.get("options")
    return options if isinstance(options, dict) else {}


def _layer(at: Any) -> int | None:
    """The place of a hook point on the page's slider; None if it is not on the slider."""
    if at in (None, "hook_embed", HOOK_POINT):
        return 0
    after = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", str(at))
    return int(after[1]) + 1 if after else None


def _unlike(run: CorpusRun) -> str:
    """A note about settings of the run that the page cannot apply."""
    options = _options(run)
    left = [f"{name} {options[name]!r}" for name in WITHOUT if options.get(name)]
    baseline = options.get("baseline")
    left += [] if baseline is None or isinstance(baseline, str) else [f"baseline {baseline!r}"]
    if run.settings.get("scope") == "explain":
        left += [f"n {options['n']}"] if options.get("n", N) != N else []
        left += ["alternatives, where a prompt had its own baseline"]
    left += [] if _layer(run.settings.get("at")) is not None else [f"at {run.settings.get('at')!r}"]
    return f" A click explains a row without the run's {', '.join(left)}." if left else ""
