"""`evaluate`: measure the faithfulness of methods on a set of prompts."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jscope_tl.engine.progress import progress_bar
from jscope_tl.errors import InputError
from jscope_tl.faithfulness.cases import Case, predicted, to_cases
from jscope_tl.faithfulness.measures import MEASURES, Measure, Question
from jscope_tl.faithfulness.methods import Explainer, contrasted, resolve_methods
from jscope_tl.faithfulness.protocol import Protocol, resolve_protocol
from jscope_tl.faithfulness.results import Faithfulness
from jscope_tl.model.prompts import to_id
from jscope_tl.model.view import ModelView

Rows = dict[str, list[dict[str, Any]]]
"""Rows by the name of the measure."""


def evaluate(
    model: Any,
    prompts: Any,
    methods: Any = None,
    measures: str | Measure | Iterable[str | Measure] | None = None,
    *,
    protocol: str | Protocol = "corrected",
    progress: bool | None = None,
    **changes: Any,
) -> dict[str, Faithfulness]:
    """Apply several measures of faithfulness to the same methods on the same prompts; each prompt is explained once.

    - ``"known_cause"``: whether the highest score is on the cause. It uses the prompts whose cause is known, and explains the correct
      next token, whatever the model predicts. ``top_1``: the highest score is on a cause; ``reciprocal_rank``: 1 divided by the rank of
      the best-ranked cause; ``share``: the share of all scores that is on the causes (squared scores, such as Fisher's, have more of it
      on the highest token); ``top_1_without_last``: as ``top_1`` with the last token excluded from the ranking, NaN if the last token is
      the only cause.
    - ``"leave_one_out"``: whether the scores rank tokens as their ablation does, by ``KL(p ‖ p_ablated)`` of the whole distribution.
      ``percentile``: the rank of the highest-scored token among all ablations (0 is the strongest); ``in_top_5``: whether it is among the
      strongest 5 %; ``spearman`` and ``kendall``: Spearman's correlation and Kendall's tau-b of scores and divergences;
      ``top_10_overlap``: the share of the strongest 10 % of ablations that is among the highest 10 % of scores.
    - ``"swap"``, for the prompts of `jscope_tl.ground_truth`: Spearman's correlation of scores and ``KL(p ‖ p_swapped)``, over the tokens
      that were swapped for others of their kind, with the mean over the swaps of each token. It is NaN, and not included in means, if
      fewer than five tokens were swapped.
    - ``"aopc"``: how much a log-probability falls when the tokens with the highest scores are ablated. For each fraction, the
      ``max(1, ⌊fraction · n⌋)`` highest-scored embeddings are ablated together (attention is not masked). The number is the area under
      the curve of one token's change in log-probability by the trapezoid rule, divided by its width; lower is better.
      ``protocol="authors"`` has the three fractions of the authors of Jacobian Scopes, does not divide by the width, explains the token
      that follows in the text but evaluates the model's most probable token, and gives the authors' standard error.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, in evaluation mode, on any device.
        prompts: strings or token ids whose last token is the one to predict (the position before it is explained); dictionaries with the
            key ``prompt`` and the optional keys ``target`` (if it is not the last token of the prompt), ``causes`` (positions, which
            count BOS if the protocol prepends one) and ``task``; `jscope_tl.PocketPrompt`; or a `jscope_tl.GroundTruth`.
        methods: names of `jscope_tl.faithfulness.METHODS` or of scopes; or a mapping from your own names to such a name, a scope, a
            function from the `State` to cotangents, keywords of `jscope_tl.attribute`, or a `Method`. None: all of `METHODS`.
        measures: one or several names of `MEASURES`, as listed above, or your own `Measure`. None: all of `MEASURES`.
        protocol: ``"corrected"``, ``"authors"`` or a `Protocol`. BOS is not ranked unless the protocol has ``bos=True``.
        changes: fields of the protocol to change, such as ``ablation="mean"``.
        progress: a progress bar over prompts always (True), never (False), or if the call takes more than a second (None).

    Returns:
        A `Faithfulness` for each measure.

    Raises:
        InputError: no prompts, methods or causes, or an error of a method; the message says which.

    Example:
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), js.pocket_prompts("assistant", 3)
        >>> found = js.faithfulness.evaluate(model, prompts, ["log_prob", "random"], ("known_cause", "aopc"))
        >>> found["known_cause"].mean("log_prob").n
        3
    """
    evaluation = prepared(model, prompts, methods, measures, protocol, changes)
    rows: list[Rows] = []
    for n in progress_bar(progress, "prompts", "prompt", range(len(evaluation.cases))):
        rows.append(evaluation.rows(n, evaluation.methods))
    return evaluation.results(rows, evaluation.methods)


@dataclass(frozen=True)
class Evaluation:
    """The checked arguments of an evaluation, before anything is run."""

    view: ModelView
    cases: list[Case]
    methods: dict[str, Any]
    measures: list[Measure]
    protocol: Protocol
    _questions: dict[int, Question] = field(default_factory=dict)

    def rows(self, n: int, methods: Iterable[str]) -> Rows:
        """The rows of one prompt for some of the methods; values that all methods share are computed once for each prompt."""
        case = self.cases[n]
        if n not in self._questions:
            self._questions[n] = Question(self.view, case, self.protocol, predicted(self.view, case))
        question, explainer = self._questions[n], Explainer(self.view, {name: self.methods[name] for name in methods})
        asked = [measure for measure in self.measures if measure.fits(case)]
        return {measure.name: _rows(n, measure, question, explainer) for measure in asked}

    def results(self, rows: Iterable[Rows], methods: Iterable[str]) -> dict[str, Faithfulness]:
        """The results by measure, from the rows of some methods on the same prompts."""
        given, names, found = list(rows), tuple(methods), {}
        for measure in self.measures:
            kept = [row for some in given for row in some.get(measure.name, []) if row["method"] in names]
            if kept:
                own = (measure.name, names, measure.columns, kept, self.protocol, self.view.name)
                found[measure.name] = Faithfulness(*own)
        return found


def prepared(
    model: Any, prompts: Any, methods: Any, measures: Any, protocol: str | Protocol, changes: dict[str, Any]
) -> Evaluation:
    """Check the arguments of `evaluate`."""
    asked, view, rules = (
        _measures(MEASURES if measures is None else measures),
        ModelView(model),
        resolve_protocol(protocol, changes),
    )
    chosen = resolve_methods(methods)
    cases = to_cases(view, prompts, rules.prepend_bos, any(measure.needs_cause for measure in asked))
    if measures is None and not any(case.swaps for case in cases):
        asked = [measure for measure in asked if not measure.needs_swaps]
    _need_causes(asked, cases)
    chosen = contrasted(chosen, [case.alternative for case in cases], methods is None)
    if rules.ablation == "filler":
        to_id(view, rules.filler, view.d_vocab)
    return Evaluation(view, cases, chosen, asked, rules)


def _measures(given: Any) -> list[Measure]:
    listed = [given] if isinstance(given, str | Measure) else list(given) if isinstance(given, Iterable) else []
    found = {
        measure if isinstance(measure, str) else measure.name: MEASURES.get(measure)
        if isinstance(measure, str)
        else measure
        for measure in listed
        if isinstance(measure, str | Measure)
    }
    if not found or None in found.values() or len(found) < len({*map(str, listed)}):
        raise InputError(f"measures are one or more of {', '.join(MEASURES)}, or your own Measures; got {given!r}.")
    return [measure for measure in found.values() if measure is not None]


def _rows(n: int, measure: Measure, question: Question, explainer: Explainer) -> list[dict[str, Any]]:
    case, rules = question.case, question.protocol
    if measure.needs_cause:
        _need_ranked(n, case, rules)
    target = case.target if measure.needs_cause else rules.token(rules.explained, case.target, question.argmax)
    explained = explainer.all(case.tokens, target, case.alternative)
    found = measure.function(question, {name: e.scores for name, e in explained.items()})
    correct = question.argmax == case.target
    about = {"prompt": n, "task": case.task, "correct": correct, "n_tokens": len(case.tokens)}
    return [
        about | {"method": name} | found[name] | {"passes": e.passes, "seconds": e.seconds}
        for name, e in explained.items()
    ]


def _need_ranked(n: int, case: Case, rules: Protocol) -> None:
    if not set(case.causes) & set(case.candidates(rules.bos)):
        raise InputError(
            f"Prompt {n}: its only causes are BOS, at {list(case.bos)}, which is not ranked. Positions of causes count from 0 and include "
            "BOS; bos=True ranks BOS too."
        )


def _need_causes(asked: list[Measure], cases: list[Case]) -> None:
    """Prompts without a cause are skipped; they are an error if all measures need causes, or if no prompt has one."""
    swapping = [measure.name for measure in asked if measure.needs_swaps]
    if swapping and not any(case.swaps for case in cases):
        raise InputError(f"{swapping[0]} needs prompts whose words were swapped: use those of js.ground_truth.")
    asking = [measure.name for measure in asked if measure.needs_cause]
    without = [n for n, case in enumerate(cases) if not case.causes]
    if asking and without and (len(asking) == len(asked) or len(without) == len(cases)):
        raise InputError(
            f"{asking[0]} needs prompts whose causes are known; {len(without)} of {len(cases)} have none (the first is prompt {without[0]}). "
            "Use js.pocket_prompts, dictionaries with 'causes', or measures=('leave_one_out', 'aopc') alone."
        )
