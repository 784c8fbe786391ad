"""The command ``jscope``: one prompt, one scope, coloured tokens."""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jscope_tl.attribution.attribute import attribute
from jscope_tl.attribution.explain import explain, need_defaults, need_options
from jscope_tl.attribution.influence import influence_pattern
from jscope_tl.cli import app, corpus, faithfulness, guide, heads, text
from jscope_tl.cli.models import load
from jscope_tl.cli.options import Parser, as_json, need_usable, of_one_prompt, of_scores, scope_options, was_given
from jscope_tl.errors import InputError
from jscope_tl.explorer.report import report
from jscope_tl.model.loading import LoadingError
from jscope_tl.scopes.registry import available_scopes, get_scope, scope_entry
from jscope_tl.views.terminal import show

EXIT = """further commands, each with --help:
  jscope app                         the explorer in the browser
  jscope corpus PROMPTS --out RUN    explain thousands of prompts
  jscope heads PROMPT                effects of heads, edges of attention
                                     patterns, MLPs or neurons
  jscope faithfulness                the faithfulness of every method
  jscope guide [TOPIC]               print a page of the guide

exit codes: 0 done; 2 an option or an input cannot be used (one line on
standard error says why); 3 the model could not be loaded; 130 interrupted"""

LIKE = 0.78
"""The similarity from which a prompt is taken for a mistyped command."""
LONGEST = 1000
"""Longest message in characters; a message may quote the input."""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(
        prog="jscope",
        description="Score every token of a prompt: how strongly a language model's\nnext-token prediction depends on it.",
        epilog=EXIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[of_one_prompt("semantic", "tokens"), of_scores(", resid_pre (all layers)")],
    )
    p.add_argument("--per", metavar="WHAT", help="with --at pattern: layer or head, to keep layers or heads apart")
    p.add_argument("--attention", action="store_true",
                   help="with --html: also show the scores for every position beside the attention patterns")  # fmt: skip
    p.add_argument("--list-scopes", action="store_true", help="print the scopes and their options")
    text.add_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    commands = {"app": app, "corpus": corpus, "faithfulness": faithfulness, "guide": guide, "heads": heads}
    if given[:1] == ["explain"] and len(given) > 1:
        return _fail(
            'there is no command explain; use --scope explain, as in: jscope "the keys to the cabinet" --scope explain',
            2,
        )
    if near := given and given[0] not in commands and get_close_matches(given[0], commands, n=1, cutoff=LIKE):
        print(f"jscope: {given[0]!r} is a prompt, not a command. Did you mean {near[0]!r}?", file=sys.stderr)
    if given and given[0] in commands:
        command = partial(commands[given[0]].run, given[1:])
    else:
        command = partial(_one_prompt, parser().parse_args(given))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an escape sequence for what the terminal cannot print
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
    except BrokenPipeError:  # the reader closed the pipe: nothing more can be written to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # such as a file that cannot be written
        return _fail(error, 2)


def _fail(error: Exception | str, code: int) -> int:
    line = " ".join(str(error).split())
    line = line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    print(f"jscope: {line}", file=sys.stderr)
    return code


def _one_prompt(options: argparse.Namespace) -> int:
    if options.list_scopes:
        return _list_scopes()
    return text.explain(options) if text.is_asked(options) else _explain(options)


def _list_scopes() -> int:
    table = Table("scope", "options", "what it explains", box=None, pad_edge=False, header_style="bold")
    for name in available_scopes():
        entry = scope_entry(name)
        table.add_row(*(Text(cell) for cell in (name, ", ".join(entry.options), entry.summary)))
    table.add_row(
        "explain",
        "target, baseline, n",
        "Which tokens caused the prediction: gradient x attention under AttnLRP's rules (js.explain).",
    )
    Console().print(table)
    return 0


def _explain(options: argparse.Namespace) -> int:
    need_usable(options, "jscope")
    if options.attention and options.html is None:
        raise InputError("--attention goes into the page that --html FILE writes; give both.")
    if options.scope == "explain":
        return _show(options, _cause(options))
    scope = get_scope(options.scope)(**scope_options(options))
    model = load(options.model, options.device, options.dtype)
    result = attribute(model, options.prompt, scope, position=options.position, per=options.per, **_how(options))
    return _show(options, result, partial(_write_report, model, result, scope, options))


def _cause(options: argparse.Namespace) -> Any:
    """The result of `js.explain`, which takes fewer options than a scope."""
    if options.attention:
        raise InputError(
            "--attention is not for --scope explain, which scores tokens and no pairs of positions; leave it out."
        )
    need_defaults(vars(options), "--{}")
    given = scope_options(options)
    need_options(given)
    model = load(options.model, options.device, options.dtype)
    rules = {"gradient": options.gradient} if was_given(options, "gradient") else {}
    return explain(model, options.prompt, position=options.position, **rules, **given)


def _show(options: argparse.Namespace, result: Any, write: Callable[[], None] | None = None) -> int:
    # Write files first: the reader of standard output may close the pipe.
    if options.html is not None:
        report(result, options.html) if write is None else write()
    if options.save is not None:
        result.save(options.save)
    if options.json:
        print(as_json(result))
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
    """Keyword arguments that `attribute` and `influence_pattern` share."""
    return {name: getattr(options, name) for name in ("at", "reduction", "path", "gradient", "frozen")}
