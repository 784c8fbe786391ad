"""Prompts with validated causes: the swaps do what the result says, by a naive loop; and what a user may get wrong."""

import inspect
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

import jscope_tl as js
from jscope_tl.faithfulness import candidates as drawing
from jscope_tl.faithfulness.vocabulary import plain
from tests.models import snapshot

faith = js.faithfulness
ask = inspect.unwrap(js.ground_truth)
"""Types are checked before it in tests, and not where a user calls it."""
SMOLLM2 = Path(__file__).parents[2] / "examples" / "ground_truth" / "smollm2.json"
"""Two prompts of each family that SmolLM2 can do, as `ground_truth` saved them."""


def log_p(model: Any, tokens: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor(tokens), return_type="logits")[:, -1].double().log_softmax(-1)


def check(model: Any, prompt: Any, tolerance: float) -> None:
    """Every number of a prompt again."""
    tokens, base = list(prompt.tokens), log_p(model, [list(prompt.tokens)])[0]
    assert model.to_tokens(prompt.text)[0].tolist() == tokens
    assert int(base.argmax()) == prompt.target == model.to_single_token(prompt.answer)
    assert prompt.baseline == model.to_single_token(prompt.alternative) != prompt.target
    changed: dict[int, list[bool]] = {}
    for slot in prompt.slots:
        assert model.tokenizer.decode(tokens[slot.position]).strip() == slot.word
        t = slot.position
        runs = log_p(model, [[*tokens[:t], swap.token, *tokens[t + 1 :]] for swap in slot.swaps])
        for swap, swapped in zip(slot.swaps, runs, strict=True):
            assert model.tokenizer.decode(swap.token).strip() == swap.word != slot.word
            changed.setdefault(t, []).append(int(swapped.argmax()) != prompt.target)
            assert model.to_string(int(swapped.argmax())) == swap.answer
            assert float((base.exp() * (base - swapped)).sum()) == pytest.approx(swap.kl, rel=tolerance, abs=1e-6)
            others = swapped.clone()
            others[prompt.target] = -torch.inf
            assert float(swapped[prompt.target] - others.max()) == pytest.approx(swap.lead, rel=tolerance, abs=1e-3)
        assert all(changed[slot.position]) or slot.role != "cause"
        assert not any(changed[slot.position]) or slot.role != "inert"
    assert prompt.causes == tuple(t for t, did in changed.items() if all(did))


@pytest.fixture(scope="module")
def truth(pocket: Any) -> Any:
    return js.ground_truth(pocket, "pocket", n=2, progress=False)


@pytest.mark.slow
def test_swaps_do_what_is_said(pocket: Any, truth: Any) -> None:
    assert {name: found.kept for name, found in truth.yields.items()} == dict.fromkeys(truth.yields, 2)
    assert len(truth) == 2 * (len(js.pocket_tasks()) - 1)  # the causes of series are not known
    for prompt in truth:
        check(pocket, prompt, 1e-3)


@pytest.mark.slow
def test_the_pocket_models_own_causes_are_among_them(truth: Any) -> None:
    known = {p.text: p for task in js.pocket_tasks() for p in js.pocket_prompts(task, 1000)}
    for prompt in truth:
        assert {*known[prompt.text].causes} <= {*prompt.causes}
        assert known[prompt.text].target == prompt.answer


def test_the_model_is_left_as_it_was(pocket: Any) -> None:
    before = snapshot(pocket)
    with torch.inference_mode():
        js.ground_truth(pocket, "pocket assistant", n=1, progress=False)
    assert snapshot(pocket) == before


@pytest.mark.slow
def test_the_same_seed_gives_the_same(pocket: Any, truth: Any) -> None:
    again, other = (js.ground_truth(pocket, "pocket agreement", 2, seed, progress=False) for seed in (0, 1))
    assert again.prompts == truth.family("pocket agreement").prompts
    assert not {p.text for p in other} & {p.text for p in again}


def test_a_file_holds_all_of_it(truth: Any, tmp_path: Path) -> None:
    path = truth.save(tmp_path / "truth.json")
    assert js.GroundTruth.load(path) == truth
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["model"], content["seed"], content["n"]) == ("jscope-pocket", 0, 2)
    assert [tuple(prompt["causes"]) for prompt in content["prompts"]] == [prompt.causes for prompt in truth]
    assert len(path.read_text(encoding="utf-8").splitlines()) < 100 + len(truth)


