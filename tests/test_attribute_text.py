"""`attribute_text`: rows of tokens and of spans, against `attribute` and against float64 gradients of the bare model."""

import copy
from typing import Any

import pytest
import torch

import jscope_tl as js
from tests import models, oracles
from tests.models import TOKENS, Tiny, snapshot

PROMPT, ANSWER = TOKENS[:5], TOKENS[5:]
POSITIONS = [4, 5, 6]
TOLERANCE = 1e-4


def gradient(family: str, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Of the log-probability of a span of the answer in float64: by the embeddings, these, and the number itself."""
    hf = copy.deepcopy(models.hf_model(family)).double()
    _, x = oracles.trunk(hf, TOKENS, 0)
    inside = hf.config.hidden_size**0.5 if hf.config.model_type == "gemma2" and oracles.V4 else 1.0
    x = x.clone().requires_grad_()
    y = hf.base_model(inputs_embeds=x[None] / inside, use_cache=False).last_hidden_state[0]
    log_p = oracles.logits_of(hf, y).log_softmax(-1)
    total = torch.stack([log_p[4 + i, ANSWER[i]] for i in range(start, stop)]).sum()
    (found,) = torch.autograd.grad(total, x)
    return found, x.detach(), float(total.detach())


@pytest.mark.parametrize("name", oracles.SCOPES)
def test_rows_are_those_of_attribute(tiny: Tiny, name: str) -> None:
    options = {key: value for key, value in oracles.SCOPES[name][0].items() if key != "target"}
    result = js.attribute_text(tiny.model, PROMPT, ANSWER, scope=name, **options)
    for row, position in zip(result.scores, POSITIONS, strict=True):
        alone = js.attribute(tiny.model, TOKENS, name, position=position, **options)
        assert oracles.relative_difference(row, alone.scores) < TOLERANCE
        assert not row[position + 1 :].any()
    assert result.unit == alone.unit
    assert result.provenance.n_forward == 1


@pytest.mark.parametrize("span", [(0, 1), (0, 2), (1, 3), (0, 3)])
def test_rows_of_spans_are_gradients_of_their_log_probability(tiny: Tiny, span: tuple[int, int]) -> None:
    expected, x, log_prob = gradient(tiny.family, *span)
    result = js.attribute_text(tiny.model, PROMPT, ANSWER, spans=[span])
    assert oracles.relative_difference(result.scores[0], expected.norm(dim=1)) < TOLERANCE
    assert result.rows[0].log_prob == pytest.approx(log_prob, abs=1e-4)
    assert result.provenance.n_backward == 1
    dot = js.attribute_text(tiny.model, PROMPT, ANSWER, spans=[span], reduction="dot")
    assert dot.signed is not None
    assert oracles.relative_difference(dot.signed[0], (expected * x).sum(1)) < TOLERANCE
    assert torch.equal(dot.scores, dot.signed.abs())
    elementwise = js.attribute_text(tiny.model, PROMPT, ANSWER, spans=[span], reduction="elementwise")
    assert oracles.relative_difference(elementwise.scores[0], (expected * x).norm(dim=1)) < TOLERANCE


def test_a_span_is_no_sum_of_norms(tiny: Tiny) -> None:
    """Rows of its tokens add up as vectors, so that norms may be far from adding up; two that cancel show it."""
    rows = torch.stack([gradient(tiny.family, i, i + 1)[0] for i in range(3)])
    span = js.attribute_text(tiny.model, PROMPT, ANSWER, spans="message").scores[0]
    assert oracles.relative_difference(span, rows.sum(0).norm(dim=1)) < TOLERANCE
    assert oracles.relative_difference(span, rows.norm(dim=2).sum(0)) > 100 * TOLERANCE


@pytest.mark.slow
def test_many_spans_are_each_as_by_itself(llama: Any) -> None:
    spans = [(1, 3), (0, 2), (2, 3), (0, 3)]
    for scope, options in (("log_prob", {}), ("temperature", {}), ("fisher", {"method": "exact"})):
        together = js.attribute_text(llama, PROMPT, ANSWER, scope=scope, spans=spans, **options)
        for row, span in zip(together.scores, spans, strict=True):
            alone = js.attribute_text(llama, PROMPT, ANSWER, scope=scope, spans=[span], **options)
            torch.testing.assert_close(row, alone.scores[0], rtol=1e-4, atol=1e-6)
            again = together.span(*span)
            torch.testing.assert_close(row, again.scores[0], rtol=1e-4, atol=1e-6)
            assert [(r.start, r.stop) for r in again.rows] == [span]


@pytest.mark.parametrize("scope", ["log_prob", "fisher"])
def test_a_continuation_may_be_a_string_ids_or_a_tensor(pocket: Any, scope: str) -> None:
    text, ids = " the door are", pocket.tokenizer(" the door are", add_special_tokens=False)["input_ids"]
    prompt = "the keys near"
    expected = js.attribute(pocket, f"{prompt}{text}", scope, position=-2).scores
    for continuation in (text, ids, torch.tensor(ids), torch.tensor([ids])):
        result = js.attribute_text(pocket, prompt, continuation, scope=scope)
        torch.testing.assert_close(result.scores[-1], expected, rtol=1e-4, atol=1e-6)
        assert result.continued == "given"
        assert [token.target.token for token in result.predictions] == ids


def test_predictions_are_the_models(tiny: Tiny) -> None:
    result = js.attribute_text(tiny.model, PROMPT, ANSWER)
    with torch.no_grad():
        p = tiny.hf(TOKENS[None]).logits[0].double().softmax(-1)
    for i, (position, found) in enumerate(zip(POSITIONS, result.predictions, strict=True)):
        target = int(ANSWER[i])
        assert found.target.token == target
        assert found.target.probability == pytest.approx(float(p[position, target]), rel=1e-3)
        assert found.target_rank == int((p[position] > p[position, target]).sum()) + 1
        assert found.top[0].token == int(p[position].argmax())
        assert result.rows[i].probability == pytest.approx(found.target.probability, rel=1e-4)


@pytest.mark.newest_line
def test_settings_go_through(pocket: Any) -> None:
    """Gradient rules, hook points, patterns, paths and hooks do what they do to `attribute`."""
    prompt, answer = "the keys to the cabinet", " near"
    for how in (
        {"at": "blocks.1.hook_resid_pre"}, {"gradient": "attnlrp"}, {"at": "pattern", "gradient": "attnlrp"}, {"path": js.Line(steps=3)},
        {"fwd_hooks": [("blocks.0.hook_resid_pre", lambda x, hook: 0.5 * x)]}, {"frozen": ("attn", "norm")},
        {"scope": "fisher", "method": "sampled", "rank": 2, "probes": 4, "seed": 5},
    ):  # fmt: skip
        scope = how.pop("scope", "log_prob")
        found = js.attribute_text(pocket, prompt, answer, scope=scope, **how)
        alone = js.attribute(pocket, prompt + answer, scope, position=-2, **how)
        torch.testing.assert_close(found.token_scores[0], alone.scores, rtol=1e-4, atol=1e-6)
        assert found.unit == alone.unit
        assert found.options | {"resolved": None} == alone.options | {"resolved": None}


@pytest.mark.newest_line
def test_span_by_its_text(pocket: Any) -> None:
    result = js.attribute_text(pocket, "the keys near", " the doors are old and the door is new", spans="word")
    assert [row.text for row in result.rows] == [
        " the",
        " doors",
        " are",
        " old",
        " and",
        " the",
        " door",
        " is",
        " new",
    ]
    assert (result.span("doors are").rows[0].start, result.span("doors are").rows[0].stop) == (1, 3)
    assert result.span(-3, 9) is not None
    assert result.span(-3, 9).rows[0].text == " door is new"
    assert result.grouped("sentence").span(" old").by == "sentence"
    listed = js.attribute_text(pocket, "the keys near", " the doors are old", spans=["doors are", (0, 1)])
    assert [(row.start, row.stop) for row in listed.rows] == [(1, 3), (0, 1)]


WRONG_SPANS: dict[str, tuple[Any, str]] = {
    "outside": ([(2, 9)], r"\(2, 9\) is outside the continuation of 4 tokens"),
    "empty": ([(2, 2)], "or empty"),
    "backwards": ([(3, 1)], "or empty"),
    "none": ([], "or a list of"),
    "an unknown name": ("paragraph", "spans is 'token', 'word'"),
    "twice": (["the"], "occurs 2 times"),
    "not there": (["zebra"], "occurs 0 times"),
    "blank": ([" "], "times in the continuation"),
    "cut": (["doo"], "within the token ' doors'"),
    "cut in front": (["oors"], "within the token ' doors'"),
}


@pytest.mark.newest_line
@pytest.mark.parametrize("name", WRONG_SPANS)
def test_what_is_no_span(pocket: Any, name: str) -> None:
    spans, says = WRONG_SPANS[name]
    with pytest.raises(js.InputError, match=says):
        js.attribute_text(pocket, "the keys near", " the doors the are", spans=spans)


@pytest.mark.newest_line
def test_no_targets(pocket: Any) -> None:
    with pytest.raises(js.InputError, match="Pass the text as continuation"):
        js.attribute_text(pocket, "the keys near", " the doors", scope="log_prob", target=" the")
    with pytest.raises(js.InputError, match="continuation is empty"):
        js.attribute_text(pocket, "the keys near", "")
    with pytest.raises(js.InputError, match="There is no row 2; this result has 2"):
        js.attribute_text(pocket, "the keys near", " the doors").top(1, row=2)


def test_nothing_of_the_users_is_changed(tiny: Tiny) -> None:
    before = snapshot(tiny.model)
    with torch.inference_mode():
        inside = js.attribute_text(tiny.model, PROMPT, ANSWER, spans="message")
    assert snapshot(tiny.model) == before
    with pytest.raises(js.InputError):
        js.attribute_text(tiny.model, PROMPT, ANSWER, spans=[(0, 9)])
    assert snapshot(tiny.model) == before
    assert torch.equal(inside.scores, js.attribute_text(tiny.model, PROMPT, ANSWER, spans="message").scores)


@pytest.mark.newest_line
def test_files(pocket: Any, tmp_path: Any) -> None:
    """What comes from a file groups as before, and has no model to explain other spans with."""
    result = js.attribute_text(pocket, "the keys near . the door", " is old .", by="sentence")
    back = js.TextAttribution.load(result.save(tmp_path / "answer"))
    assert isinstance(back, js.TextAttribution)
    assert torch.equal(back.scores, result.scores)
    assert back.sources == result.sources
    assert torch.equal(back.grouped("word").scores, result.grouped("word").scores)
    with pytest.raises(js.InputError, match="Call js.attribute_text again"):
        back.span(0, 2)


def test_one_pair_is_one_span(llama: Any) -> None:
    alone, listed = (js.attribute_text(llama, PROMPT, ANSWER, spans=spans) for spans in ((0, 2), [(0, 2)]))
    assert alone.rows == listed.rows
    assert torch.equal(alone.scores, listed.scores)
