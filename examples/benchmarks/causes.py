"""The command `python examples/benchmarks causes MODEL ...`: which methods put a validated cause on top, as a Markdown table.

Every scope with a fixed number of rows, under all gradient rules, by norm, by dot with the input, by pattern x gradient, and by the map that
`js.explain` makes of these; `js.explain` itself; and the controls: random directions, attention, leave-one-out, chance. All scopes share the forward and the backward pass of their rules.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from table_of_causes import Measured, page
from torch import Tensor
from tqdm import tqdm

import jscope_tl as js
from jscope_tl.attribution.explain import contrast_map, with_vectors
from jscope_tl.attribution.setup import set_up
from jscope_tl.engine.rules import RULES
from jscope_tl.faithfulness.attention import last_layer, mean_of_all
from jscope_tl.faithfulness.cases import Case, to_cases
from jscope_tl.faithfulness.measures import MEASURES, Question, Scores
from jscope_tl.faithfulness.protocol import CORRECTED
from jscope_tl.model.loading import load_model
from jscope_tl.model.view import ModelView
from jscope_tl.scopes.factor import leading_rows
from jscope_tl.scopes.fisher import fisher_factor

MARK = "<!-- made by python examples/benchmarks causes -->"
TRUTH = Path(__file__).parents[1] / "ground_truth"
MEASURED = ("known_cause", "swap", "leave_one_out")


def scopes(prompt: Any) -> dict[str, js.Scope]:
    """Scopes with one cotangent, by the name in the table."""
    target = prompt.target
    return {
        "semantic": js.SemanticScope(target),
        "log_prob": js.LogProbScope(target),
        "contrastive, known alternative": js.ContrastiveScope(target, prompt.baseline),
        "alternatives": js.AlternativesScope(target),
        "temperature": js.TemperatureScope(),
        "logit_temperature": js.LogitTemperatureScope(),
        "entropy": js.EntropyScope(),
        "random direction": js.RandomDirectionScope(seed=0),
        "random direction, another": js.RandomDirectionScope(seed=1),
    }


def by_rule(model: Any, case: Case, prompt: Any, rule: str) -> Iterator[tuple[str, Float[Tensor, "pos"]]]:
    """Scores of all scopes under one rule, from one forward pass and one chunk of rows."""
    setup = set_up(model, js.SemanticScope(case.target), {}, at="pattern", per=None, gradient=rule, progress=False)
    with setup.run(case.tokens, [case.position]) as (forward, backward):
        state, d_in = forward.state(), forward.xs[0].shape[-1]
        named = {name: scope.rows(state) for name, scope in scopes(prompt).items()}
        factor = fisher_factor(state)
        named["fisher, rank 4"] = leading_rows(factor, 4) * factor.size
        rows = torch.cat(list(with_vectors(forward, backward).rows(torch.cat(list(named.values())))))
    for name, own in zip(named, rows.split([len(of_one) for of_one in named.values()]), strict=True):
        yield from _reduced(f"{name} · {rule}", own[..., :d_in], own[..., d_in:], state.x.detach())


def _reduced(
    name: str,
    gradient: Float[Tensor, "k pos d_in"],
    entries: Float[Tensor, "k pos entries"],
    x: Float[Tensor, "pos d_in"],
) -> Iterator[tuple[str, Float[Tensor, "pos"]]]:
    yield f"{name} · norm", gradient.square().sum((0, 2)).sqrt()
    yield f"{name} · dot", (gradient * x).sum(-1).square().sum(0).sqrt()
    positive, energy = entries.relu().sum((0, 2)), entries.square().sum((0, 2))
    yield f"{name} · pattern", positive if len(entries) == 1 else 0.5 * energy
    if len(entries) == 1:  # as js.explain combines them
        yield f"{name} · map", contrast_map(gradient, entries)[0]


def scored(model: Any, case: Case, prompt: Any, question: Question, rules: Sequence[str]) -> Scores:
    """Every method's scores of one prompt; scopes under these rules."""
    left_out = torch.zeros(len(case.tokens))
    left_out[case.candidates(False)] = torch.tensor(question.leave_one_out).float()
    found: Scores = {
        "explain": js.explain(model, case.tokens, case.target, progress=False).scores,
        "explain, known alternative": js.explain(
            model, case.tokens, case.target, prompt.baseline, progress=False
        ).scores,
        "leave-one-out": left_out,
        "attention, all heads": mean_of_all(model, case.tokens, case.target),
        "attention, last layer": last_layer(model, case.tokens, case.target),
    }
    for rule in rules:
        found |= dict(by_rule(model, case, prompt, rule))
    return {name: values.double() for name, values in found.items()}


