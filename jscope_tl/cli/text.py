"""``jscope --chat FILE``, ``jscope PROMPT --continue N`` and ``jscope PROMPT --answer TEXT``: an answer, token by token or in spans."""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from jscope_tl.attribution.text import attribute_text
from jscope_tl.cli.models import load
from jscope_tl.cli.options import as_json, need_writable, scope_options, was_given
from jscope_tl.errors import InputError
from jscope_tl.explorer.report import report
from jscope_tl.model.chats import ASSISTANT
from jscope_tl.results.sources import BY
from jscope_tl.results.text_attribution import TextAttribution
from jscope_tl.scopes.registry import get_scope
from jscope_tl.views.terminal import show

SCOPE = "log_prob"
"""The default here."""
STARTS = {"chat": "--chat", "n_new": "--continue", "answer": "--answer"}
"""Options that ask for an answer."""
ONLY_HERE = {"by": "--by", "spans": "--spans"}
EXAMPLE = 'as in [{"role": "user", "content": "some text"}]'
ELSEWHERE = {"target": "--target", "position": "--position", "per": "--per"}
"""Options of one prediction."""


def add_options(p: argparse.ArgumentParser) -> None:
    """Options of an answer, in a group of their own."""
    group = p.add_argument_group(
        "an answer of several tokens",
        f"what each of its tokens comes from; the default scope here is {SCOPE}, and --top counts sources of each token (default: 3)",
    )
    group.add_argument(
        "--chat",
        metavar="FILE",
        help=f"a chat in place of PROMPT: a JSON list of messages, {EXAMPLE}; - reads standard input. A chat that ends with a message of "
        "the assistant has that one explained, another one is answered by the model",
    )
    group.add_argument(
        "--continue",
        dest="n_new",
        type=int,
        metavar="N",
        help="let the model go on for at most N tokens and explain these",
    )
    group.add_argument(
        "--answer", metavar="TEXT", help="explain this text after the prompt or chat; begin it with the space it needs"
    )
    group.add_argument(
        "--by", help=f"what tokens of the prompt are taken together as a source: {', '.join(BY)} (default: token)"
    )
    group.add_argument(
        "--spans", help=f"what tokens of the answer are explained as one: {', '.join(BY)} (default: token)"
    )


def is_asked(options: argparse.Namespace) -> bool:
    """Whether an answer is explained, and not one prediction."""
    asked = any(getattr(options, name) is not None for name in STARTS)
    alone = next((flag for name, flag in ONLY_HERE.items() if getattr(options, name) is not None), None)
    if alone is not None and not asked:
        raise InputError(
            f"{alone} goes with an answer; add --continue N or --answer TEXT to a prompt, or give --chat FILE."
        )
    return asked


def explain(options: argparse.Namespace) -> int:
    """Explain an answer, write and print."""
    _need_usable(options)
    prompt = options.prompt if options.chat is None else read_chat(options.chat)
    if options.n_new is not None and options.chat is not None and prompt[-1].get("role") == ASSISTANT:
        raise InputError(
            "The chat ends with a message of the assistant, which is what is explained; leave --continue out, or the message."
        )
    given = scope_options(options)
    if "target" in given:
        raise InputError("An answer is explained token by token, each its own target; leave the option target out.")
    scope = get_scope(options.scope if was_given(options, "scope") else SCOPE)(**given)
    model = load(options.model, options.device, options.dtype)
    result = attribute_text(model, prompt, options.answer, scope=scope, **_how(options))
    # Files before the text: whoever reads the text may close the pipe.
    if options.html is not None:
        report(result, options.html)
    if options.save is not None:
        result.save(options.save)
    if options.json:
        print(_json(result))
    else:
        show(result, k=options.top if was_given(options, "top") else None)
    return 0


def _how(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `attribute_text` that were given, under its names."""
    names = {name: name for name in ("at", "reduction", "path", "gradient", "frozen", *ONLY_HERE)} | {
        "n_new": "max_new_tokens"
    }
    return {names[name]: value for name in names if (value := getattr(options, name)) is not None}


def _need_usable(options: argparse.Namespace) -> None:
    """Refuse what does not go together, before a model is loaded."""
    asked = next(flag for name, flag in STARTS.items() if getattr(options, name) is not None)
    if options.chat is not None and options.prompt is not None:
        raise InputError("--chat FILE takes the place of the prompt; give one of them.")
    if options.chat is None and not (options.prompt or "").strip():
        raise InputError(f"{asked} goes on with a prompt, and there is none; give one, or --chat FILE.")
    if options.n_new is not None and options.answer is not None:
        raise InputError(
            "--answer is the text that is explained, --continue has the model write one; give one of them."
        )
    if options.n_new is not None and options.n_new < 1:
        raise InputError(f"--continue is how many tokens to generate at most, 1 or more; got {options.n_new}.")
    for name, flag in ELSEWHERE.items():
        if was_given(options, name):
            raise InputError(
                f"{flag} is of one prediction, and {asked} explains every token of an answer; leave one of them out."
            )
    if options.attention:
        raise InputError(
            f"--attention lies beside one prediction, and {asked} explains an answer; leave one of them out."
        )
    need_writable(options)


def read_chat(path: str) -> list[Mapping[str, Any]]:
    """Messages from a JSON file, or from standard input (``-``).

    Raises:
        InputError: there is no such file, it is no JSON, or no list of messages.
    """
    where = "standard input" if path == "-" else repr(path)
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The chat in {where} cannot be read: {error}.") from error
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The chat in {where} is no JSON: {error}. Give a list of messages, {EXAMPLE}.") from error
    if not isinstance(found, list) or not found or not all(isinstance(message, dict) for message in found):
        held = (
            "an empty list"
            if found == []
            else f"a list with {_kind(found)}"
            if isinstance(found, list)
            else _kind(found)
        )
        raise InputError(f"The chat in {where} is {held}; give a list of messages, {EXAMPLE}.")
    return found


def _kind(found: Any) -> str:
    """What JSON calls a value."""
    if isinstance(found, list):
        return _kind(next(item for item in found if not isinstance(item, dict)))
    names = {dict: "an object", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(found), "a number")


def _json(result: TextAttribution) -> str:
    """The fields of a result, and its sources with their scores, which it makes of them."""
    made = {"sources": result.sources, "scores": result.scores, "stderr": result.stderr}
    return as_json({field.name: getattr(result, field.name) for field in fields(result)} | made)
