"""The command `python examples/benchmarks claims MODEL ...`: the paper's own prompts, by its scopes and by `js.explain`.

For each prompt of the paper's figures the token that the paper finds highest, and which token is highest here (BOS left out): by the
scope of the figure, by `js.explain` without and with the alternative that the figure names, and by a random direction.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jscope_tl as js
from jscope_tl.model.loading import load_model

ASSISTANT = "As a state-of-the-art AI assistant, you never argue or deceive, because you are"
TOM = "Tom loves Korean food. He grew up in the South and goes to Columbia. Tom is a"
DETECTIVE = (
    "Since the victim, a wealthy aristocrat living in the English countryside, died from a fatal wound, the detective narrowed "
    "down to three murder weapons: a cleaver, a shovel, and a screwdriver. He further deduced that the killer is the"
)
DANTE = (
    "Italiano: Ma quando tu sarai nel dolce mondo, priegoti ch'a la mente altrui mi rechi: English: But when you have returned "
    "to the sweet"
)


@dataclass(frozen=True)
class Claim:
    """One figure.

    Attributes:
        figure: its number in the paper.
        prompt: up to the word that is explained.
        target: that word; the first of its tokens is explained.
        words: those that the paper finds highest; any token that is part of one is a hit.
        scope: the figure's.
        baselines: what the prompt could have gone on with, where the figure says it.
    """

    figure: str
    prompt: str
    target: str
    words: tuple[str, ...]
    scope: str = "semantic"
    baselines: tuple[str, ...] = ()


CLAIMS = (
    Claim("1a", ASSISTANT, " truthful", ("deceive",), baselines=(" nice",)),
    Claim("1b", ASSISTANT, " nice", ("argue",), baselines=(" truthful",)),
    Claim("2a", TOM, " liberal", ("Columbia",), baselines=(" conservative",)),
    Claim("2b", TOM, " conservative", ("South",), baselines=(" liberal",)),
    Claim("3, Italian", "Italian: Buon pomeriggio, cari colleghi ricercatori. English: Good afternoon, dear fellow", " researchers", ("ricercatori",), "fisher"),
    Claim("3, German", "German: Dies ist ein Aufsatz über kausale Zuschreibung. English: This is a paper on causal", " attribution", ("Zuschreibung",), "fisher"),
    Claim("3, French", "French: Nous l'appelons lentille jacobienne. English: We call it Jacobian", " Scope", ("lentille",), "fisher"),
    Claim("6", DANTE, " world", ("mondo",), "temperature"),
    Claim("7, mechanic", DETECTIVE, " mechanic", ("screwdriver",), baselines=(" gardener", " butcher")),
    Claim("7, gardener", DETECTIVE, " gardener", ("shovel",), baselines=(" mechanic", " butcher")),
    Claim("7, butcher", DETECTIVE, " butcher", ("cleaver",), baselines=(" mechanic", " gardener")),
)  # fmt: skip


def first_token(model: Any, prompt: str, word: str) -> int:
    """Id of the first token of a word that follows the prompt."""
    before, after = model.to_tokens(prompt)[0], model.to_tokens(prompt + word)[0]
    return int(after[len(before)])


def part_of(result: js.Attribution, words: Sequence[str], prompt: str) -> set[int]:
    """Positions of the tokens that make up one of the words."""
    text, places, end = "", set(), len(result.bos_positions)
    for t, piece in enumerate(result.str_tokens[end:], start=end):
        start, text = len(text), text + piece
        for word in words:
            found = prompt.find(word)
            while found >= 0:
                if start < found + len(word) and found < len(text):
                    places.add(t)
                found = prompt.find(word, found + 1)
    return places


def highest(result: js.Attribution, words: Sequence[str], prompt: str) -> str:
    """The highest token, and whether the claim holds."""
    best = result.top(1)[0]
    holds = best.position in part_of(result, words, prompt)
    return f"{'**' if holds else ''}`{best.str_token.strip()}`{'**' if holds else ''}"


def row(model: Any, claim: Claim) -> list[str]:
    """One line of the table."""
    target = first_token(model, claim.prompt, claim.target)
    own = {"target": target} if claim.scope == "semantic" else {}
    others = [first_token(model, claim.prompt, word) for word in claim.baselines]
    maps = [
        js.attribute(model, claim.prompt, claim.scope, progress=False, **own),
        js.attribute(model, claim.prompt, "random_direction"),
        js.explain(model, claim.prompt, target, progress=False),
        js.explain(model, claim.prompt, target, others, progress=False) if others and target not in others else None,
    ]
    rank = maps[2].prediction.target_rank if maps[2] else 0
    cells = ["" if found is None else highest(found, claim.words, claim.prompt) for found in maps]
    return [claim.figure, claim.target.strip(), str(rank), ", ".join(claim.words), claim.scope, *cells]


def table(model: Any) -> str:
    """All claims on one model; what holds is bold."""
    head = ["figure", "target", "its rank", "the paper's highest", "scope", "by the scope", "random direction", "`js.explain`", "against the alternative"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row(model, claim)) + " |" for claim in CLAIMS)])


def main(arguments: list[str]) -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser("python examples/benchmarks claims", description=__doc__)
    parser.add_argument("models", nargs="+", help="HuggingFace names or local folders")
    for name in parser.parse_args(arguments).models:
        print(f"\n{Path(name).name}\n\n{table(load_model(name))}")
