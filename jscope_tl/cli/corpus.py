"""The command ``jscope corpus``: explain many prompts into Parquet files; the same command resumes the run."""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from jscope_tl.attribution.explain import need_defaults, need_options
from jscope_tl.cli import corpus_summary
from jscope_tl.cli.models import load
from jscope_tl.cli.options import EXPLAIN, Parser, of_a_scope, of_scores, scope_options, was_given
from jscope_tl.corpus.explaining import PART_ROWS, run_corpus
from jscope_tl.corpus.on_ray import Ray
from jscope_tl.corpus.prompts import read_prompts
from jscope_tl.corpus.shards import to_shard
from jscope_tl.errors import InputError
from jscope_tl.scopes.registry import get_scope

INTERRUPTED = 130
"""The exit code."""
TARGET = "the token to explain for prompts without a target of their own (default: the most probable token)"
ABOUT = """PROMPTS is a .txt file (one prompt per line), or .jsonl, .parquet or .csv
with a column prompt (or text), messages (a chat) or tokens (ids), and optional
columns id, target, baseline and position; all other columns are kept. The same
command resumes a run that was interrupted. jscope_tl.corpus.open, DuckDB,
pandas and polars read RUN.

jscope corpus summary RUN: summarise the scores of a run (see jscope corpus
summary --help)"""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(
        prog="jscope corpus",
        description="Explain thousands of prompts, and write one row for each to Parquet files in a\nfolder.",
        epilog=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[of_a_scope("temperature", TARGET, EXPLAIN), of_scores()],
    )
    p.add_argument("prompts", help="a file of prompts")
    p.add_argument(
        "--out", metavar="RUN", required=True, help="the folder to write; if it holds a run, the run is resumed"
    )
    p.add_argument("--column", help="the column of the prompts, if it has another name")
    p.add_argument(
        "--shard",
        metavar="I/N",
        help="explain only every N-th prompt, starting with prompt I (counted from 0); run one process for each I",
    )
    p.add_argument(
        "--batch-tokens", type=int, metavar="N", help="tokens in one batch (default: as many as fit into memory)"
    )
    p.add_argument("--part-rows", type=int, default=PART_ROWS, metavar="N",
                   help=f"rows in one file (default: {PART_ROWS}, or the rows of one minute)")  # fmt: skip
    _add_ray(p)
    p.add_argument("--quiet", action="store_true", help="show no progress bar")
    return p


def _add_ray(p: argparse.ArgumentParser) -> None:
    """The engine, and the options of a Ray cluster."""
    p.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="local (this process) or ray (a Ray cluster) (default: local)",
    )
    p.add_argument(
        "--address", help="address of the Ray cluster, or auto (default: the cluster on this machine, or a new one)"
    )
    p.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="worker processes on the Ray cluster (default: as many as its resources allow)",
    )
    p.add_argument("--num-gpus", type=float, default=0.0, metavar="N", help="GPUs of each Ray worker (default: 0)")
    p.add_argument("--num-cpus", type=float, default=1.0, metavar="N", help="CPUs of each Ray worker (default: 1)")


SAME_NAME = (
    "column",
    "shard",
    "position",
    "at",
    "reduction",
    "path",
    "gradient",
    "frozen",
    "batch_tokens",
    "part_rows",
)
"""Options with the name of a parameter of `run_corpus`."""


def run(argv: Sequence[str]) -> int:
    """Explain, write and print a summary line."""
    if [*argv[:1]] == ["summary"]:
        return corpus_summary.run(argv[1:])
    options = parser().parse_args(argv)
    scope, given = options.scope, scope_options(options)
    if scope == "explain":
        need_options(given)
        need_defaults(vars(options), "--{}")
    else:
        scope, given = get_scope(scope)(**given), {}
    to_shard(options.shard)  # checked before a model is loaded
    prompts = read_prompts(options.prompts, options.column)
    engine = _engine(options)
    device = "cuda" if options.num_gpus and not was_given(options, "device") else options.device
    model: Any = partial(load, options.model, device, options.dtype)
    model = model() if engine == "local" else model
    how: dict[str, Any] = {name: getattr(options, name) for name in SAME_NAME} | {"engine": engine}
    how["gradient"] = options.gradient if was_given(options, "gradient") else None
    try:
        with ended_as_interrupted():
            found = run_corpus(model, prompts, options.out, scope, **how, **given, progress=not options.quiet)
    except KeyboardInterrupt:
        print(f"jscope: interrupted; {_resumed(options.out)}", file=sys.stderr)
        return INTERRUPTED
    print(found.headline())
    return 0


def _engine(options: argparse.Namespace) -> str | Ray:
    """The engine that explains the prompts."""
    if options.engine == "ray":
        return Ray(options.address, options.workers, options.num_gpus, options.num_cpus)
    asked = [name for name in ("address", "workers", "num_gpus", "num_cpus") if was_given(options, name)]
    if asked:
        raise InputError(
            f"--{asked[0].replace('_', '-')} is an option of Ray clusters; add --engine ray, or leave it out."
        )
    return "local"


def _resumed(folder: str) -> str:
    if not Path(folder).is_dir():
        return "nothing was written"
    return f"the rows so far are in {folder}, and the same command resumes the run"


@contextmanager
def ended_as_interrupted() -> Iterator[None]:
    """SIGTERM, which schedulers send before they kill a process, acts as Ctrl-C: the rows so far are written first."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
