"""The measurements: methods on prompts, prompt by prompt."""

from collections.abc import Callable
from typing import Any

from jscope_tl.errors import InputError
from jscope_tl.faithfulness import measures
from jscope_tl.faithfulness.cases import Case, predicted, to_cases
from jscope_tl.faithfulness.methods import Explained, Explainer, resolve_methods
from jscope_tl.faithfulness.protocol import Protocol, resolve_protocol
from jscope_tl.faithfulness.results import Faithfulness
from jscope_tl.model.view import ModelView
from jscope_tl.engine.progress import bar

COLUMNS = {"known_cause": measures.KNOWN_CAUSE, "leave_one_out": measures.LEAVE_ONE_OUT, "aopc": measures.AOPC}


def evaluate(
    model: Any,
    prompts: Any,
    methods: Any = None,
    measure: str | tuple[str, ...] = ("known_cause", "leave_one_out", "aopc"),
    *,
    protocol: str | Protocol = "corrected",
    progress: bool | None = None,
    **changes: Any,
) -> dict[str, Faithfulness]:
    """Several measurements of the same methods on the same prompts; each prompt is explained once.

    Args:
        model: see `jscope_tl.attribute`.
        prompts: strings or token ids whose last token is the one to predict (the position before it is explained);
            dictionaries with ``prompt``, and if it is not in the prompt ``target``, and if it is known ``causes`` (positions,
            BOS counted where the protocol has one) and ``task``; or `jscope_tl.PocketPrompt`.
        methods: names of `jscope_tl.faithfulness.METHODS` or of scopes, or a mapping from names to keywords of
            `jscope_tl.attribute`, scopes, or functions of model, tokens ``[pos]`` and target id that return scores
            ``[pos]`` for the prediction at the last position. None is all of `METHODS`.
        measure: ``"known_cause"`` (prompts without known causes are left out), ``"leave_one_out"``, ``"aopc"``.
        protocol: ``"corrected"``, ``"authors"`` or a `Protocol`; its fields may be changed by keywords.
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
    asked = (measure,) if isinstance(measure, str) else tuple(dict.fromkeys(measure or ()))
    unknown = [name for name in asked if name not in COLUMNS]
    if unknown or not asked:
        raise InputError(f"measure is one or more of {', '.join(COLUMNS)}; got {measure!r}.")
    view, rules, chosen = ModelView(model), resolve_protocol(protocol, changes), resolve_methods(methods)
    cases = to_cases(view, prompts, rules.prepend_bos, "known_cause" in asked)
    if asked == ("known_cause",) or not any(case.causes for case in cases):
        _need_causes(asked, cases)
    explainer, rows = Explainer(view, chosen), {name: list[dict[str, Any]]() for name in asked}
    for n, case in enumerate(bar(cases, progress, "prompts", "prompt")):
        explainer.forget()
        argmax = predicted(view, case)
        for name in asked:
            if name == "known_cause" and case.causes:
                _need_ranked(n, case, rules)
            if name != "known_cause" or case.causes:
                rows[name] += _rows(name, n, case, explainer, rules, argmax)
    return {name: Faithfulness(name, tuple(chosen), COLUMNS[name], rows[name], rules, view.name) for name in asked}


def _rows(name: str, n: int, case: Case, explainer: Explainer, rules: Protocol, argmax: int) -> list[dict[str, Any]]:
    target = case.target if name == "known_cause" else rules.token(rules.explained, case.target, argmax)
    explained = explainer.all(case.tokens, target)
    found = _measure(name, explainer.view, case, rules, argmax)({m: e.scores for m, e in explained.items()})
    about = {"prompt": n, "task": case.task, "correct": argmax == case.target, "n_tokens": len(case.tokens)}
    return [about | {"method": m} | found[m] | _cost(e) for m, e in explained.items()]


def _measure(name: str, view: ModelView, case: Case, rules: Protocol, argmax: int) -> Callable[..., measures.Rows]:
    return {
        "known_cause": lambda scores: measures.known_cause(case, scores, rules),
        "leave_one_out": lambda scores: measures.leave_one_out(view, case, scores, rules),
        "aopc": lambda scores: measures.aopc(view, case, scores, rules, argmax),
    }[name]


def _cost(explained: Explained) -> dict[str, float | int]:
    return {"passes": explained.passes, "seconds": explained.seconds}


def _need_ranked(n: int, case: Case, rules: Protocol) -> None:
    if not set(case.causes) & set(case.candidates(rules.bos)):
        raise InputError(
            f"Prompt {n}: its only causes are BOS, at {list(case.bos)}, which is not ranked. Causes count from 0, BOS "
            "included; bos=True ranks it too."
        )


def _need_causes(asked: tuple[str, ...], cases: list[Case]) -> None:
    without = [n for n, case in enumerate(cases) if not case.causes]
    if "known_cause" in asked and without:
        raise InputError(
            f"known_cause needs prompts whose causes are known; {len(without)} of {len(cases)} have none (prompt {without[0]} "
            "first). Take js.pocket_prompts, dictionaries with 'causes', or measure=('leave_one_out', 'aopc') alone."
        )


def aopc(model: Any, prompts: Any, methods: Any = None, **how: Any) -> Faithfulness:
    """How much the prediction suffers as the tokens with the highest scores are ablated: area over the perturbation curve.

    For each fraction the ``max(1, ⌊fraction · n⌋)`` highest-scored embeddings are ablated together (attention is not masked)
    and the change of one token's log-probability is recorded; ``aopc`` is the area under that curve by the trapezoid rule,
    divided by its width. Lower is better. ``protocol="authors"`` takes their three fractions, does not divide, explains the
    token that follows while it evaluates the model's own choice, and states their standard error.

    Args:
        model, prompts, methods: see `evaluate`.
        how: ``protocol``, ``progress``, and fields of `Protocol`, ``ablation="mean"`` for one.

    Raises:
        InputError: as `evaluate`.

    Example:
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), js.pocket_prompts("assistant", 3)
        >>> result = js.faithfulness.aopc(model, prompts, ["fisher_input", "random"], ablation="mean")
        >>> result.difference("fisher_input", "random").mean < 0
        True
    """
    return evaluate(model, prompts, methods, "aopc", **how)["aopc"]


def leave_one_out(model: Any, prompts: Any, methods: Any = None, **how: Any) -> Faithfulness:
    """Whether a method ranks tokens as leaving each one out does, by ``KL(p ‖ p_ablated)`` of the whole distribution.

    ``percentile`` of the method's highest token among all ablations (0 is the strongest), whether it is among the strongest
    5 %, and Spearman's correlation of scores and divergences over the prompt's tokens.

    Args:
        model, prompts, methods, how: see `aopc`.

    Raises:
        InputError: as `evaluate`.
    """
    return evaluate(model, prompts, methods, "leave_one_out", **how)["leave_one_out"]


def known_cause(model: Any, prompts: Any, methods: Any = None, **how: Any) -> Faithfulness:
    """Whether a method points at the cause, on prompts whose cause is known by construction.

    ``top_1``: the highest score is on a cause; ``reciprocal_rank`` of the best-ranked cause; ``share`` of all scores that lies
    on the causes (a squared score, as Fisher's, puts more on its highest). The token explained is the correct next one,
    whatever the model predicts; BOS is not ranked unless the protocol says so.

    Args:
        model, prompts, methods, how: see `aopc`; every prompt needs causes.

    Raises:
        InputError: as `evaluate`, and where a prompt has no known cause.

    Example:
        >>> import jscope_tl as js
        >>> model, prompts = js.load_pocket_model(), js.pocket_prompts("assistant", 3)
        >>> js.faithfulness.known_cause(model, prompts, ["log_prob"]).summary().index.tolist()
        ['log_prob']
    """
    return evaluate(model, prompts, methods, "known_cause", **how)["known_cause"]
