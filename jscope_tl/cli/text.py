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
"""The default scope for answers."""
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
        f"Explain every token of the answer. The default scope is {SCOPE}; --top is the\nnumber of sources to list for each token (default: 3).",
    )
    group.add_argument(
        "--chat",
        metavar="FILE",
        help=f"a chat instead of PROMPT: a JSON list of messages, {EXAMPLE}; - reads standard input. If the chat ends with a message of "
        "the assistant, that message is explained; otherwise the model generates an answer",
    )
    group.add_argument(
        "--continue",
        dest="n_new",
        type=int,
        metavar="N",
        help="let the model generate at most N tokens, and explain them",
    )
    group.add_argument(
        "--answer",
        metavar="TEXT",
        help="explain this text as the answer; begin it with a space if the tokenizer needs one",
    )
    group.add_argument("--by", help=f"group the tokens of the prompt into sources: {', '.join(BY)} (default: token)")
    group.add_argument("--spans", help=f"explain several tokens of the answer as one: {', '.join(BY)} (default: token)")


def is_asked(options: argparse.Namespace) -> bool:
    """Whether the options ask for an answer to be explained, not a single prediction."""
    asked = any(getattr(options, name) is not None for name in STARTS)
    alone = next((flag for name, flag in ONLY_HERE.items() if getattr(options, name) is not None), None)
    if alone is not None and not asked:
        raise InputError(
            f"{alone} needs an answer to explain; add --continue N or --answer TEXT to a prompt, or give --chat FILE."
        )
    return asked


def explain(options: argparse.Namespace) -> int:
    """Explain an answer, write and print."""
    _need_usable(options)
    prompt = options.prompt if options.chat is None else read_chat(options.chat)
    if options.n_new is not None and options.chat is not None and prompt[-1].get("role") == ASSISTANT:
        raise InputError(
            "The chat ends with a message of the assistant, which is explained; leave out --continue, or this message."
        )
    given = scope_options(options)
    if "target" in given:
        raise InputError("Every token of an answer is its own target; leave the option target out.")
    scope = get_scope(options.scope if was_given(options, "scope") else SCOPE)(**given)
    model = load(options.model, options.device, options.dtype)
    result = attribute_text(model, prompt, options.answer, scope=scope, **_how(options))
    # Write files first: the reader of standard output may close the pipe.
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
    """Keyword arguments of `attribute_text` from the options that were given."""
    names = {name: name for name in ("at", "reduction", "path", "gradient", "frozen", *ONLY_HERE)} | {
        "n_new": "max_new_tokens"
    }
    return {names[name]: value for name in names if (value := getattr(options, name)) is not None}


def _need_usable(options: argparse.Namespace) -> None:
    """Refuse options that exclude each other, before a model is loaded."""
    asked = next(flag for name, flag in STARTS.items() if getattr(options, name) is not None)
    if options.chat is not None and options.prompt is not None:
        raise InputError("--chat FILE replaces the prompt; give one of them.")
    if options.chat is None and not (options.prompt or "").strip():
        raise InputError(f"{asked} needs a prompt; give one, or --chat FILE.")
    if options.n_new is not None and options.answer is not None:
        raise InputError(
            "--answer gives the answer to explain, --continue lets the model generate one; give one of them."
        )
    if options.n_new is not None and options.n_new < 1:
        raise InputError(f"--continue is the largest number of tokens to generate, 1 or more; got {options.n_new}.")
    for name, flag in ELSEWHERE.items():
        if was_given(options, name):
            raise InputError(
                f"{flag} is an option for one prediction, but {asked} explains every token of an answer; leave one of them out."
            )
    if options.attention:
        raise InputError(
            f"--attention is an option for one prediction, but {asked} explains an answer; leave one of them out."
        )
    need_writable(options)


def read_chat(path: str) -> list[Mapping[str, Any]]:
    """Messages from a JSON file, or from standard input (``-``).

    Raises:
        InputError: the file does not exist, is not JSON, or is not a list of messages.
    """
    where = "standard input" if path == "-" else repr(path)
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The chat in {where} cannot be read: {error}.") from error
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The chat in {where} is not JSON: {error}. Give a list of messages, {EXAMPLE}.") from error
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
    """The JSON name of a value's type."""
    if isinstance(found, list):
        return _kind(next(item for item in found if not isinstance(item, dict)))
    names = {dict: "an object", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(found), "a number")


def _json(result: TextAttribution) -> str:
    """The fields of a result, with its sources and their scores."""
    made = {"sources": result.sources, "scores": result.scores, "stderr": result.stderr}
    return as_json({field.name: getattr(result, field.name) for field in fields(result)} | made)
