"""The measures against naive loops, the statistics against their formulas, and what the command makes of files."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor

import jscope_tl as js
from jscope_tl.cli import command as cli
from jscope_tl.cli.faithfulness import table
from jscope_tl.faithfulness import measures
from jscope_tl.faithfulness.cases import Case, to_cases
from jscope_tl.faithfulness.methods import at_random
from jscope_tl.faithfulness.results import Faithfulness
from jscope_tl.model.view import ModelView
from jscope_tl.results.ranks import kendall
from tests.conftest import shared_tiny
from tests.models import ANY_KIND, TOKENS, snapshot

faith = js.faithfulness
evaluate = inspect.unwrap(faith.evaluate)


def measured(measure: str, model: Any, prompts: Any, methods: Any, **how: Any) -> Faithfulness:
    """One measure of some methods."""
    return faith.evaluate(model, prompts, methods, measure, progress=False, **how)[measure]


def ascending(model: Any, tokens: Tensor, target: int) -> Tensor:
    """The later the token, the higher."""
    return torch.arange(len(tokens)).double()


def log_p(model: Any, tokens: Tensor, ablated: list[int], value: Any = 0.0) -> Tensor:
    """Of the next token, with some embeddings replaced, by a hook of the naive kind."""

    def blank(embedded: Tensor, hook: Any) -> Tensor:
        embedded = embedded.clone()
        embedded[0, ablated] = value
        return embedded

    with torch.no_grad():
        logits = model.run_with_hooks(tokens[None], fwd_hooks=[("hook_embed", blank)], return_type="logits")
    return logits[0, -1].double().log_softmax(-1)


@pytest.mark.parametrize("ablation", ["zero", "mean", "pad"])
def test_aopc_by_the_authors_conventions(kind: str, ablation: str) -> None:
    """Trapezoid over 5, 10, 20 %, not divided; the model's own choice is followed; every position counts."""
    model = shared_tiny(kind, "gpt2").model
    tokens = torch.randint(3, 500, (23,), generator=torch.Generator().manual_seed(1))
    result = measured(
        "aopc", model, [tokens], {"ascending": faith.Method(ascending)}, protocol="authors", ablation=ablation
    )
    prompt, value = (
        tokens[:-1],
        {"zero": 0.0, "mean": model.W_E.detach().mean(0), "pad": model.W_E[2].detach()}[ablation],
    )
    base = log_p(model, prompt, [])
    changes = [
        float((log_p(model, prompt, list(range(22 - max(1, int(k * 22)), 22)), value) - base)[base.argmax()])
        for k in (0.05, 0.1, 0.2)
    ]
    row = result.rows[0]
    assert [row["at_0.05"], row["at_0.1"], row["at_0.2"]] == pytest.approx(changes, rel=1e-4, abs=1e-6)
    area = (changes[0] + changes[1]) / 2 * 0.05 + (changes[1] + changes[2]) / 2 * 0.1
    assert row["aopc"] == pytest.approx(area, rel=1e-4)


def test_the_corrected_curve_is_a_mean_change(llama: Any) -> None:
    """BOS is left alone, the curve runs from no token to all, and a constant change would be its own area."""
    result = measured("aopc", llama, [TOKENS], {"ascending": faith.Method(ascending)}, fractions=(0.0, 0.5, 1.0))
    prompt, row = TOKENS[:-1], result.rows[0]
    base = log_p(llama, prompt, [])
    half, whole = (
        float((log_p(llama, prompt, places) - base)[base.argmax()]) for places in ([4, 5, 6], [*range(1, 7)])
    )
    assert (row["at_0"], row["at_0.5"], row["at_1"]) == pytest.approx((0, half, whole), rel=1e-4)
    assert row["aopc"] == pytest.approx(0.5 * half / 2 + 0.5 * (half + whole) / 2, rel=1e-4)


