"""The command ``jscope``: one prompt, one scope, coloured tokens."""

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jscope_tl.attribution.attribute import attribute
from jscope_tl.attribution.influence import influence_pattern
from jscope_tl.cli.faithfulness import run
from jscope_tl.cli.models import load
from jscope_tl.cli.options import Parser
from jscope_tl.errors import InputError
from jscope_tl.model.loading import LoadingError
from jscope_tl.results.files import check_target, plain
from jscope_tl.scopes.registry import available_scopes, get_scope, scope_entry
from jscope_tl.views.report import report
from jscope_tl.views.terminal import show

EXIT = """exit codes: 0 done; 2 an option or an input cannot be used (one line on standard error says why);
3 the model could not be loaded; 130 interrupted

jscope faithfulness --prompts FILE: how faithful each method is (see jscope faithfulness --help)"""

LONGEST = 1000
"""Letters of a message, which may repeat what was given."""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(
        prog="jscope",
        description="Which tokens of a prompt drove a language model's next-token prediction, and how strongly.",
        epilog=EXIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("prompt", nargs="?", help="the prompt")
    p.add_argument("--scope", default="semantic", help="what to explain (default: semantic; see --list-scopes)")
    p.add_argument("--model", help="a HuggingFace name or a local folder (default: the pocket model of this package)")
    p.add_argument("--target", help="the next token to explain, a string (default: the most probable one)")
    p.add_argument("--baseline", help="the token that the target is held against (scope contrastive)")
    p.add_argument("--position", type=int, default=-1, help="whose next-token prediction to explain (default: -1)")
    p.add_argument("--at", default="hook_embed",
                   help="residual-stream hook point, or pattern: the entries of all attention patterns (default: hook_embed)")  # fmt: skip
    p.add_argument("--per", metavar="WHAT", help="with --at pattern: keep every layer, or every head, apart")
    p.add_argument("--option", "-o", action="append", default=[], metavar="NAME=VALUE",
                   help="a further option of the scope, such as -o method=exact -o rank=8")  # fmt: skip
    p.add_argument("--reduction", help="row_norm, dot (gradient x input) or elementwise (default: the scope's own)")
    p.add_argument("--path", help="point, line (integrated gradients) or noise (SmoothGrad) (default: point)")
    p.add_argument("--gradient", default="plain",
                   help="rules for gradients: plain, attnlrp, relp or gim (default: plain, the derivative itself)")  # fmt: skip
    p.add_argument("--frozen", action="append", default=[], metavar="WHAT",
                   help="hold attention patterns (attn) or normalisation scales (norm) constant; may be given twice")  # fmt: skip
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (default: cpu)")
    p.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or float64 (default: float32)")
    p.add_argument("--top", type=int, default=8, help="how many tokens to list (default: 8)")
    p.add_argument("--html", metavar="FILE", help="write a report: one self-contained page")
    p.add_argument("--attention", action="store_true",
                   help="with --html: also lay the scope of every position beside the attention patterns")  # fmt: skip
    p.add_argument("--save", metavar="FILE", help="write the result as safetensors")
    p.add_argument("--json", action="store_true", help="print JSON instead of text")
    p.add_argument("--list-scopes", action="store_true", help="print the scopes and their options")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["faithfulness"]:
        command = partial(run, given[1:])
    else:
        command = partial(_one_prompt, parser().parse_args(given))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character gets its code, not a traceback
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _run(command)


def _run(command: Callable[[], int]) -> int:
    try:
        code = command()
        sys.stdout.flush()
        return code
    except InputError as error:
        return _fail(error, 2)
    except LoadingError as error:
        return _fail(error, 3)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read has read enough; nothing more can be said on this stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a file that cannot be written
        return _fail(error, 2)


def _fail(error: Exception | str, code: int) -> int:
    line = " ".join(str(error).split())
    line = line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    print(f"jscope: {line}", file=sys.stderr)
    return code


def _one_prompt(options: argparse.Namespace) -> int:
    return _list_scopes() if options.list_scopes else _explain(options)


def _list_scopes() -> int:
    table = Table("scope", "options", "what it explains", box=None, pad_edge=False, header_style="bold")
    for name in available_scopes():
        entry = scope_entry(name)
        table.add_row(*(Text(cell) for cell in (name, ", ".join(entry.options), entry.summary)))
    Console().print(table)
    return 0


def _explain(options: argparse.Namespace) -> int:
    if options.prompt is None or not options.prompt.strip():
        given = "give a prompt" if options.prompt is None else "the prompt is empty; give one"
        raise InputError(f'{given}, as in: jscope "the keys to the cabinet near the doors" (or jscope --help).')
    if options.top < 1:
        raise InputError(f"--top is how many tokens to list, 1 or more; got {options.top}.")
    if options.attention and options.html is None:
        raise InputError("--attention goes into the page that --html FILE writes; give both.")
    scope = get_scope(options.scope)(**_scope_options(options))
    paths = [check_target(path).resolve() for path in (options.html, options.save) if path is not None]
    if len({*paths}) < len(paths):
        raise InputError(f"--html and --save would write the same file, {options.save!r}; give two.")
    model = load(options.model, options.device, options.dtype)
    result = attribute(model, options.prompt, scope, position=options.position, per=options.per, **_how(options))
    # Files before the text: whoever reads the text may close the pipe.
    if options.html is not None:
        _write_report(model, result, scope, options)
    if options.save is not None:
        result.save(options.save)
    if options.json:
        print(_json(result))
    else:
        show(result, k=options.top)
    return 0


def _write_report(model: Any, result: Any, scope: Any, options: argparse.Namespace) -> None:
    if not options.attention:
        report(result, options.html)
        return
    _, cache = model.run_with_cache(result.tokens, names_filter=lambda name: name.endswith("attn.hook_pattern"))
    pattern = influence_pattern(model, result.tokens, scope, **_how(options))
    report([result, pattern], options.html, cache)


def _how(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that one position and all of them are explained with."""
    return {name: getattr(options, name) for name in ("at", "reduction", "path", "gradient", "frozen")}


def _json(result: Any) -> str:
    all_letters = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(plain(result), ensure_ascii=not all_letters, indent=1, default=repr)


def _scope_options(options: argparse.Namespace) -> dict[str, Any]:
    """``--target``, ``--baseline`` and every ``--option NAME=VALUE``; numbers become numbers."""

    given: dict[str, Any] = {k: v for k in ("target", "baseline") if (v := getattr(options, k)) is not None}
    for item in options.option:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise InputError(f"--option takes NAME=VALUE, not {item!r}.")
        if name in given:
            raise InputError(f"{name} is given twice.")
        try:
            given[name] = json.loads(value)
        except (ValueError, RecursionError):  # no JSON, or more of it than can be read
            given[name] = value
    return given
