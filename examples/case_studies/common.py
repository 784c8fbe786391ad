"""What the case studies share: the model and its options, the paper's conventions, pictures, claims and their checks.

With a model of your own the paper's prompts are shown as the paper has them. Without one, prompts of the same kind are
shown and counted that the pocket model was not trained on, and whose causes are known.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import jscope_tl as js
from jscope_tl.cli.models import load

FEWEST = 4
"""The fewest prompts that a claim counts."""


@dataclass(frozen=True)
class Case:
    """A prompt and, as its last token, what follows it: the target. The prediction just before the target is explained.

    Attributes:
        ids: BOS, prompt and target.
        causes: the positions that decide, where they are known.
        numbers: the position of each number of a series but the target; of its last token where it has several.
        n_target: how many tokens the target has: several where the tokenizer splits numbers, which are explained as one span.
    """

    ids: list[int]
    causes: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    n_target: int = 1


@dataclass(frozen=True)
class Study:
    """A model, where the pictures go, the tokens of the longest prompts, and the most prompts that a claim counts."""

    model: Any
    name: str | None
    out: Path
    longest: int
    most: int | None

    @property
    def is_pocket(self) -> bool:
        """Whether claims can be checked: causes are known for the pocket model only."""
        return self.name is None

    def at_most(self, n: int) -> int:
        """The number of prompts that a claim counts: ``n``, or fewer for a quick look (``--prompts``)."""
        return n if self.most is None else min(n, self.most)

    def paper_case(self, text: str) -> Case:
        """A prompt of the paper in its own convention: two BOS (where the tokenizer has one), the last token the target."""
        return Case([*self._two_bos(), *self.model.tokenizer(text, add_special_tokens=False)["input_ids"]])

    def pocket_case(self, text: str, target: str, causes: tuple[int, ...] = ()) -> Case:
        """A prompt of the pocket model, with its one BOS as it was trained."""
        (following,) = self.model.tokenizer(target, add_special_tokens=False)["input_ids"]
        return Case([*self.model.to_tokens(text)[0].tolist(), following], causes)

    def pocket_cases(self, task: str, n: int, seed: int = 0) -> list[Case]:
        """Held-out prompts of a task of the pocket model."""
        return [self.pocket_case(p.text, p.target, p.causes) for p in js.pocket_prompts(task, n, seed=seed)]

    def series_case(self, integers: Any) -> Case:
        """Two-digit integers and commas; the last number is the target, the prediction after the last comma is explained."""
        prompt = js.series.prompt(self.model, integers)
        (first, _), (last, end) = prompt.spans[0], prompt.spans[-1]
        tokens = prompt.tokens.tolist()
        bos = tokens[:first] if self.is_pocket else self._two_bos()
        numbers = tuple(place - first + len(bos) for place in prompt.numbers[:-1])
        return Case([*bos, *tokens[first:end]], numbers=numbers, n_target=end - last)

    def explain(self, case: Case, scope: str, **options: Any) -> js.Attribution | js.TextAttribution:
        """One scope of the prediction just before the target."""
        if case.n_target == 1:
            return js.attribute(self.model, case.ids, scope, position=-2, progress=False, **options)
        before, target = case.ids[: -case.n_target], case.ids[-case.n_target :]
        return js.attribute_text(self.model, before, target, scope=scope, spans="message", progress=False, **options)

    def tops(self, cases: Sequence[Case], scope: str, **options: Any) -> list[int]:
        """The position with the highest score of each case; of a random direction, a new one each time."""
        found = []
        for i, case in enumerate(cases):
            drawn = {"seed": i} if scope == "random_direction" else {}
            found.append(self.explain(case, scope, **drawn, **options).top(1)[0].position)
        return found

    def words(self, case: Case) -> list[str]:
        """The tokens of a case as text."""
        return [self.model.tokenizer.decode([token]).strip() for token in case.ids]

    def keep(self, picture: Any, name: str) -> Any:
        """Save a figure as PNG or a view as HTML, and hand it back to be shown."""
        if hasattr(picture, "savefig"):
            picture.savefig(self.out / f"{name}.png", dpi=120)
        else:
            picture.save(self.out / f"{name}.html")
        return picture

    def _two_bos(self) -> list[int]:
        bos = self.model.tokenizer.bos_token_id
        return [] if bos is None else [bos, bos]


def start() -> Study:
    """The model and the folder that the command line names; in a notebook, whose command line says other things, the defaults."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", default=None, help="HuggingFace name or local folder (default: the pocket model)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: cpu)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 (default: float32)")
    parser.add_argument("--out", type=Path, default=None, help="folder for the pictures (default: a temporary one)")
    parser.add_argument("--longest", type=int, default=2000, help="tokens of the longest prompts (default: 2000)")
    parser.add_argument(
        "--prompts", type=int, default=None, help="at most so many prompts for each claim (default: all)"
    )
    asked = parser.parse_known_args()[0]
    if asked.prompts is not None and asked.prompts < FEWEST:
        parser.error(f"--prompts is at least {FEWEST}, as fewer give no interval; got {asked.prompts}")
    out = asked.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    return Study(load(asked.model, asked.device, asked.dtype), asked.model, out, asked.longest, asked.prompts)


def target_of(case: Case) -> tuple[int, ...]:
    """The tokens of a case's target."""
    return tuple(case.ids[-case.n_target :])


def claim(sentence: str, holds: bool, detail: str) -> None:
    """Say what the paper's figure claims, whether it is so here, and by which numbers."""
    print(f"CLAIM {'holds' if holds else 'DOES NOT HOLD'}: {sentence} ({detail})")


def to_compare(sentence: str) -> None:
    """With a model whose causes nobody knows: say what the paper's figure claims, for the reader to judge by the pictures."""
    print(f"CLAIM of the paper, to hold against the pictures above: {sentence}")


def in_comparison(hits: Sequence[bool], control: Sequence[bool], tops: Sequence[str]) -> None:
    """Beside a count of hits: the same of directions that ask about nothing, and what has the highest score most often."""
    gained = [float(hit) - float(drawn) for hit, drawn in zip(hits, control, strict=True)]
    verdict = "clearly more" if clearly_positive(gained) else "not clearly more"
    most = " and ".join(f"'{word}' ({count / len(tops):.0%})" for word, count in Counter(tops).most_common(2))
    print(f"  control: {verdict} often than for a random direction, {share(hits):.0%} against {share(control):.0%}")
    print(f"  highest most often: {most}")


def outside_bos(result: js.Attribution) -> np.ndarray:
    """The scores from the first token after BOS to the explained one."""
    return result.scores[len(result.bos_positions) : result.position + 1].double().numpy()


def rank_correlation(a: Any, b: Any) -> float:
    """Spearman's."""
    return float(spearmanr(a, b).statistic)


def share(truths: Sequence[bool]) -> float:
    """How many of them are true, from 0 to 1."""
    return float(np.mean(truths))


def clearly_positive(values: Sequence[float]) -> bool:
    """Whether the mean lies more than two of its standard errors above zero."""
    return float(np.mean(values)) > 2 * standard_error(values)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def mean_text(values: Sequence[float]) -> str:
    """The mean with its standard error."""
    return f"{np.mean(values):+.2f} ± {standard_error(values):.2f}"