def test_leave_one_out_by_a_loop(llama: Any) -> None:
    for with_bos in (False, True):
        result = measured("leave_one_out", llama, [TOKENS], {"ascending": faith.Method(ascending)}, bos=with_bos)
        kept = range(0 if with_bos else 1, 7)
        base = log_p(llama, TOKENS[:-1], [])
        kl = np.array([float((base.exp() * (base - log_p(llama, TOKENS[:-1], [t]))).sum()) for t in kept])
        row = result.rows[0]
        assert row["percentile"] == pytest.approx(100 * (kl > kl[-1]).sum() / len(kl))
        assert row["in_top_5"] == float((kl > kl[-1]).sum() == 0)
        ranks = kl.argsort().argsort()
        assert row["spearman"] == pytest.approx(np.corrcoef(ranks, np.arange(len(kl)))[0, 1])
        assert row["kendall"] == pytest.approx(kendalltau(np.arange(len(kl)), kl).statistic)
        assert row["top_10_overlap"] == float(kl.argmax() == len(kl) - 1)


def test_rank_correlations_with_equal_values() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 4, (2, 9)).astype(float)
        assert kendall(a, b) == pytest.approx(kendalltau(a, b).statistic)
    assert kendall(np.ones(4), np.arange(4.0)) == 0


def test_overlap_of_the_highest_by_hand() -> None:
    """10 % of 20 are two; three equal values share one place."""
    values = np.array([9.0, 5, 5, 5, *range(-16, 0)])
    kl = np.array([8.0, 9.0, *range(-18, 0)])
    row = measures._ranked(values, kl)
    assert row["top_10_overlap"] == pytest.approx((1 + 1 / 3) / 2)


@pytest.mark.parametrize("filler", [" the", 7])
def test_a_named_filler_takes_the_tokens_place(pocket: Any, filler: str | int) -> None:
    prompt = js.pocket_prompts("assistant", 1)[0]
    tokens = pocket.to_tokens(prompt.text)[0]
    result = measured(
        "aopc",
        pocket,
        [prompt],
        {"ascending": faith.Method(ascending)},
        ablation="filler",
        filler=filler,
        fractions=(0.0, 1.0),
    )
    filled = tokens.clone()
    filled[1:] = filler if isinstance(filler, int) else pocket.to_single_token(filler)
    base, left = log_p(pocket, tokens, []), log_p(pocket, filled, [])
    assert result.rows[0]["at_1"] == pytest.approx(float((left - base)[base.argmax()]), rel=1e-4)


def test_fillers_that_are_none(pocket: Any) -> None:
    prompts = js.pocket_prompts("assistant", 1)
    for changes, message in (
        ({"ablation": "filler"}, "needs filler="), ({"filler": " the"}, "needs filler="),
        ({"ablation": "filler", "filler": " xyzzy"}, "not in the vocabulary"),
    ):  # fmt: skip
        with pytest.raises(js.InputError, match=message):
            measured("aopc", pocket, prompts, ["chance"], **changes)


def test_prompts_without_a_number_are_in_no_mean() -> None:
    result = made({"aopc": np.array([[1.0, np.nan, 3.0], [2.0, np.nan, 2.0]])})
    assert (result.mean("a").mean, result.mean("a").n) == (2.0, 2)
    assert result.difference("b", "a").mean == 0.0
    none = made({"aopc": np.array([[np.nan]])}).mean("a")
    assert (none.n, np.isnan(none.mean)) == (0, True)


def test_the_effect_itself_is_faithful(llama: Any) -> None:
    """A method that is the leave-one-out effect gets the best marks there are."""

    def oracle(model: Any, tokens: Tensor, target: int) -> Tensor:
        base = log_p(model, tokens, [])
        return torch.stack([(base.exp() * (base - log_p(model, tokens, [t]))).sum() for t in range(len(tokens))])

    row = measured("leave_one_out", llama, [TOKENS], {"oracle": faith.Method(oracle)}).rows[0]
    assert (row["percentile"], row["in_top_5"], row["spearman"]) == (0.0, 1.0, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("values", "top", "reciprocal", "share"),
    [
        ([9.0, 1.0, 5.0, 2.0], 1.0, 1.0, 5 / 8),  # position 0 is BOS
        ([0.0, 6.0, 5.0, 7.0], 0.0, 1 / 3, 5 / 18),
        ([0.0, 5.0, 5.0, 2.0], 0.5, 1 / 1.5, 5 / 12),  # equal scores as in random order
        ([0.0, 0.0, 0.0, 0.0], 1 / 3, 1 / 2, 1 / 3),
    ],
)
def test_known_cause_by_hand(values: list[float], top: float, reciprocal: float, share: float) -> None:
    case = Case(torch.tensor([0, 7, 8, 9]), target=5, causes=(2,), bos=(0,))
    question = faith.Question(ModelView(shared_tiny(ANY_KIND, "llama").model), case, faith.CORRECTED, argmax=5)
    found = faith.MEASURES["known_cause"].function(question, {"m": torch.tensor(values)})["m"]
    assert (found["top_1"], found["reciprocal_rank"], found["share"]) == pytest.approx((top, reciprocal, share))
    inner = torch.tensor(values)[1:3]  # position 3 is the last
    assert found["top_1_without_last"] == float((inner == inner.max())[1]) / int((inner == inner.max()).sum())


