"""The command ``jscope app``: the explorer in a browser."""

import argparse
from collections.abc import Sequence

from jscope_tl.cli.models import load
from jscope_tl.cli.options import Parser
from jscope_tl.errors import InputError
from jscope_tl.explorer.launch import serve


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(
        prog="jscope app",
        description="Explore a model in the browser: type a prompt, see the score of every token, remove tokens and heads.",
    )
    p.add_argument("--model", help="a HuggingFace name or a local folder (default: the pocket model of this package)")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (default: cpu)")
    p.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or float64 (default: float32)")
    p.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, only this machine)")
    p.add_argument("--port", type=int, default=8765, help="port, 0 for any free port (default: 8765)")
    p.add_argument("--no-open", action="store_true", help="do not open a browser window")
    return p


def run(argv: Sequence[str]) -> int:
    """Load the model and serve until interrupted."""
    options = parser().parse_args(argv)
    if not 0 <= options.port < 2**16:
        raise InputError(f"--port is a number from 0 to 65535; got {options.port}.")
    serve(load(options.model, options.device, options.dtype), options.host, options.port, not options.no_open)
    return 0
