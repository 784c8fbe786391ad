"""The command `python examples/benchmarks architectures`: every check on every architecture, as a Markdown table."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is to be looked up by the names made up here

import argparse
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import oracle
import tiny_models
import torch
import transformers
from architectures import CHECKS, TOKENS, Case, Check
from tqdm import tqdm

import jscope_tl as js

GUIDE = Path(__file__).parents[1] / "guide" / "architectures.md"
RIGHT = 1e-4
"""Largest error over the largest value; float32 against float64."""
INTRODUCTION = """# Architectures

Made by `python examples/benchmarks architectures` with TransformerLens {transformer_lens}, transformers {transformers} and torch
{torch}: {n} random models of a few layers, of the decoder classes (and variants) that TransformerLens has an adapter for, in their
own configurations. TransformerLens' bridge in float32 is held against `torch.autograd` on the HuggingFace model itself in float64,
which knows nothing of either.

A number is the largest error over the largest value: below {right:.0e} it is right. *Logits* are the bridge's own, before this
package does anything: where they differ from HuggingFace's, nothing behind them can be right. *Attention pattern* compares the
bridge's `hook_pattern` with what HuggingFace returns; *patching* has predicted and actual effects. *Frozen* are semantic scores
with attention patterns, norm scales or both held constant: attention without a softmax (linear attention, state spaces) has no
pattern and is differentiated as it is. *Attnlrp*, *relp*, *gim* are those under gradient rules, and *attnlrp at pattern* the scores
of attention entries, against the rules written out on the HuggingFace model. Numbers in brackets point to the reasons below the table.
"""


@dataclass
class Table:
    """Rows as they are found, and the reasons that they refer to."""

    rows: list[list[str]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Check an architecture; an error of whatever kind is what stands in the table."""
        try:
            hf = tiny_models.tiny(name)
            case = Case(tiny_models.bridge_of(hf), oracle.in_float64(hf))
            case.bridge(TOKENS.unsqueeze(0))
        except Exception as error:
            self.rows.append([name, self._because("not loaded", error), *[""] * (len(CHECKS) - 1)])
        else:
            self.rows.append([name, *(self._cell(case, check) for check in CHECKS.values())])

    def _cell(self, case: Case, check: Check) -> str:
        try:
            found, expected = check(case)
        except js.InputError as error:
            return self._because("refused", error)
        except Exception as error:
            return self._because("**fails**", error)
        try:
            right = expected()
        except Exception as error:
            return self._because("no oracle", error)
        if found.shape != right.shape:
            return self._because("**wrong**", f"{list(found.shape)} where HuggingFace has {list(right.shape)}")
        off = float((found.double() - right).abs().max() / right.abs().max())
        return f"{off:.0e}" if off < RIGHT else f"**wrong** {off:.0e}"

    def _because(self, what: str, reason: Any) -> str:
        first = re.split(r"(?<=\.) ", " ".join(str(reason).split()))[0]
        text = re.sub(r"tiny-\w+", "the model", first) or type(reason).__name__
        if text not in self.reasons:
            self.reasons.append(text)
        return f"{what} [{self.reasons.index(text) + 1}]"

    def markdown(self) -> str:
        """What stands out, the table, and the reasons below it."""
        lines = [["architecture", *CHECKS], ["---"] * (1 + len(CHECKS)), *self.rows]
        reasons = [f"{i}. {reason}" for i, reason in enumerate(self.reasons, 1)]
        return "\n".join([*self._summary(), "", *(f"| {' | '.join(line)} |" for line in lines), "", *reasons]) + "\n"

    def _summary(self) -> list[str]:
        loaded = [row for row in self.rows if not row[1].startswith("not loaded")]
        others = [row for row in loaded if "wrong" in row[1]]
        ours = [row[0] for row in loaded if row not in others and any("**" in cell for cell in row)]
        found = [f"- {len(loaded)} of {len(self.rows)} load and run."]
        found += [
            f"- The bridge's own logits differ from HuggingFace's: {row[0]}, by {row[1].split()[1]} of the largest."
            for row in others
        ]
        return [*found, f"- Wrong, or failing, although those agree: {'; '.join(ours) or 'none'}."]


def main(arguments: Sequence[str]) -> None:
    """Check what is asked for, show the table, and write it where all were checked."""
    parser = argparse.ArgumentParser("python examples/benchmarks architectures", description=__doc__)
    parser.add_argument("names", nargs="*", help="classes of transformers; all decoders without")
    parser.add_argument("--write", type=Path, help=f"where to; {GUIDE.name} of the guide if all are checked")
    given = parser.parse_args(arguments)
    known = tiny_models.decoders()
    if unknown := [name for name in given.names if name not in known]:
        parser.error(f"no decoder classes: {', '.join(unknown)}; known are {', '.join(known)}")
    table = checked(given.names or known)
    print(table.markdown())
    path = given.write or (None if given.names else GUIDE)
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{introduction(len(table.rows))}\n{table.markdown()}", encoding="utf-8")


def checked(names: Sequence[str]) -> Table:
    """Every check on each."""
    transformers.logging.set_verbosity_error()
    table = Table()
    with warnings.catch_warnings(), tqdm(names, unit="architecture") as bar:
        warnings.simplefilter("ignore")
        for name in bar:
            bar.set_description(name)
            table.add(name)
    return table


def introduction(n: int) -> str:
    """What was done, and with which versions."""
    return INTRODUCTION.format(
        transformer_lens=version("transformer-lens"), transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        n=n, right=RIGHT,
    )  # fmt: skip