def test_a_cause_that_is_last_is_no_hit_without_it() -> None:
    view = ModelView(shared_tiny(ANY_KIND, "llama").model)
    for causes, expected in (((3,), float("nan")), ((1, 3), 0.0)):
        case = Case(torch.tensor([0, 7, 8, 9]), target=5, causes=causes, bos=(0,))
        question = faith.Question(view, case, faith.CORRECTED, argmax=5)
        found = faith.MEASURES["known_cause"].function(question, {"m": torch.tensor([0.0, 1.0, 2.0, 3.0])})["m"]
        assert (found["top_1"], found["top_1_without_last"]) == pytest.approx((1.0, expected), nan_ok=True)


def test_the_right_token_is_explained_and_evaluated(llama: Any) -> None:
    """The authors explain the token that follows; the corrected measure explains what it evaluates."""
    asked: list[int] = []

    def spy(model: Any, tokens: Tensor, target: int) -> Tensor:
        asked.append(target)
        return torch.ones(len(tokens))

    argmax = int(log_p(llama, TOKENS[:-1], []).argmax())
    for protocol in ("authors", "corrected"):
        measured("aopc", llama, [TOKENS], {"spy": faith.Method(spy)}, protocol=protocol)
    measured("known_cause", llama, [{"prompt": TOKENS[:-1], "target": 431, "causes": [2]}], {"spy": faith.Method(spy)})
    assert asked == [431, argmax, 431]


def made(columns: dict[str, np.ndarray], protocol: Any = faith.CORRECTED) -> Faithfulness:
    """A result with given numbers: ``[method, prompt]`` in each column."""
    methods = tuple("abcdef"[: len(next(iter(columns.values())))])
    costs = {"n_tokens": 9, "passes": 1, "seconds": 0.1}
    rows = [
        {"prompt": i, "method": m, "task": "", "correct": True, **costs, **{c: v[j, i] for c, v in columns.items()}}
        for i in range(next(iter(columns.values())).shape[1])
        for j, m in enumerate(methods)
    ]
    return Faithfulness("aopc", methods, measures.AOPC, rows, protocol, "made")


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    of_prompt = 5 * rng.normal(size=80)
    noise = rng.normal(size=(2, 80))
    result = made({"aopc": of_prompt + 0.1 * noise + np.array([[0.0], [0.2]])})
    difference = result.difference("b", "a")
    assert difference.low > 0.1 > 0
    assert difference.high < 0.3
    assert result.mean("a").high - result.mean("a").low > 1
    values = result.values("aopc")
    assert difference.stderr == pytest.approx((values[1] - values[0]).std(ddof=1) / 80**0.5)
    assert result.difference("a", "a").high == 0


def test_intervals_hold_the_truth() -> None:
    """95 % of a bootstrap over 40 prompts hold the mean in most of 300 experiments."""
    rng = np.random.default_rng(1)
    means = [made({"aopc": rng.exponential(size=(1, 40))}).mean("a") for _ in range(300)]
    assert 0.88 < np.mean([m.low < 1 < m.high for m in means]) < 0.98


def test_the_authors_error_takes_points_for_independent() -> None:
    """Points of one prompt go together, and then the stated error is too small: here by 1/√(Σw²)·Σw."""
    rng = np.random.default_rng(2)
    point = rng.normal(size=(1, 200))
    weights = np.array([0.025, 0.075, 0.05])
    columns = {"aopc": point * weights.sum(), **{f"at_{f:g}": point for f in faith.AUTHORS.fractions}}
    stated, paired = (
        made(columns, protocol).mean("a").stderr
        for protocol in (faith.AUTHORS, faith.Protocol(faith.AUTHORS.fractions, stderr="paired"))
    )
    assert paired / stated == pytest.approx(weights.sum() / np.sqrt((weights**2).sum()))


