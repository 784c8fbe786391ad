"""Measure methods in order of their cost, so that an interruption keeps complete results of the cheaper ones."""

import sys
import time
from collections.abc import Sequence
from statistics import median_low

from jscope_tl.engine.progress import progress_bar
from jscope_tl.faithfulness.evaluation import Evaluation, Rows
from jscope_tl.faithfulness.results import Faithfulness

EXPENSIVE = 5.0
"""A method that takes more than this times the median method is expensive."""
LONG = 10.0
"""If all expensive methods together take more seconds than this, their times are announced."""


def measured(evaluation: Evaluation) -> tuple[dict[str, Faithfulness], bool]:
    """The results of the methods that are complete, and whether these are all methods: Ctrl-C ends the measurement.

    The first prompt is measured with all methods, to see how long each takes; then the other prompts with all cheap methods
    together, then with each expensive method separately.
    """
    rows: list[Rows] = []
    stages: list[list[str]] = []
    complete: list[str] = []
    left = range(1, len(evaluation.cases))
    try:
        start = time.perf_counter()
        first = evaluation.rows(0, evaluation.methods)
        rows, stages = [first], _stages(first, list(evaluation.methods), time.perf_counter() - start, len(left))
        for stage in stages:
            for n in progress_bar(None, "prompts" if len(stage) > 1 else stage[0], "prompt", left):
                rows.append(evaluation.rows(n, stage))
            complete += stage
    except KeyboardInterrupt:
        _say(_missing(evaluation, rows, stages, complete))
        # In the first stage the prompts are complete that all its methods were measured on.
        return evaluation.results(rows, _in_order(evaluation, complete or (stages[0] if stages else []))), False
    return evaluation.results(rows, evaluation.methods), True


def _stages(first: Rows, methods: list[str], wall: float, n_left: int) -> list[list[str]]:
    """All cheap methods as one stage, then each expensive method, the most expensive last; announced if they take long."""
    seconds = {method: _seconds(first, method) for method in methods}
    limit = EXPENSIVE * median_low(seconds.values())
    expensive = sorted((method for method in methods if seconds[method] > limit), key=seconds.__getitem__)
    times = {method: n_left * seconds[method] for method in expensive}
    if sum(times.values()) < LONG:
        return [methods]
    cheap = [method for method in methods if method not in expensive]
    rest = n_left * max(0.0, wall - sum(seconds[method] for method in expensive))
    said = ", ".join(f"{method} about {_duration(time)}" for method, time in times.items())
    _say(
        f"{len(cheap)} methods on {n_left} more prompts take about {_duration(rest)}; then {said}. "
        "Ctrl-C ends it and keeps what is complete."
    )
    return [cheap, *([method] for method in expensive)]


def _seconds(first: Rows, method: str) -> float:
    """Measures that explain the same token share an explanation, and its time."""
    return sum({row["seconds"] for rows in first.values() for row in rows if row["method"] == method})


def _missing(evaluation: Evaluation, rows: list[Rows], stages: list[list[str]], complete: list[str]) -> str:
    n, missing = len(evaluation.cases), [method for method in evaluation.methods if method not in complete]
    if not rows:
        return "interrupted in the first prompt; nothing is complete."
    done = len(rows) - sum(n - 1 for stage in stages if stage[0] in complete)
    stage = next(stage for stage in stages if stage[0] not in complete)
    where = f"{', '.join(stage)} had {done} of {n} prompts" if complete else f"{done} of {n} prompts are complete"
    lacking = [method for method in missing if complete or method not in stage]
    return f"interrupted: {where}" + (f"; missing: {', '.join(lacking)}." if lacking else ".")


def _in_order(evaluation: Evaluation, methods: Sequence[str]) -> list[str]:
    return [method for method in evaluation.methods if method in methods]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(text: str) -> None:
    print(f"jscope: {text}", file=sys.stderr, flush=True)
