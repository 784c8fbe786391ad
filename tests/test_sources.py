"""Tokens taken together: by word, sentence, line, message and segments; scores that do not depend on how a block is cut."""

import random
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.model.text import tokenized
from jscope_tl.model.view import ModelView
from jscope_tl.results.sources import BY, sources_of, to_segments
from tests import templates
from tests.models import TOKENS, Tiny
from tests.templates import byte_level, chat
from tests.test_attribute_text import ANSWER, PROMPT, gradient

PROSE = "tom goes to columbia . the keys near the door are old .\nthe south ! he is a"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def answer(pocket: Any) -> js.TextAttribution:
    return js.attribute_text(pocket, PROSE, " liberal and old . the end")


def random_segments(result: js.TextAttribution, rng: random.Random) -> list[tuple[int, int]]:
    """Stretches from token to token, with gaps."""
    ends = sorted({end for offset in result.text.offsets for end in offset})
    chosen = sorted(rng.sample(ends, 6))
    return [(chosen[0], chosen[1]), (chosen[2], chosen[3]), (chosen[4], chosen[5])]


@pytest.mark.newest_line
def test_every_token_is_in_one_source(answer: js.TextAttribution) -> None:
    rng = random.Random(0)
    for by in [*BY, *(random_segments(answer, rng) for _ in range(20))]:
        sources = answer.grouped(by).sources
        assert [i for source in sources for i in source.positions] == list(range(len(answer.str_tokens)))
        for source in sources:
            first, last = source.positions[0], source.positions[-1]
            assert {answer.text.roles[i] for i in source.positions} == {source.role}
            assert first >= answer.text.n_prompt or last < answer.text.n_prompt  # prompt and answer are kept apart


@pytest.mark.newest_line
@pytest.mark.parametrize("how", [{}, {"spans": "message"}, {"scope": "temperature"}, {"reduction": "elementwise"}])
def test_a_block_has_one_norm_however_it_is_cut(pocket: Any, how: dict[str, Any]) -> None:
    """Squares of groups add up to those of their tokens; sums of norms do not."""
    result = js.attribute_text(pocket, PROSE, " liberal and", **how)
    expected = result.token_scores.double().square().sum(1)
    rng = random.Random(1)
    for by in [*BY, *(random_segments(result, rng) for _ in range(10))]:
        grouped = result.grouped(by)
        torch.testing.assert_close(grouped.scores.double().square().sum(1), expected, rtol=1e-5, atol=1e-9)
        if len(grouped.sources) < len(result.sources):
            assert (grouped.scores.sum(1) < result.scores.sum(1)).all()
    everything = result.grouped([(0, len(result.text.string))])
    n = len(everything.sources)
    assert n == 3  # BOS, the prompt and the answer


def test_scores_of_groups_are_norms_of_stacked_gradients(tiny: Tiny) -> None:
    """In float64 from the bare model; ids of two tokens each, whose characters are known from the text of the result."""
    expected, x, _ = gradient(tiny.family, 0, 2)
    pairs = [(1, 3), (3, 5)]
    for reduction in ("row_norm", "dot"):
        result = js.attribute_text(tiny.model, PROMPT, ANSWER, spans=[(0, 2)], reduction=reduction)
        by = [(result.text.offsets[a][0], result.text.offsets[b - 1][1]) for a, b in pairs]
        grouped = result.grouped(by)
        columns = [
            next(j for j, s in enumerate(grouped.sources) if s.positions == tuple(range(*pair))) for pair in pairs
        ]
        for j, (a, b) in zip(columns, pairs, strict=True):
            block = expected[a:b]
            alone = block.norm() if reduction == "row_norm" else (block * x[a:b]).sum().abs()
            scale = expected.norm(dim=1).max() if reduction == "row_norm" else (expected * x).sum(1).abs().max()
            assert abs(float(grouped.scores[0, j]) - float(alone)) < TOLERANCE * float(scale)


@pytest.mark.newest_line
def test_products_cancel(pocket: Any) -> None:
    """``|Σ|``, which is at most the sum of the absolute values, and below it where two tokens pull apart."""
    result = js.attribute_text(pocket, PROSE, " liberal and old", reduction="dot")
    assert result.signed is not None
    total = result.grouped("message")
    for j, source in enumerate(total.sources):
        own = result.signed[:, list(source.positions)].double().sum(1)
        torch.testing.assert_close(total.scores[:, j].double(), own.abs(), rtol=1e-4, atol=1e-6)
    assert (total.scores.sum(1) < result.scores.sum(1)).all()


@pytest.mark.newest_line
@pytest.mark.parametrize(
    "how", [{"method": "exact"}, {"method": "sampled", "rank": 2, "probes": 4}, {"method": "low_rank", "rank": 2}]
)
def test_fisher_adds_up(pocket: Any, how: dict[str, Any]) -> None:
    """So do errors, which are bounds then."""
    result = js.attribute_text(pocket, PROSE, " liberal and", scope="fisher", **how)
    for by in BY:
        grouped = result.grouped(by)
        torch.testing.assert_close(grouped.scores.sum(1), result.token_scores.sum(1), rtol=1e-5, atol=1e-6)
        if result.token_stderr is not None:
            assert grouped.stderr is not None
            torch.testing.assert_close(grouped.stderr.sum(1), result.token_stderr.sum(1), rtol=1e-5, atol=1e-6)
    assert (result.token_stderr is None) == (how["method"] != "sampled")


