"""The command ``jscope faithfulness``: a table of methods with measures of their faithfulness."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from jscope_tl.cli.measuring import measured
from jscope_tl.cli.models import load
from jscope_tl.cli.options import Parser
from jscope_tl.errors import InputError
from jscope_tl.faithfulness.evaluation import prepared
from jscope_tl.faithfulness.measures import MEASURES
from jscope_tl.faithfulness.methods import resolve_methods
from jscope_tl.faithfulness.protocol import resolve_protocol
from jscope_tl.faithfulness.results import Faithfulness, Mean
from jscope_tl.pocket import pocket_prompts, pocket_tasks
from jscope_tl.views.methods import faithfulness

WIDTH = 170
INTERRUPTED = 130
"""The exit code."""
PROMPTS = """FILE has one prompt per line, whose last token is the target; or one JSON object per line with "prompt" and optional
"target", "causes" (positions) and "task"."""
ONE_A_LINE = """Give one prompt per line, or one JSON object per line, as in {"prompt": "..."}."""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(
        prog="jscope faithfulness",
        description="Measure the faithfulness of every method: hits on known causes, rank correlation with leave-one-out, ablation of the top tokens.",
        epilog=PROMPTS,
    )
    p.add_argument("--prompts", metavar="FILE", help="prompts to measure on (default: the pocket model's own)")
    p.add_argument(
        "--n",
        type=int,
        help="number of pocket prompts for each task (default: 50), or the largest number of prompts from FILE",
    )
    p.add_argument("--methods", nargs="+", metavar="NAME", help="the methods to measure (default: all)")
    p.add_argument("--model", help="a HuggingFace name or a local folder (default: the pocket model of this package)")
    p.add_argument(
        "--protocol",
        default="corrected",
        help="corrected, or authors: the conventions of the paper's tables (default: corrected)",
    )
    p.add_argument("--ablation", help="what replaces a token's embedding: zero, mean or pad (default: zero)")
    p.add_argument("--correct-only", action="store_true", help="only prompts whose target is the most probable token")
    p.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    p.add_argument("--json", action="store_true", help="print the numbers of every prompt as JSON")
    p.add_argument("--csv", metavar="FOLDER", help="write one CSV file for each measure")
    p.add_argument("--figure", metavar="FOLDER", help="write one figure for each measure")
    p.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    p.add_argument("--dtype", default="float32", help="float32, bfloat16, ... (default: float32)")
    return p


def run(argv: Sequence[str]) -> int:
    """Measure and print."""

    options = parser().parse_args(argv)
    changes = {} if options.ablation is None else {"ablation": options.ablation}
    protocol = resolve_protocol(options.protocol, changes)
    resolve_methods(options.methods)  # checked before a model is loaded
    prompts, measures = _prompts(options)
    for folder in (options.csv, options.figure):
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
    model = load(options.model, options.device, options.dtype)
    found, all_of_it = measured(prepared(model, prompts, options.methods, measures, protocol, {}))
    if not found:
        return INTERRUPTED
    for name, result in found.items():
        if options.csv is not None:
            result.to_dataframe().to_csv(Path(options.csv) / f"{name}.csv", index=False)
        if options.figure is not None:
            faithfulness(result).savefig(Path(options.figure) / f"{name}.png", dpi=120)
    _print(found, options)
    return 0 if all_of_it else INTERRUPTED


def _prompts(options: argparse.Namespace) -> tuple[list[Any], tuple[str, ...]]:
    """Prompts, and what can be measured on them."""

    if options.n is not None and options.n < 1:
        raise InputError(f"--n is how many prompts to take, 1 or more; got {options.n}.")
    if options.prompts is None:
        tasks = [task for task in pocket_tasks() if task != "series"]  # whose causes are not known
        prompts: list[Any] = [prompt for task in tasks for prompt in pocket_prompts(task, options.n or 50)]
        return prompts, tuple(name for name, measure in MEASURES.items() if not measure.needs_swaps)
    prompts = read_prompts(options.prompts)[: options.n]
    causes = any(isinstance(prompt, dict) and prompt.get("causes") for prompt in prompts)
    return prompts, tuple(
        name for name, measure in MEASURES.items() if not measure.needs_swaps and (causes or not measure.needs_cause)
    )


def read_prompts(path: str) -> list[Any]:
    """Prompts from a file of lines or of JSON objects.

    Raises:
        InputError: there is no such file, it is no text, it is empty, or a line is broken JSON.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The prompts {path!r} cannot be read: {error}.") from error
    if next((line.strip() for line in lines if line.strip()), "") == "[":
        raise InputError(f"{path!r} holds a JSON array over several lines. {ONE_A_LINE}")
    prompts = [_line(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise InputError(f"There are no prompts in {path!r}; give one a line.")
    return prompts


def _line(path: str, n: int, line: str) -> Any:
    is_object = line.lstrip().startswith("{")
    try:
        found = json.loads(line) if is_object or line.lstrip().startswith("[") else line
    except (ValueError, RecursionError) as error:
        if not is_object:  # text may begin with a bracket
            return line
        raise InputError(f"Line {n} of {path!r} begins as JSON but is none: {error}.") from error
    if isinstance(found, list):
        raise InputError(f"Line {n} of {path!r} is a JSON array. {ONE_A_LINE}")
    return found


def _print(found: dict[str, Faithfulness], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({name: result.rows for name, result in found.items()}, indent=1))
        return
    frame, n = table(found, options.correct_only)
    if options.markdown:
        print("| method | " + " | ".join(frame.columns) + " |\n|" + "---|" * (1 + len(frame.columns)))
        for method, row in frame.iterrows():
            print(f"| `{method}` | " + " | ".join(row) + " |")
        return
    drawn = Table("method", *frame.columns, box=None, pad_edge=False, header_style="bold")
    for method, row in frame.iterrows():
        drawn.add_row(str(method), *row)
    console = Console()
    console.width = max(console.width, WIDTH)  # a wrapped line is easier to read than numbers that are cut
    console.print(drawn)
    print(
        f"{n} prompts; means, in brackets 95 % of a bootstrap over prompts. Unless a column says otherwise, more is better."
    )


def table(found: dict[str, Faithfulness], correct_only: bool = False) -> tuple[pd.DataFrame, int]:
    """Every method's number of each measure (where causes are known also by task) and its cost, as text; and the number of prompts."""

    columns: dict[str, dict[str, str]] = {}
    for name, result in found.items():
        measure = MEASURES[name]
        tasks = list(dict.fromkeys(row["task"] for row in result.rows)) if measure.needs_cause else []
        for task in tasks if len(tasks) > 1 else []:
            columns[task] = {
                m: f"{result.mean(m, measure.quoted, correct_only, task).mean:.0%}" for m in result.methods
            }
        columns[measure.title] = {
            m: _with_interval(result.mean(m, measure.quoted, correct_only)) for m in result.methods
        }
    last = list(found.values())[-1]
    columns["passes"] = {m: f"{last.mean(m, 'passes', correct_only).mean:.0f}" for m in last.methods}
    return pd.DataFrame(columns), last.mean(last.methods[0], None, correct_only).n


def _with_interval(m: Mean) -> str:
    digits = 1 if abs(m.mean) >= 5 else 2
    return f"{m.mean:.{digits}f} [{m.low:.{digits}f}, {m.high:.{digits}f}]"
