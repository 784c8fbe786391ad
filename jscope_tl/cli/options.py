"""Options that several commands share, and the checks of their values."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jscope_tl.errors import InputError
from jscope_tl.results.files import check_target, listed, plain

EXPLAIN = ", or explain: which token caused the prediction"
"""What ``--scope`` takes besides scopes."""
OF_ONE_PROMPT = ("jscope", "jscope heads")
"""Commands with a prompt."""


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, and refuses an option that is given twice (argparse would keep the last value)."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.register("action", None, StoreOnce)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        extra = message.partition("unrecognized arguments: ")[2]
        of_a_prompt = self.prog in OF_ONE_PROMPT and bool(extra) and not extra.startswith("-")
        hint = "a prompt of several words needs quotes; " if of_a_prompt else ""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; {hint}see {self.prog} --help.\n")


class StoreOnce(argparse.Action):
    """Stores the value of an option; a second value is an error."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Store the value."""
        given: Sequence[str] = getattr(namespace, "_given", ())
        if option is not None and self.dest in given:
            parser.error(f"{option} is given twice; give it once")
        namespace._given = [*given, self.dest]
        setattr(namespace, self.dest, values)


def of_a_scope(scope: str, target: str, extra: str = "") -> argparse.ArgumentParser:
    """The options of every command that explains with a scope, as a parent of its parser.

    Args:
        scope: the default one.
        target: the help text of ``--target``, which commands choose differently where it is not given.
        extra: what ``--scope`` takes besides scopes.
    """
    p = Parser(add_help=False)
    p.add_argument("--scope", default=scope, help=f"the scope{extra} (default: {scope}; jscope --list-scopes lists them)")  # fmt: skip
    p.add_argument("--model", help="a HuggingFace name or a local folder (default: the pocket model of this package)")
    p.add_argument("--target", help=target)
    compared = "scopes contrastive and explain" if extra else "scope contrastive"
    p.add_argument("--baseline", help=f"the token that the target is compared with ({compared})")
    p.add_argument("--position", type=int, default=-1,
                   help="position whose next-token prediction is explained (default: -1, the last)")  # fmt: skip
    p.add_argument("--option", "-o", action="append", default=[], metavar="NAME=VALUE",
                   help="any other option of the scope, such as -o method=exact -o rank=8")  # fmt: skip
    of_causes = "; attnlrp for explain" if extra else ""
    p.add_argument("--gradient", default="plain",
                   help=f"gradient rules: plain, attnlrp, relp or gim (default: plain, the exact derivative{of_causes})")  # fmt: skip
    p.add_argument("--frozen", action="append", default=[], metavar="WHAT",
                   help="hold attention patterns (attn) or normalisation scales (norm) constant; may be given twice")  # fmt: skip
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (default: cpu)")
    p.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or float64 (default: float32)")
    return p


def of_scores(layers: str = "") -> argparse.ArgumentParser:
    """The options of every command that scores tokens, as a parent of its parser; ``layers``: what ``--at`` takes besides."""
    p = Parser(add_help=False)
    p.add_argument("--at", default="hook_embed",
                   help=f"a hook point of the residual stream{layers}, or pattern (all attention patterns) (default: hook_embed)")  # fmt: skip
    p.add_argument("--reduction", help="row_norm, dot (gradient x input) or elementwise (default: the scope's own)")
    p.add_argument("--path", help="point, line (integrated gradients) or noise (SmoothGrad) (default: point)")
    return p


TARGET = (
    "the next token to explain, as text (default: the token of the prompt after --position, or the most probable token)"
)


def of_one_prompt(scope: str, listed: str) -> argparse.ArgumentParser:
    """The options of every command that explains one prompt, as a parent of its parser.

    Args:
        scope: the default one.
        listed: the items that ``--top`` counts, in the plural.
    """
    p = Parser(add_help=False, parents=[of_a_scope(scope, TARGET, EXPLAIN if listed == "tokens" else "")])
    p.add_argument("prompt", nargs="?", help="the prompt")
    p.add_argument("--top", type=int, default=8, help=f"how many {listed} to list (default: 8)")
    p.add_argument("--html", metavar="FILE", help="write a report: one self-contained page")
    p.add_argument("--save", metavar="FILE", help="write the result as safetensors")
    p.add_argument("--json", action="store_true", help="print JSON instead of text")
    p.set_defaults(listed=listed)
    return p


def need_usable(options: argparse.Namespace, command: str) -> None:
    """Check prompt and files before a model is loaded."""
    if options.prompt is None or not options.prompt.strip():
        given = "give a prompt" if options.prompt is None else "the prompt is empty; give one"
        raise InputError(f'{given}, as in: {command} "the keys to the cabinet near the doors" (or {command} --help).')
    need_writable(options)


def need_writable(options: argparse.Namespace) -> None:
    """Check ``--top`` and the files to be written."""
    if options.top < 1:
        raise InputError(f"--top is the number of {options.listed} to list, 1 or more; got {options.top}.")
    paths = [check_target(path).resolve() for path in (options.html, options.save) if path is not None]
    if len({*paths}) < len(paths):
        raise InputError(f"--html and --save would write the same file, {options.save!r}; give two different files.")


def was_given(options: argparse.Namespace, name: str) -> bool:
    """Whether an option was given on the command line."""
    return name in getattr(options, "_given", ())


def scope_options(options: argparse.Namespace) -> dict[str, Any]:
    """``--target``, ``--baseline`` and every ``--option NAME=VALUE``; a value is read as JSON if it is JSON, else as text."""

    given: dict[str, Any] = {k: v for k in ("target", "baseline") if (v := getattr(options, k)) is not None}
    for item in options.option:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise InputError(f"--option takes NAME=VALUE, not {item!r}.")
        if name in given:
            raise InputError(f"{name} is given twice.")
        try:
            given[name] = json.loads(value)
        except (ValueError, RecursionError):  # not JSON, or nested too deeply
            given[name] = value
    return given


def as_json(result: Any) -> str:
    """A result as JSON; characters outside the encoding of standard output are escaped."""
    all_letters = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(plain(result, listed), ensure_ascii=not all_letters, indent=1, default=repr)