@pytest.mark.newest_line
def test_afterwards_is_as_at_once(pocket: Any) -> None:
    for by in (*BY, {"who": (0, 3), "keys": "keys near"}, [(0, 10)], ["columbia"]):
        at_once = js.attribute_text(pocket, PROSE, " liberal and", by=by)
        later = js.attribute_text(pocket, PROSE, " liberal and").grouped("line").grouped(by)
        assert torch.equal(at_once.scores, later.scores)
        assert at_once.sources == later.sources
        assert (at_once.by, at_once.segments) == (later.by, later.segments)
        assert torch.equal(at_once.token_scores, later.token_scores)


@pytest.mark.newest_line
def test_words_sentences_and_lines() -> None:
    view = ModelView(byte_level())
    short = "user's well-known hello! So it\n\n  a 中。系"
    given = tokenized(view, short, " x", prepend_bos=False)
    texts = view.tokenizer.convert_ids_to_tokens(given.tokens.tolist())

    def said(by: str) -> list[str]:
        return [source.text for source in sources_of(given.text, texts, by)]

    assert said("word") == ["user's", "well-known", "hello", "!", "So", "it", "a", "中", "。", "系", "x"]
    assert said("sentence") == ["user's well-known hello!", "So it", "a 中。", "系", "x"]
    assert said("line") == ["user's well-known hello! So it", "a 中。系", "x"]
    assert said("message") == ["user's well-known hello! So it\n\n  a 中。系", "x"]


@pytest.mark.newest_line
def test_messages_are_kept_apart_and_the_template_is_hidden() -> None:
    model = byte_level(templates.CHATML)
    result = js.attribute_text(model, chat("hello\nuser", "hi", "so"), " the", by="message")
    own = [(s.role, s.message, s.text) for s in result.sources if not s.is_template]
    assert own == [("user", 0, "hello\nuser"), ("assistant", 1, "hi"), ("user", 2, "so"), ("assistant", 3, "the")]
    assert all(result.hidden(source) == source.is_template for source in result.sources)
    assert {scored.source.message for scored in result.top(99)} == {0, 1, 2, 3}
    assert len(result.top(99, template=True)) == len(result.sources)
    said = f"{sum(s.is_template for s in result.sources)} of {len(result.sources)} sources are BOS or template text"
    assert said in repr(result)
    lines = result.grouped("line")
    assert [s.text for s in lines.sources if s.message == 0] == ["hello", "user"]


@pytest.mark.newest_line
def test_segments_have_names_and_gaps_do_not(answer: js.TextAttribution) -> None:
    grouped = answer.grouped({"school": "columbia", "south": (PROSE.index("south"), PROSE.index("south") + 5)})
    names = [source.text for source in grouped.sources]
    assert [name for name in names if name in ("school", "south")] == ["school", "south"]
    school = grouped.sources[names.index("school")]
    assert [answer.str_tokens[i].strip() for i in school.positions] == ["columbia"]
    assert [source.text for source in answer.grouped([(0, 3)]).sources[:2]] == ["<bos>", "tom"]


WRONG: dict[str, tuple[Any, str]] = {
    "unknown": ("paragraph", "no by='paragraph'"),
    "nearly": ("sentences", "sentence"),
    "none": ([], "segments of your own; got"),
    "a number": (3, "segments of your own; got 3"),
    "overlapping": ([(0, 5), (4, 8)], "overlap"),
    "outside": ([(0, 999)], "outside the text of"),
    "negative": ([(-3, 2)], "outside the text of"),
    "empty": ([(3, 3)], "or empty"),
    "no pair": ([(1, 2, 3)], "it is \\(start, end\\)"),
    "twice": (["the"], "times in the text"),
    "not there": (["zebra"], "occurs 0 times in the text"),
    "empty text": ({"a": ""}, "times in the text"),
}


@pytest.mark.newest_line
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_source(answer: js.TextAttribution, name: str) -> None:
    by, says = WRONG[name]
    with pytest.raises(js.InputError, match=says):
        answer.grouped(by)
    with pytest.raises(js.InputError, match=says):
        to_segments(by, answer.text.string)


@pytest.mark.newest_line
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"scope": "fisher_input", "method": "exact"}, "the sum of C J_t x_t with its sign"),
        ({"reduction": "dot", "path": js.Line(steps=2)}, "the sum of C J_t x_t with its sign"),
        ({"scope": "spectral"}, "the largest gain of their concatenated rows"),
    ],
)
def test_scores_that_make_none_of_groups(llama: Any, how: dict[str, Any], says: str) -> None:
    with pytest.raises(js.InputError, match=says):
        js.attribute_text(llama, TOKENS[:5], TOKENS[5:7], by="word", **how)
    result = js.attribute_text(llama, TOKENS[:5], TOKENS[5:7], **how)
    with pytest.raises(js.InputError, match=says):
        result.grouped("word")
    assert torch.equal(result.grouped("token").scores, result.scores)


@pytest.mark.newest_line
def test_a_frame_has_every_source(answer: js.TextAttribution) -> None:
    grouped = answer.grouped("sentence")
    frame = grouped.to_dataframe()
    assert len(frame) == len(grouped.rows) * len(grouped.sources)
    for (i, j), line in frame.iterrows():
        assert line["score"] == float(grouped.scores[i, j])
        assert line["source"] == grouped.sources[j].text