def test_attention_baselines(llama: Any) -> None:
    _, cache = llama.run_with_cache(TOKENS[None])
    patterns = torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"][0].mean(0) for layer in range(3)])
    last = faith.METHODS["attention"].function(llama, TOKENS, 0)
    torch.testing.assert_close(last, patterns[-1, -1])
    torch.testing.assert_close(faith.METHODS["attention_mean"].function(llama, TOKENS, 0), patterns[:, -1].mean(0))
    mixed = [0.5 * pattern + 0.5 * torch.eye(8) for pattern in patterns]
    torch.testing.assert_close(
        faith.METHODS["attention_rollout"].function(llama, TOKENS, 0), (mixed[2] @ mixed[1] @ mixed[0])[-1]
    )


@pytest.mark.slow
def test_chance_is_reproducible_and_in_the_middle(pocket: Any) -> None:
    assert torch.equal(at_random(None, TOKENS, 0), at_random(None, TOKENS, 5))
    assert not torch.equal(at_random(None, TOKENS, 0), at_random(None, TOKENS, 0, seed=1))
    prompts = js.pocket_prompts("detective", 60)
    result = measured("leave_one_out", pocket, prompts, ["random"])
    assert 35 < result.mean("random").mean < 65
    assert abs(result.mean("random", "spearman").mean) < 0.15


@pytest.mark.slow
def test_every_method_on_every_class(kind: str) -> None:
    model = shared_tiny(kind, "gpt2").model
    before = snapshot(model)
    cases = [{"prompt": TOKENS[:-1], "target": 431, "causes": (2, 3), "task": "x"}, TOKENS]
    found = faith.evaluate(model, cases, progress=False)
    methods = {*faith.METHODS} - {"contrastive_alternative", "explain_alternative"}  # which these prompts don't have
    assert {len(result.rows) for result in found.values()} == {len(methods), 2 * len(methods)}
    for result in found.values():
        assert np.isfinite(result.summary().drop(columns=[c for c in result.summary() if "stderr" in c])).all(None)
        assert set(result.to_dataframe().method) == methods
        assert result.measure in repr(result)
    assert snapshot(model) == before


def test_methods_of_ones_own(llama: Any) -> None:
    methods = {
        "scope": js.SemanticScope(),
        "keywords": {"scope": "semantic", "reduction": "dot"},
        "name": "temperature",
        "method": faith.Method(lambda model, tokens, target: torch.ones(len(tokens))),
    }
    result = measured("leave_one_out", llama, [TOKENS], methods)
    assert result.methods == tuple(methods)
    with pytest.raises(js.InputError, match=r"'short' returned scores of shape \[3\], torch.float32; needed are 7"):
        measured("leave_one_out", llama, [TOKENS], {"short": faith.Method(lambda *_: torch.ones(3))})


