"""`evaluate`: methods on prompts, prompt by prompt."""

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
"""By measure."""


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
    """Several measurements of the same methods on the same prompts; each prompt is explained once.

    - ``"known_cause"``, whether a method points at the cause, on prompts whose cause is known (others are left out):
      ``top_1``, the highest score is on a cause; ``reciprocal_rank`` of the best-ranked cause; ``share`` of all
      scores that lies on the causes (a squared score, as Fisher's, puts more on its highest); ``top_1_without_last``
      is the hit where the last token is not ranked either, NaN where it is the only cause. The token explained is the
      correct next one, whatever the model predicts.
    - ``"leave_one_out"``, whether it ranks tokens as leaving each one out does, by ``KL(p ‖ p_ablated)`` of the whole
      distribution: ``percentile`` of its highest token among all ablations (0 is the strongest), whether that is
      among the strongest 5 % (``in_top_5``), Spearman's correlation of scores and divergences, Kendall's tau-b, and the share
      of the highest 10 % of the one that is among those of the other (``top_10_overlap``).
    - ``"swap"``, on the prompts of `jscope_tl.ground_truth`: Spearman's correlation of scores with ``KL(p ‖ p_swapped)``,
      over the tokens that were swapped for others of their kind, each with the mean over its swaps. NaN, and not in any
      mean, where fewer than five were.
    - ``"aopc"``, how much the prediction suffers as the tokens with the highest scores are ablated: for each fraction
      the ``max(1, ⌊fraction · n⌋)`` highest-scored embeddings together (attention is not masked). The area over the
      curve of one token's log-probability by the trapezoid rule, divided by its width; lower is better.
      ``protocol="authors"`` takes their three fractions, does not divide, explains the token that follows while it
      evaluates the model's own choice, and states their standard error.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, in evaluation mode, on any device.
        prompts: strings or token ids whose last token is the one to predict (the position before it is explained);
            dictionaries with ``prompt``, and if it is not in the prompt ``target``, and if it is known ``causes`` (positions,
            BOS counted where the protocol has one) and ``task``; `jscope_tl.PocketPrompt`; or a `jscope_tl.GroundTruth`.
        methods: names of `jscope_tl.faithfulness.METHODS` or of scopes, or a mapping from names of your own to such a name, a
            scope, a function from the `State` to cotangents, keywords of `jscope_tl.attribute`, or a `Method`. None is all of
            `METHODS`.
        measures: names of `MEASURES`, as listed above, or a `Measure` of your own; one or several. None is all of
            `MEASURES`.
        protocol: ``"corrected"``, ``"authors"`` or a `Protocol`. BOS is not ranked unless it says so.
        changes: fields of the protocol that are to be others, ``ablation="mean"`` for one.
        progress: a progress bar over prompts always (True), never (False), or where the wait is over a second (None).

    Returns:
        A `Faithfulness` for each measure.

    Raises:
        InputError: no prompts, methods or causes, or what a method refuses; the message says which.

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
    """Everything that was asked for, checked; nothing was run yet."""

    view: ModelView
    cases: list[Case]
    methods: dict[str, Any]
    measures: list[Measure]
    protocol: Protocol
    _questions: dict[int, Question] = field(default_factory=dict)

    def rows(self, n: int, methods: Iterable[str]) -> Rows:
        """One prompt by some of the methods; what all methods share is computed once for each prompt."""
        case = self.cases[n]
        if n not in self._questions:
            self._questions[n] = Question(self.view, case, self.protocol, predicted(self.view, case))
        question, explainer = self._questions[n], Explainer(self.view, {name: self.methods[name] for name in methods})
        asked = [measure for measure in self.measures if measure.fits(case)]
        return {measure.name: _rows(n, measure, question, explainer) for measure in asked}

    def results(self, rows: Iterable[Rows], methods: Iterable[str]) -> dict[str, Faithfulness]:
        """The rows of some methods, each on the same prompts, by measure."""
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
    """What `evaluate` does before it runs anything."""
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
        raise InputError(f"measures are one or more of {', '.join(MEASURES)}, or Measures of your own; got {given!r}.")
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
            f"Prompt {n}: its only causes are BOS, at {list(case.bos)}, which is not ranked. Causes count from 0, BOS "
            "included; bos=True ranks it too."
        )


def _need_causes(asked: list[Measure], cases: list[Case]) -> None:
    """Prompts without a cause are passed over, unless nothing but causes is asked for or none has one."""
    swapping = [measure.name for measure in asked if measure.needs_swaps]
    if swapping and not any(case.swaps for case in cases):
        raise InputError(f"{swapping[0]} needs prompts whose words were swapped: take those of js.ground_truth.")
    asking = [measure.name for measure in asked if measure.needs_cause]
    without = [n for n, case in enumerate(cases) if not case.causes]
    if asking and without and (len(asking) == len(asked) or len(without) == len(cases)):
        raise InputError(
            f"{asking[0]} needs prompts whose causes are known; {len(without)} of {len(cases)} have none (prompt {without[0]} "
            "first). Take js.pocket_prompts, dictionaries with 'causes', or measures=('leave_one_out', 'aopc') alone."
        )
