"""The command ``jscope corpus``: many prompts explained, into the files of a folder; resumed by the same command."""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from jscope_tl.cli import corpus_summary
from jscope_tl.cli.models import load
from jscope_tl.cli.options import Parser, scope_options, was_given
from jscope_tl.corpus.explaining import PART_ROWS, run_corpus
from jscope_tl.corpus.on_ray import Ray
from jscope_tl.corpus.prompts import read_prompts
from jscope_tl.corpus.shards import to_shard
from jscope_tl.errors import InputError
from jscope_tl.scopes.registry import get_scope

INTERRUPTED = 130
"""The exit code."""
ABOUT = """PROMPTS is .txt (one prompt a line), .jsonl, .parquet or .csv with a column prompt (or text), messages (a chat) or tokens (ids), and
where they are known id, target, baseline and position; all other columns are carried along. The same command again goes on where the
run ended; RUN is read by jscope_tl.corpus.open, DuckDB, pandas or polars.

jscope corpus summary RUN: where the influence lies in the prompts of a run (see jscope corpus summary --help)"""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(
        prog="jscope corpus",
        description="Explain thousands of prompts: one row each, in the Parquet files of a folder.",
        epilog=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("prompts", help="a file of prompts")
    p.add_argument("--out", metavar="RUN", required=True, help="the folder to write; a run that is there is resumed")
    p.add_argument("--column", help="the column that holds the prompts, where it has another name")
    p.add_argument(
        "--shard",
        metavar="I/N",
        help="only every N-th prompt from the I-th on, counted from 0, by a process of its own",
    )
    p.add_argument(
        "--scope", default="temperature", help="what to explain (default: temperature; see jscope --list-scopes)"
    )
    p.add_argument("--model", help="a HuggingFace name or a local folder (default: the pocket model of this package)")
    p.add_argument("--target", help="the token to explain where a prompt names none (default: the most probable one)")
    p.add_argument("--baseline", help="the token that the target is held against (scope contrastive)")
    p.add_argument("--position", type=int, default=-1, help="whose next-token prediction to explain (default: -1)")
    p.add_argument("--option", "-o", action="append", default=[], metavar="NAME=VALUE", help="a further option of the scope")  # fmt: skip
    p.add_argument("--at", default="hook_embed",
                   help="residual-stream hook point, or pattern: the entries of all attention patterns (default: hook_embed)")  # fmt: skip
    p.add_argument("--reduction", help="row_norm, dot (gradient x input) or elementwise (default: the scope's own)")
    p.add_argument("--path", help="point, line (integrated gradients) or noise (SmoothGrad) (default: point)")
    p.add_argument("--gradient", default="plain", help="rules for gradients: plain, attnlrp, relp or gim (default: plain)")  # fmt: skip
    p.add_argument("--frozen", action="append", default=[], metavar="WHAT", help="hold attn or norm constant")
    p.add_argument("--batch-tokens", type=int, metavar="N", help="tokens in one pass (default: what fits into memory)")
    p.add_argument("--part-rows", type=int, default=PART_ROWS, metavar="N",
                   help=f"rows of a part, which is written as a whole (default: {PART_ROWS}, or those of a minute)")  # fmt: skip
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (default: cpu)")
    p.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or float64 (default: float32)")
    p.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="this process, or a Ray cluster (default: local)"
    )
    p.add_argument("--address", help="of the cluster, or auto (default: this machine's, or a new one on it)")
    p.add_argument(
        "--workers", type=int, metavar="N", help="processes of the cluster (default: as many as it has room for)"
    )
    p.add_argument("--num-gpus", type=float, default=0.0, metavar="N", help="of each worker (default: 0)")
    p.add_argument("--num-cpus", type=float, default=1.0, metavar="N", help="of each worker (default: 1)")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    return p


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
"""Options that are arguments of `run_corpus`."""


def run(argv: Sequence[str]) -> int:
    """Explain, write, and say what there is."""
    if [*argv[:1]] == ["summary"]:
        return corpus_summary.run(argv[1:])
    options = parser().parse_args(argv)
    scope = get_scope(options.scope)(**scope_options(options))
    to_shard(options.shard)  # refused before a model is loaded
    prompts = read_prompts(options.prompts, options.column)
    engine = _engine(options)
    device = "cuda" if options.num_gpus and not was_given(options, "device") else options.device
    model: Any = partial(load, options.model, device, options.dtype)
    model = model() if engine == "local" else model
    how: dict[str, Any] = {name: getattr(options, name) for name in SAME_NAME} | {"engine": engine}
    try:
        with ended_as_interrupted():
            found = run_corpus(model, prompts, options.out, scope, **how, progress=not options.quiet)
    except KeyboardInterrupt:
        print(f"jscope: interrupted; {_resumed(options.out)}", file=sys.stderr)
        return INTERRUPTED
    print(found.headline())
    return 0


def _engine(options: argparse.Namespace) -> str | Ray:
    """Where prompts are explained."""
    if options.engine == "ray":
        return Ray(options.address, options.workers, options.num_gpus, options.num_cpus)
    asked = [name for name in ("address", "workers", "num_gpus", "num_cpus") if was_given(options, name)]
    if asked:
        raise InputError(f"--{asked[0].replace('_', '-')} is of a Ray cluster; add --engine ray, or leave it out.")
    return "local"


def _resumed(folder: str) -> str:
    if not Path(folder).is_dir():
        return "nothing was written"
    return f"what was explained is in {folder}, and the same command goes on after it"


@contextmanager
def ended_as_interrupted() -> Iterator[None]:
    """A request to end, as of a scheduler or a machine that is taken away, lets the part in work be written."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # no main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