def mean_effect(question: Any, scores: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Of leaving out one token, weighed by the scores."""
    logits = question.logits(torch.eye(len(question.case.tokens)).bool())[:, question.case.target]
    return {
        name: {"effect": float((values * logits).sum() / values.sum()), "last": float(values[-1])}
        for name, values in scores.items()
    }


COLUMNS = (faith.Column("effect", -1, "the mean logit left"), faith.Column("last", 0, "the last token's score"))


@pytest.mark.parametrize("needs_cause", [False, True])
def test_a_measure_of_ones_own(llama: Any, needs_cause: bool) -> None:
    own = faith.Measure("mine", "my column", "effect", COLUMNS, needs_cause, mean_effect)
    known = {"prompt": TOKENS[:-1], "target": 431, "causes": [2], "task": "x"}
    found = faith.evaluate(
        llama, [known, TOKENS[:6]], {"up": faith.Method(ascending), "log_prob": "log_prob"}, ("aopc", own)
    )
    assert list(found) == ["aopc", "mine"]
    result = found["mine"]
    assert (result.measure, result.methods, result.columns) == ("mine", ("up", "log_prob"), COLUMNS)
    assert [row["prompt"] for row in result.rows] == ([0, 0] if needs_cause else [0, 0, 1, 1])

    def left(tokens: Tensor, target: int) -> Tensor:
        raw = []
        for t in range(len(tokens)):
            blank = [("hook_embed", lambda e, hook, t=t: e * (torch.arange(e.shape[1]) != t)[None, :, None])]
            with torch.no_grad():
                raw.append(llama.run_with_hooks(tokens[None], fwd_hooks=blank, return_type="logits")[0, -1, target])
        return torch.stack(raw).double()

    # Where the cause is known the correct token is explained, else what the protocol says: the most probable one.
    explained = 431 if needs_cause else int(log_p(llama, TOKENS[:-1], []).argmax())
    scores = js.attribute(llama, TOKENS[:-1], "log_prob", target=explained).scores.double()
    for row, weights in zip(result.rows, (torch.arange(7).double(), scores), strict=False):
        assert row["effect"] == pytest.approx(float(weights @ left(TOKENS[:-1], 431) / weights.sum()), rel=1e-4)
        assert row["last"] == pytest.approx(float(weights[-1]), rel=1e-6)
        assert (row["task"], row["n_tokens"]) == ("x", 7)
    assert result.mean("up").mean == pytest.approx(np.mean([row["effect"] for row in result.rows[::2]]))
    assert "the mean logit left" in repr(result)


def test_a_registered_measure_is_a_column_of_the_command(
    llama: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = faith.Measure("mine", "my column", "last", COLUMNS, False, mean_effect)
    monkeypatch.setitem(faith.MEASURES, "mine", own)
    found = faith.evaluate(llama, [TOKENS], {"up": faith.Method(ascending), "name": "log_prob"}, ("mine", "aopc"))
    frame, n = table(found)
    assert (list(frame.columns), list(frame.index), n) == (
        ["my column", "AOPC (less is better)", "passes"],
        ["up", "name"],
        1,
    )
    assert frame.loc["up", "my column"] == "6.0 [6.0, 6.0]"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the keys near the door are\n", encoding="utf-8")
    assert cli.main(["faithfulness", "--prompts", str(prompts), "--methods", "log_prob", "--markdown"]) == 0
    assert "| my column |" in capsys.readouterr().out


def test_a_plain_function_is_a_scope_of_the_state(llama: Any) -> None:
    """With options of its own as keywords; without a target of its own it is asked for the token that is explained."""
    seen: dict[str, Tensor] = {}

    def keep(question: Any, scores: dict[str, Tensor]) -> dict[str, dict[str, float]]:
        seen.update(scores)
        return {name: {"effect": 0.0, "last": 0.0} for name in scores}

    def margin(state: js.State, target: Any = None, over: int = 1) -> Tensor:
        token = state.to_id(target)
        return state.gradient(lambda logits: logits[token] - logits[over])

    methods = {"function": margin, "keywords": {"scope": margin, "over": 9}, "told": {"scope": margin, "target": 5}}
    own = faith.Measure("mine", "mine", "effect", COLUMNS, True, keep)
    faith.evaluate(llama, [{"prompt": TOKENS[:-1], "target": 431, "causes": [2]}], methods, own)
    for name, (target, over) in {"function": (431, 1), "keywords": (431, 9), "told": (5, 1)}.items():
        scope = js.ContrastiveScope(target, baseline=over)
        expected = js.attribute(llama, TOKENS[:-1], scope).scores.double()
        torch.testing.assert_close(seen[name], expected, rtol=1e-5, atol=0)


def test_each_prompt_is_explained_once(llama: Any) -> None:
    """Whatever the number of measures; and anew where another prompt has the same target."""
    asked: list[list[int]] = []

    def spy(model: Any, tokens: Tensor, target: int) -> Tensor:
        asked.append(tokens.tolist())
        return torch.ones(len(tokens))

    prompts = [{"prompt": tokens, "target": 431, "causes": [2]} for tokens in (TOKENS[:-1], TOKENS[:5])]
    faith.evaluate(llama, prompts, {"spy": faith.Method(spy)}, explained="target")
    assert asked == [TOKENS[:-1].tolist(), TOKENS[:5].tolist()]


def test_gradients_are_taken_where_they_are_off(llama: Any) -> None:
    with torch.inference_mode():
        inside = measured("aopc", llama, [TOKENS], ["log_prob"]).rows[0]["aopc"]
    assert inside == measured("aopc", llama, [TOKENS], ["log_prob"]).rows[0]["aopc"]


def test_prompts_of_many_kinds(pocket: Any) -> None:
    view = ModelView(pocket)
    text = "the keys to the cabinet are"
    as_text, as_ids, as_pair = to_cases(
        view, [text, pocket.to_tokens(text)[0], {"prompt": "the keys to the cabinet", "target": " are"}]
    )
    for case in (as_ids, as_pair):
        assert case.target == as_text.target
        assert torch.equal(case.tokens, as_text.tokens)
        assert case.bos == (0,)


@pytest.mark.parametrize(
    ("prompts", "how", "says"),
    [
        ("one string", {}, "a list of prompts"),
        ([], {}, "no prompts to measure on"),
        (["the"], {}, "Prompt 0: its last token"),
        ([{"prompt": "the keys", "target": " are", "causes": [0]}], {"measures": "known_cause"}, "only causes are BOS"),
        ([{"prompt": "the keys", "target": " are", "causes": torch.tensor(9)}], {}, "causes are positions among"),
        ([{"prompt": "the keys", "target": " are", "causes": "x"}], {}, "causes are positions among"),
        ([("the keys", " are")], {}, "One prompt at a time"),
        (["the keys are here"], {"methods": [{"scope": "fisher"}]}, "In a list, methods are names"),
        (["the keys are here"], {"fractions": ["a"]}, "increasing numbers"),
        (["the keys are here"], {"measures": ()}, "measures are one or more of"),
        ([{"text": "the keys are"}], {}, "Prompt 0: has the keys"),
        (
            [{"prompt": "the keys", "target": " are", "causes": [9]}],
            {},
            "causes are positions among the 3 tokens before",
        ),
        (["the keys are here"], {"measures": "known_cause"}, "1 of 1 have none"),
        (["the keys are here"], {"measures": "aopcs"}, "measures are one or more of"),
        (["the keys are here"], {"methods": ["fischer"]}, "Did you mean 'fisher'"),
        (
            ["the keys are here"],
            {"methods": {"x": 3}},
            "a function of the state, keywords of js.attribute or a js.faithfulness.Method; got 3",
        ),
        (["the keys are here"], {"methods": []}, "no methods"),
        (["the keys are here"], {"ablations": "zero"}, "Did you mean 'ablation'"),
        (["the keys are here"], {"ablation": "nothing"}, "ablation is one of zero, mean, pad"),
        (["the keys are here"], {"fractions": (0.5, 0.1)}, "increasing numbers"),
        (["the keys are here"], {"protocol": "author"}, "Did you mean 'authors'"),
    ],
)
def test_wrong_input(pocket: Any, prompts: Any, how: dict[str, Any], says: str) -> None:
    with pytest.raises(js.InputError, match=says):
        evaluate(pocket, prompts, **({"measures": ("leave_one_out",)} | how), progress=False)


def test_wrong_questions(llama: Any) -> None:
    result = measured("leave_one_out", llama, [TOKENS], ["log_prob"])
    with pytest.raises(js.InputError, match="Did you mean 'spearman'"):
        result.mean("log_prob", "spearmann")
    with pytest.raises(js.InputError, match="'logprob' was not measured. Did you mean 'log_prob'"):
        result.mean("logprob")
    with pytest.raises(js.InputError, match="No prompt is left"):
        result.summary(task="detective")


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "prompts.jsonl"
    with_cause = {"prompt": "the keys to the cabinet", "target": " are", "causes": [2]}
    lines.write_text("the keys near the door are\n\n" + json.dumps(with_cause) + "\n", encoding="utf-8")
    chosen = ["--prompts", str(lines), "--methods", "log_prob", "random"]
    out = ["--csv", str(tmp_path), "--figure", str(tmp_path)]
    assert cli.main(["faithfulness", *chosen, *out]) == 0
    said = capsys.readouterr().out
    assert "cause on top" in said
    assert "LOO-KL Spearman" in said
    assert "2 prompts" in said
    for name in ("known_cause", "leave_one_out", "aopc"):
        assert (tmp_path / f"{name}.csv").read_text().count("\n") >= 3
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    assert cli.main(["faithfulness", *chosen, "--markdown"]) == 0
    assert "| `log_prob` |" in capsys.readouterr().out
    assert cli.main(["faithfulness", *chosen, "--json", "--protocol", "authors"]) == 0
    assert len(json.loads(capsys.readouterr().out)["aopc"]) == 4
    assert cli.main(["faithfulness", "--n", "1", "--methods", "random"]) == 0
    assert "detective" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "arguments", "says"),
    [
        (None, [], "cannot be read"),
        ("\n", [], "There are no prompts"),
        ("{broken", [], "Line 1"),
        ("the keys are", ["--n", "0"], "--n is how many"),
        ("the keys are", ["--methods", "nothing"], "There is no method"),
        ("the keys are", ["--model", "no/such-model"], "could not be loaded"),
    ],
)
def test_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, arguments: list[str], says: str
) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert cli.main(["faithfulness", "--prompts", str(path), *arguments]) == (3 if "--model" in arguments else 2)
    assert says in capsys.readouterr().err


def test_seconds_and_passes_are_counted(llama: Any) -> None:
    rows = measured(
        "leave_one_out",
        llama,
        [TOKENS],
        ["log_prob", "fisher_1", "attention", "integrated_gradients", "contrastive", "random"],
    ).rows
    passes = {row["method"]: row["passes"] for row in rows}
    assert passes == {
        "log_prob": 2,
        "fisher_1": 2,
        "attention": 1,
        "integrated_gradients": 42,
        "contrastive": 3,
        "random": 0,
    }
    assert all(row["seconds"] > 0 for row in rows)


def test_causes_are_where_the_words_are(pocket: Any) -> None:
    """Also without a BOS, as by the authors' protocol."""
    view, prompts = ModelView(pocket), js.pocket_prompts("detective", 5)
    for prepend_bos in (True, False):
        for prompt, case in zip(prompts, to_cases(view, prompts, prepend_bos), strict=True):
            words = [pocket.tokenizer.decode([case.tokens[t]]).strip() for t in case.causes]
            assert words == [prompt.text.split()[t - 1] for t in prompt.causes]
            assert case.bos == ((0,) if prepend_bos else ())


def test_causes_of_prompts_that_hold_their_target(pocket: Any) -> None:
    whole = {"prompt": "the keys to the cabinet are", "causes": np.array([2]), "task": "x"}
    apart = {"prompt": "the keys to the cabinet", "target": " are", "causes": [2]}
    for case in to_cases(ModelView(pocket), [whole, apart]):
        assert (case.causes, case.target, len(case.tokens)) == ((2,), pocket.to_single_token(" are"), 6)


def test_scopes_explain_the_right_token_however_they_are_given(pocket: Any) -> None:
    case = {"prompt": "the keys to the cabinet", "target": " is", "causes": [2]}  # not what the model would say
    same = {
        "name": "semantic",
        "object": js.SemanticScope(),
        "class": js.SemanticScope,
        "keywords": {"reduction": "row_norm"},
        "class in keywords": {"scope": js.SemanticScope},
    }
    shares = [row["share"] for row in measured("known_cause", pocket, [case], same).rows]
    assert shares == pytest.approx([shares[0]] * 5)
    other = measured("known_cause", pocket, [case], {"are": js.SemanticScope(" are")}).rows[0]["share"]
    assert other != pytest.approx(shares[0])


def test_pocket_prompts_are_for_the_pocket_models_tokenizer(pocket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from jscope_tl.faithfulness import cases

    monkeypatch.setattr(cases, "to_str_tokens", lambda view, ids: ["?" for _ in ids])
    with pytest.raises(js.InputError, match="tokens of the pocket model's tokenizer"):
        to_cases(ModelView(pocket), js.pocket_prompts("agreement", 1))


@pytest.mark.slow
def test_equal_scores_are_ablated_in_no_order(pocket: Any) -> None:
    """All-equal scores do as chance does, not as the start of the prompt does."""
    prompts = js.pocket_prompts("repetition", 20)
    methods = {
        "even": faith.Method(lambda model, tokens, target: torch.ones(len(tokens))),
        "earliest": faith.Method(lambda model, tokens, target: -torch.arange(len(tokens)).double()),
        "random": "random",
    }
    found = measured("aopc", pocket, prompts, methods)
    assert found.difference("even", "random").low < 0 < found.difference("even", "random").high
    assert found.values("aopc")[0].tolist() != found.values("aopc")[1].tolist()