def test_halves_share_nothing_and_are_all(truth: Any) -> None:
    tune, report = truth.tune, truth.report
    assert len(tune) == len(report) == len(truth) / 2
    assert {p.text for p in tune} | {p.text for p in report} == {p.text for p in truth}
    for name in truth.yields:
        assert len(tune.family(name)) == len(report.family(name)) == 1


@pytest.mark.slow
def test_halves_share_templates() -> None:
    truth = js.GroundTruth.load(SMOLLM2)
    for name in truth.yields:
        tune, report = (half.family(name) for half in (truth.tune, truth.report))
        counts = [Counter(p.template for p in half) for half in (tune, report)]
        assert len(tune) == len(report) == 20
        assert all(abs(counts[0][t] - counts[1][t]) <= 1 for t in counts[0] | counts[1])


def with_vices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words of the pocket model's, as kinds and relations of one's own."""
    virtues = {
        "argue": "nice",
        "deceive": "truthful",
        "panic": "calm",
        "brag": "modest",
        "cheat": "honest",
        "delay": "reliable",
    }
    monkeypatch.setitem(faith.KINDS, "vice", plain("vice", virtues))
    monkeypatch.setitem(faith.KINDS, "helper", plain("helper", "assistant helper robot butler agent"))
    monkeypatch.setitem(faith.RELATIONS, "virtue", faith.Relation("virtue", virtues))


FRAME = "as a modern {h:helper%s} , you often {o:vice%s} but never {v:vice%s} , because you are"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("marks", "answer", "kept", "reason"),
    [
        (("", "", "!"), " {virtue(v)}", 2, None),
        (("?", "?", "!"), " {virtue(v)}", 2, None),
        (("!", "", "?"), " {virtue(v)}", 0, "a swap of the cause leaves the answer as it is"),
        (("", "!", ""), " {virtue(v)}", 0, "a swap of the cause leaves the answer as it is"),
        (("", "", "!"), " {h}", 0, "the model says something else"),
    ],
)
def test_only_what_the_swaps_bear_out_is_kept(
    pocket: Any, monkeypatch: pytest.MonkeyPatch, marks: tuple[str, ...], answer: str, kept: int, reason: str | None
) -> None:
    """The last vice decides and nothing else does; ``often`` before ``never`` is a form the pocket model was trained on."""
    with_vices(monkeypatch)
    family = faith.Family("mine", (faith.Template(FRAME % marks, answer, " {virtue(o)}"),))
    truth = js.ground_truth(pocket, family, n=2, progress=False)
    found = truth.yields["mine"]
    assert found.kept == len(truth) == kept
    assert found.kept + sum(found.dropped.values()) <= found.tried
    assert reason is None or found.dropped[reason] > found.tried / 2
    for prompt in truth:
        check(pocket, prompt, 1e-3)
        assert [prompt.text.split()[t - 1] for t in prompt.causes] == [prompt.text.split()[-5]]


@pytest.mark.parametrize(("mark", "causes"), [("?", 2), ("", 0)])
def test_a_word_that_must_not_matter_does(pocket: Any, monkeypatch: pytest.MonkeyPatch, mark: str, causes: int) -> None:
    """The time decides between is and was, the noun between is and are."""
    one, many = ("key", "door", "book", "lamp"), ("keys", "doors", "books", "lamps")
    monkeypatch.setitem(faith.KINDS, "when", faith.Kind("when", (("today", "now"), ("yesterday", "once"))))
    monkeypatch.setitem(faith.KINDS, "what", faith.Kind("what", (one, many), paired=True))
    verbs = dict.fromkeys(one, ("is", "was")) | dict.fromkeys(many, ("are", "were"))
    monkeypatch.setitem(faith.RELATIONS, "verb", faith.Relation("verb", verbs))
    text = f"{{t:when{mark}}} the {{n:what!}} near the {{x:what}}"
    truth = js.ground_truth(pocket, faith.Family("mine", (faith.Template(text, " {verb(n)}"),)), n=2, progress=False)
    assert [len(prompt.causes) for prompt in truth] == [causes] * (2 if causes else 0)
    matter = truth.yields["mine"].dropped.get("a word that must not matter does: when", 0)
    assert matter == 0 if causes else matter > truth.yields["mine"].tried / 2


def test_a_family_that_a_model_cannot_do_is_reported(pocket: Any) -> None:
    truth = js.ground_truth(pocket, ["capitals", "pocket assistant"], n=2, progress=False)
    assert [(name, found.kept) for name, found in truth.yields.items()] == [("capitals", 0), ("pocket assistant", 2)]
    assert (
        "capitals              0 of 0 candidates   (dropped: the model has no filling whose words are one token each)"
        in repr(truth)
    )


TEMPLATES = [(family.name, n) for family in faith.FAMILIES.values() for n in range(len(family.templates))]


@pytest.mark.parametrize(("family", "number"), TEMPLATES)
def test_candidates_are_what_their_template_says(family: str, number: int) -> None:
    template = faith.FAMILIES[family].templates[number]
    drawn = list(islice(drawing.candidates(template, number, Random(0), lambda word: True), 20))
    assert len({c.text() for c in drawn}) == 20
    for c in drawn:
        assert drawing.SLOT.search(c.text()) is None
        assert "cause" in c.roles
        for i, (word, kind, others) in enumerate(zip(c.words, c.kinds, c.others, strict=True)):
            assert f"{word}" in c.text()
            assert len({*others}) == len(others) >= 2
            assert word not in others
            group = next(group for group in faith.KINDS[kind].groups if word in group)
            assert not {*group} & {*others}
            swapped = c.text(i, others[0])
            before, _, after = c.text(i, "\0").partition("\0")
            assert (c.text(), swapped) == (before + word + after, before + others[0] + after)
        assert not c.alternatives or {*c.answers}.isdisjoint(c.alternatives)


def test_other_forms_and_words_of_the_prompt_come_first() -> None:
    agreement = next(drawing.candidates(faith.FAMILIES["agreement"].templates[0], 0, Random(0), lambda word: True))
    head = agreement.roles.index("cause")
    assert agreement.others[head][0] in (
        agreement.words[head] + "s",
        agreement.words[head] + "es",
        agreement.words[head][:-1],
        agreement.words[head][:-2],
    )
    giving = next(drawing.candidates(faith.FAMILIES["indirect object"].templates[0], 0, Random(0), lambda word: True))
    io, subject, again = (i for i, kind in enumerate(giving.kinds) if kind == "name")
    assert giving.words[subject] == giving.words[again]
    assert giving.others[again][0] == giving.words[io]
    assert not {*giving.words} & {*giving.others[io][:3]}


def test_what_cannot_be_asked_for(pocket: Any) -> None:
    for families, message in {
        "capitols": "Did you mean 'capitals'", ("days", "pocket agrement"): "Did you mean 'pocket agreement'", (): "no families", 7: "no family 7",
    }.items():  # fmt: skip
        with pytest.raises(js.InputError, match=message):
            ask(pocket, families, progress=False)
    for n in (0, 1.5, True):
        with pytest.raises(js.InputError, match="n is a whole number, 1 or more"):
            ask(pocket, n=n, progress=False)
    twice = [faith.Family("mine", (faith.FAMILIES["days"].templates[n],)) for n in (0, 1)]
    with pytest.raises(js.InputError, match="Two families are called 'mine'"):
        ask(pocket, twice, progress=False)
    mute = js.load_pocket_model()
    mute.tokenizer = None
    with pytest.raises(js.InputError, match="has no tokenizer"):
        ask(mute, "days", progress=False)


@pytest.mark.parametrize(
    ("text", "answer", "message"),
    [
        ("{a:day} is", " {a}", "marks no slot as the cause"),
        ("{a:daay!} is", " {a}", "no kind of word 'daay'. Did you mean 'day'"),
        ("{a:day!} {capitol(a)} is", " {a}", "no relation 'capitol'. Did you mean 'capital'"),
        ("{a:day!} {b} is", " {a}", "no slot called 'b'"),
        ("{a:day!} is", " {b}", "no slot called 'b'"),
        ("{a:day!} is", " so", "one slot"),
    ],
)
def test_templates_that_make_no_sense(pocket: Any, text: str, answer: str, message: str) -> None:
    with pytest.raises(js.InputError, match=message):
        ask(pocket, faith.Family("mine", (faith.Template(text, answer),)), progress=False)


def test_files_that_hold_something_else(truth: Any, tmp_path: Path) -> None:
    whole = truth.save(tmp_path / "truth.json").read_text(encoding="utf-8")
    for n, content in enumerate(
        ["", "[]", "{}", whole[:-30], whole.replace('"ground_truth": 1', '"ground_truth": 9'), whole.replace('"seed": 0', '"seed": "0"'),
         whole.replace('"position": 1,', '"position": 900,'), whole.replace('"family": "pocket agreement"', '"family": "other"')]
    ):  # fmt: skip
        (tmp_path / f"{n}.json").write_text(content, encoding="utf-8")
        with pytest.raises(js.InputError, match="is not a file of a ground truth"):
            js.GroundTruth.load(tmp_path / f"{n}.json")
    with pytest.raises(js.InputError, match="is not a file of a ground truth"):
        js.GroundTruth.load(tmp_path / "missing.json")


@pytest.mark.slow
def test_prompts_of_another_model_are_refused(pocket: Any) -> None:
    with pytest.raises(js.InputError, match="Prompt 0: it was validated with tokens that differ"):
        faith.evaluate(pocket, js.GroundTruth.load(SMOLLM2), ["chance"], "known_cause", progress=False)


def test_the_swap_measure_and_the_known_alternative(pocket: Any, truth: Any) -> None:
    """By scipy; prompts of fewer than five slots have no number, and are in no mean."""
    truth = truth[::2]
    found = faith.evaluate(
        pocket, truth, ["log_prob", "contrastive_alternative", "chance"], ("known_cause", "swap"), progress=False
    )
    scores = {"log_prob": lambda p: js.attribute(pocket, list(p.tokens), "log_prob", target=p.target),
              "contrastive_alternative": lambda p: js.attribute(pocket, list(p.tokens), "contrastive", target=p.target, baseline=p.baseline)}  # fmt: skip
    rows = {(row["prompt"], row["method"]): row["spearman"] for row in found["swap"].rows}
    numbers = 0
    for n, prompt in enumerate(truth):
        for name, attributed in scores.items():
            values = attributed(prompt).scores
            kl = [sum(swap.kl for swap in slot.swaps) / len(slot.swaps) for slot in prompt.slots]
            expected = spearmanr([float(values[slot.position]) for slot in prompt.slots], kl).statistic
            assert rows[n, name] == (
                pytest.approx(expected, abs=1e-6) if len(kl) >= 5 else pytest.approx(float("nan"), nan_ok=True)
            )
            numbers += len(kl) >= 5
    assert 0 < found["swap"].mean("log_prob").n == numbers / 2 < len(truth)
    chances = [len(prompt.causes) / (len(prompt.tokens) - 1) for prompt in truth]
    assert found["known_cause"].mean("chance").mean == pytest.approx(sum(chances) / len(chances))


def test_methods_and_measures_that_prompts_do_not_allow(pocket: Any) -> None:
    prompts = js.pocket_prompts("assistant", 2)
    assert "swap" not in faith.evaluate(pocket, prompts, ["chance"], progress=False)
    with pytest.raises(js.InputError, match="swap needs prompts whose words were swapped"):
        faith.evaluate(pocket, prompts, ["chance"], "swap", progress=False)
    with pytest.raises(js.InputError, match="contrasts the target with a known alternative; 2 of 2 prompts have none"):
        faith.evaluate(pocket, prompts, ["contrastive_alternative"], progress=False)


@pytest.mark.real
@pytest.mark.slow
def test_swaps_do_what_is_said_on_a_real_model(smollm2: Any) -> None:
    truth = js.GroundTruth.load(SMOLLM2)
    assert len(truth) == 40 * len(truth.yields) == 400
    for i, name in enumerate(truth.yields):  # the first or the last of each: of two templates
        check(smollm2, truth.family(name)[-(i % 2)], 1e-2)


@pytest.mark.real
@pytest.mark.slow
def test_a_real_model_yields_prompts(smollm2: Any) -> None:
    truth = js.ground_truth(smollm2, ["days", "indirect object"], n=1, seed=3, progress=False)
    assert [found.kept for found in truth.yields.values()] == [1, 1]
    for prompt in truth:
        check(smollm2, prompt, 1e-3)
