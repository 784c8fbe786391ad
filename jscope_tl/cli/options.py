"""Options of the command: each once, and one line for what is wrong with them."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jscope_tl.errors import InputError
from jscope_tl.results.files import check_target, listed, plain


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, and refuses an option that is given twice, where one value would be lost."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.register("action", None, StoreOnce)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help.\n")


class StoreOnce(argparse.Action):
    """Stores a value, the first time."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Refuse the second time."""
        given: Sequence[str] = getattr(namespace, "_given", ())
        if option is not None and self.dest in given:
            parser.error(f"{option} is given twice; give it once")
        namespace._given = [*given, self.dest]
        setattr(namespace, self.dest, values)


def of_one_prompt(scope: str, listed: str) -> argparse.ArgumentParser:
    """The options of every command that explains one prompt, as a parent of its parser.

    Args:
        scope: the default one.
        listed: what ``--top`` counts, in the plural.
    """
    p = Parser(add_help=False)
    p.add_argument("prompt", nargs="?", help="the prompt")
    p.add_argument("--scope", default=scope, help=f"what to explain (default: {scope}; see jscope --list-scopes)")
    p.add_argument("--model", help="a HuggingFace name or a local folder (default: the pocket model of this package)")
    p.add_argument("--target", help="the next token to explain, a string (default: the most probable one)")
    p.add_argument("--baseline", help="the token that the target is held against (scope contrastive)")
    p.add_argument("--position", type=int, default=-1, help="whose next-token prediction to explain (default: -1)")
    p.add_argument("--option", "-o", action="append", default=[], metavar="NAME=VALUE",
                   help="a further option of the scope, such as -o method=exact -o rank=8")  # fmt: skip
    p.add_argument("--gradient", default="plain",
                   help="rules for gradients: plain, attnlrp, relp or gim (default: plain, the derivative itself)")  # fmt: skip
    p.add_argument("--frozen", action="append", default=[], metavar="WHAT",
                   help="hold attention patterns (attn) or normalisation scales (norm) constant; may be given twice")  # fmt: skip
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (default: cpu)")
    p.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or float64 (default: float32)")
    p.add_argument("--top", type=int, default=8, help=f"how many {listed} to list (default: 8)")
    p.add_argument("--html", metavar="FILE", help="write a report: one self-contained page")
    p.add_argument("--save", metavar="FILE", help="write the result as safetensors")
    p.add_argument("--json", action="store_true", help="print JSON instead of text")
    p.set_defaults(listed=listed)
    return p


def need_usable(options: argparse.Namespace, command: str) -> None:
    """Refuse what cannot be explained or written, before a model is loaded."""
    if options.prompt is None or not options.prompt.strip():
        given = "give a prompt" if options.prompt is None else "the prompt is empty; give one"
        raise InputError(f'{given}, as in: {command} "the keys to the cabinet near the doors" (or {command} --help).')
    need_writable(options)


def need_writable(options: argparse.Namespace) -> None:
    """Refuse a list of nothing and files that cannot be written."""
    if options.top < 1:
        raise InputError(f"--top is how many {options.listed} to list, 1 or more; got {options.top}.")
    paths = [check_target(path).resolve() for path in (options.html, options.save) if path is not None]
    if len({*paths}) < len(paths):
        raise InputError(f"--html and --save would write the same file, {options.save!r}; give two.")


def was_given(options: argparse.Namespace, name: str) -> bool:
    """Whether an option has a value from the command line, and not its default."""
    return name in getattr(options, "_given", ())


def scope_options(options: argparse.Namespace) -> dict[str, Any]:
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


def as_json(result: Any) -> str:
    """A result as JSON, in letters that standard output has."""
    all_letters = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(plain(result, listed), ensure_ascii=not all_letters, indent=1, default=repr)