def measured(model: Any, truth: js.faithfulness.GroundTruth, name: str, rules: Sequence[str]) -> Measured:
    """All methods and measures on the prompts of one model."""
    view, rows = ModelView(model), []
    for prompt, case in zip(tqdm(truth, desc=name), to_cases(view, truth), strict=True):
        question = Question(view, case, CORRECTED, case.target)
        scores = scored(model, case, prompt, question, rules)
        kept = case.candidates(False)
        chance = len({*case.causes} & {*kept}) / len(kept)
        of_each: dict[str, dict[str, float]] = {method: {} for method in scores}
        for measure in MEASURED:
            for method, numbers in MEASURES[measure].function(question, scores).items():
                of_each[method] |= {f"{measure}.{number}": value for number, value in numbers.items()}
        rows.append({"family": prompt.family, "methods": of_each | {"chance": {"known_cause.top_1": chance}}})
    return Measured(name, rows)


def truth_of(model: Any, path: Path, n: int) -> js.faithfulness.GroundTruth:
    """The validated prompts of a model, made once and kept in a file."""
    if not path.exists():
        families = "pocket" if path.stem == "pocket" else None
        js.ground_truth(model, families, n).save(path)
    return js.faithfulness.GroundTruth.load(path)


def few(truth: js.faithfulness.GroundTruth, most: int) -> js.faithfulness.GroundTruth:
    """The first prompts of each family, spread over its templates."""
    kept = [prompt for name in truth.yields for prompt in _spread(truth.family(name).prompts, most)]
    return replace(truth, prompts=tuple(kept))


def _spread(prompts: Sequence[Any], most: int) -> list[Any]:
    step = max(1.0, len(prompts) / most)
    return [prompts[int(i * step)] for i in range(min(most, len(prompts)))]


def main(arguments: list[str]) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser("python examples/benchmarks causes", description=__doc__)
    parser.add_argument("models", nargs="+", help="'pocket', HuggingFace names or local folders")
    parser.add_argument(
        "--truth", type=Path, default=TRUTH, help="folder of validated prompts; those of other models are made there"
    )
    parser.add_argument("--numbers", type=Path, help="folder to keep every prompt's numbers in")
    parser.add_argument("--n", type=int, default=40, help="validated prompts of each family")
    parser.add_argument("--most", type=int, default=40, help="prompts of each family that are measured on")
    parser.add_argument(
        "--rules", nargs="*", choices=[*RULES], default=[*RULES], help="of scopes; none leaves scopes out"
    )
    parser.add_argument("--half", choices=["tune", "report"], default="report")
    parser.add_argument(
        "--write", type=Path, help="put the tables at the end of this page, in place of those that it has"
    )
    given = parser.parse_args(arguments)
    found = []
    for name in given.models:
        model = js.load_pocket_model() if name == "pocket" else load_model(name)
        stem = Path(name).name
        truth = truth_of(model, given.truth / f"{stem}.json", given.n)
        found.append(measured(model, few(getattr(truth, given.half), given.most), stem, given.rules))
        if given.numbers:
            found[-1].save(given.numbers / f"{stem}.{given.half}.json")
    text = page(found)
    print(text)
    if given.write:
        page_before = given.write.read_text(encoding="utf-8").partition(MARK)[0]
        given.write.write_text(f"{page_before}{MARK}\n\n{text}\n", encoding="utf-8")
