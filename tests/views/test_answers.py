"""Views of answers as text, without a browser: what they hold, what they escape, which numbers they draw."""

import dataclasses
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import jscope_tl as js
from jscope_tl.results.text import score_text, visible
from jscope_tl.views import answer_view
from jscope_tl.views.answer_words import n_sources, row_shares, row_tops
from jscope_tl.views.terminal import coloured_answer, show
from tests.views.results import NASTY, answer_with
from tests.views.test_views import EVIL, Text

pytestmark = pytest.mark.newest_line


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.TextAttribution:
    return js.attribute_text(pocket, "the keys to the cabinet . the doors near", " the house are old")


@pytest.fixture(scope="module")
def nasty(result: js.TextAttribution) -> js.TextAttribution:
    return answer_with(result, [*NASTY, "\u202eright", " <b>", "\n", "'\""], len(NASTY))


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_scale_is_that_of_what_is_shown(nasty: js.TextAttribution) -> None:
    """The template's 1000 are far above; row i ends at i + 1 times the place of the source before it."""
    n = nasty.text.n_prompt
    assert row_tops(nasty).tolist() == [n - 1, 2 * (n + 1), 3 * (n + 2), 4 * (n + 3)]
    shares = row_shares(nasty)
    assert float(shares.max()) == 1
    torch.testing.assert_close(shares[1, 1:5], torch.tensor([2.0, 3, 4, 5]) / (n + 1))
    assert [n_sources(nasty, i) for i in range(4)] == [n, n + 1, n + 2, n + 3]


def test_a_first_token_that_is_a_sink_is_off_the_scale(result: js.TextAttribution) -> None:
    scores = torch.ones(4, 14).tril(9)
    scores[:, 0] = 50
    sink = dataclasses.replace(result, token_scores=scores, bos_positions=(), text=dataclasses.replace(
        result.text, roles=("prompt", *result.text.roles[1:])))  # fmt: skip
    assert row_tops(sink).tolist() == [1] * 4
    assert "the first token is left out of the scale" in js.views.answer(sink).body
    assert row_tops(sink.grouped("sentence")).tolist() == pytest.approx([2506**0.5] * 4)  # a sentence is not left out


def test_what_the_page_holds_of_every_row(result: js.TextAttribution) -> None:
    """Scores of all sources before the row, its highest, its strongest source."""
    given = data_of(js.views.answer(result).body)
    assert given["unit"] == result.unit
    for i, row in enumerate(given["rows"]):
        n = result.text.n_prompt + i
        assert row["scores"] == [score_text(float(s), None) for s in result.scores[i, :n]]
        assert row["explained"] == [n]
        assert float(row["top"]) == pytest.approx(float(result.scores[i, 1:].max()), rel=1e-3)
        best = result.top(1, i)[0]
        assert f"strongest source: {best.source.text!r}" in row["says"]


def test_standard_errors_are_shown(pocket: Any) -> None:
    estimated = js.attribute_text(
        pocket, "the keys near the", " doors are", scope="fisher", method="sampled", spans="message"
    )
    (row,) = data_of(js.views.answer(estimated).body)["rows"]
    assert all("±" in score for score in row["scores"][1:-1])
    assert row["scores"][1] == score_text(float(estimated.scores[0, 1]), float(estimated.stderr[0, 1]))


def test_every_row_can_be_read_without_a_script(result: js.TextAttribution) -> None:
    """Prediction and strongest sources of each row, and the text in the colours of the first one."""
    body = js.views.answer(result).body
    text = html.unescape(re.sub(r"<(script|style).*?</\1>", "", body, flags=re.DOTALL)).replace("\xa0", " ")
    for i, prediction in enumerate(result.predictions):
        assert f"rank {prediction.target_rank}; most probable here: {prediction.top[0].str_token!r}" in text
        for scored in result.top(3, i):
            assert score_text(scored.score, scored.stderr) in text
    shares = re.findall(r'class="src[^"]*"(?: style="--i:([\d.]+)")?', body)
    expected = row_shares(result)[0].tolist()
    assert [float(share or 0) for share in shares] == pytest.approx(expected, abs=6e-4)


def test_what_is_left_out_is_said(result: js.TextAttribution, nasty: js.TextAttribution) -> None:
    for shown in (result, nasty):
        page = Text(js.views.answer(shown).body)
        assert shown.template_line() in page.text
    hidden = re.findall(r'class="src hid[^>]*>(.*?)</span>', js.views.answer(nasty).body)
    assert [html.unescape(text) for text in hidden] == [visible(NASTY[0]), visible(NASTY[-1])]


@pytest.mark.slow
def test_nothing_of_a_token_is_html(nasty: js.TextAttribution, result: js.TextAttribution, tmp_path: Path) -> None:
    evil = dataclasses.replace(
        answer_with(result, [EVIL] * 6, 3), unit=EVIL, scope=EVIL, warnings=[EVIL], baseline=EVIL
    )
    for shown in (nasty, evil):
        fragment = shown._repr_html_()
        page = Text(fragment)
        assert page.tags.count("script") == 2
        assert not {"img", "s"} & {*page.tags}
        assert EVIL not in fragment
        assert json.dumps(EVIL)[1:-1] not in fragment
        assert data_of(fragment)["unit"] == shown.unit
        for token in shown.str_tokens:
            assert any(visible(token) in text.replace("\n", "") for text in page.text)
        assert EVIL not in js.report(shown, tmp_path / "r.html").read_text(encoding="utf-8")


def test_ids_of_no_page_are_taken(result: js.TextAttribution) -> None:
    assert not re.search(r"\sid=", js.views.answer(result).body)


def test_notebooks_find_no_formulas(result: js.TextAttribution) -> None:
    """MathJax passes over what has these classes, by default, in its versions 2 and 3."""
    assert 'class="jscope-answer tex2jax_ignore mathjax_ignore"' in result._repr_html_()


def test_spans_and_what_no_row_explains(pocket: Any) -> None:
    chosen = js.attribute_text(pocket, "the keys near", " the doors are old", spans=[(1, 3)])
    body = js.views.answer(chosen).body
    group = re.search(r'<div class="rows".*?>(.*?)</div>', body)
    assert group
    assert Text(group[1]).text == [" the", " doors are", " old"]
    (row,) = chosen.rows
    assert f"2 tokens, together {row.probability:.1%} (log-probability {row.log_prob:.4g} nat)" in html.unescape(body)


def test_a_large_result_leaves_small_scores_out(result: js.TextAttribution, monkeypatch: pytest.MonkeyPatch) -> None:
    large = answer_with(result, [f" w{i}" for i in range(260)], 250)
    monkeypatch.setattr(answer_view, "MOST_CELLS", 10 * 260)
    assert data_of(js.views.answer(large).body)["rows"][0]["scores"][1:4] == ["2", "3", "4"]
    monkeypatch.setattr(answer_view, "MOST_CELLS", 10 * 260 - 1)
    rows = data_of(js.views.answer(large).body)["rows"]
    assert rows[0]["scores"][1:4] == ["", "3", "4"]  # of 249
    assert rows[-1]["scores"][1:5] == ["", "30", "40", "50"]  # ten times 3 and more, of ten times 259


def test_an_answer_round_trips(result: js.TextAttribution, tmp_path: Path) -> None:
    loaded = js.TextAttribution.load(result.save(tmp_path / "r.safetensors"))
    assert js.views.answer(loaded).body == js.views.answer(result).body
    pages = [js.report(shown, tmp_path / "page.html").read_text(encoding="utf-8") for shown in (result, loaded)]
    own, again = (re.sub(r"base64,[^\"]*", "", page) for page in pages)  # matplotlib draws new ids into every picture
    assert own == again


def test_grouped_results_have_their_own_sources(result: js.TextAttribution) -> None:
    grouped = result.grouped("sentence")
    page = js.views.answer(grouped).body
    spans = re.findall(r'class="src[^>]*data-at="([^"]*)">(.*?)</span>', page)
    assert [text for _, text in spans] == [
        "&lt;bos&gt;",
        " the keys to the cabinet .",
        " the doors near",
        " the house are old",
    ]
    assert spans[1][0] == "positions 1 to 6"


def test_a_map_draws_shares_of_what_is_shown(nasty: js.TextAttribution) -> None:
    for template, columns in ((False, [1, *range(2, 15), 16, 17, 18]), (True, list(range(19)))):
        figure = js.views.heatmap(nasty, template=template)
        cells = figure.axes[0].images[0].get_array()
        expected = nasty.scores[:, columns] / row_tops(nasty).unsqueeze(1)
        torch.testing.assert_close(torch.as_tensor(cells.data.tolist()), expected)
        assert f"left out{' of the scale' if template else ''}" in figure.axes[0].get_title(loc="left").replace(
            "\n", " "
        )
    assert js.views.heatmap(nasty, scale="linear").axes[1].get_ylabel() == nasty.unit
    with pytest.raises(js.InputError, match="Did you mean 'linear'"):
        js.views.heatmap(nasty, scale="linea")
    with pytest.raises(js.InputError, match="the list has a TextAttribution"):
        js.views.heatmap([nasty, nasty])


def test_bars_of_one_row_are_scores(result: js.TextAttribution) -> None:
    axis = js.views.sources(result, row=-1).axes[0]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(result.scores[3, 1:13].tolist())
    assert axis.get_xlabel() == result.unit
    assert axis.get_yticklabels()[0].get_text() == "the 1 (prompt)"


def test_bars_of_all_rows_are_medians_of_shares(result: js.TextAttribution) -> None:
    grouped = result.grouped("sentence")
    axis = js.views.sources(grouped).axes[0]
    shares = row_shares(grouped)
    expected = [float(shares[:, j].quantile(0.5)) for j in (1, 2)] + [float(shares[1:, 3].quantile(0.5))]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(expected)
    assert [len(line.get_xdata()) for line in axis.lines] == [4, 4, 3]  # the answer does not precede its first token


def test_many_bars_are_the_strongest(result: js.TextAttribution) -> None:
    large = answer_with(result, [f" w{i}" for i in range(100)], 98)
    axis = js.views.sources(large, row=0).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [f"w{i} {i} (user)" for i in range(57, 97)]
    assert "the 40 strongest of 96 sources" in axis.get_title(loc="left").replace("\n", " ")


def test_what_is_no_answer_is_refused(pocket: Any, result: js.TextAttribution) -> None:
    one = js.attribute(pocket, "the keys")
    for view in (js.views.answer, js.views.sources):
        with pytest.raises(js.InputError, match="js.attribute_text returns; got a Attribution"):
            view(one)
    with pytest.raises(js.InputError, match="no row 9"):
        js.views.sources(result, row=9)


def printed(result: js.TextAttribution, system: Any, **how: Any) -> str:
    out = io.StringIO()
    show(result, Console(file=out, color_system=system, force_terminal=system is not None, width=150, **how))
    return out.getvalue()


def test_the_terminal_lists_every_row(result: js.TextAttribution, nasty: js.TextAttribution) -> None:
    out = printed(dataclasses.replace(result, warnings=["a [bold]doubt[/bold]"]), None)
    for i, row in enumerate(result.rows):
        best = result.top(1, i)[0]
        assert re.search(rf"{i} +'{row.text}' .*{best.source.text!r} {best.source.positions[0]}: {best.score:.4g}", out)
    assert "warning: a [bold]doubt[/bold]" in out
    assert result.template_line() in " ".join(out.split())
    assert "colour" not in out
    assert "colour: the largest share that a source's score" in re.sub(
        r"\x1b\[[\d;]*m", "", printed(result, "truecolor")
    )
    assert "\\u202eright" in printed(nasty, None)


def test_the_terminal_colours_by_the_largest_share(nasty: js.TextAttribution) -> None:
    text = coloured_answer(nasty)
    shares = row_shares(nasty).amax(0)
    reds = [
        [int(n) for n in re.findall(r"\d+", str(span.style))][:1] for span in text.spans if "rgb" in str(span.style)
    ]
    kept = [j for j, s in enumerate(nasty.sources) if not nasty.hidden(s) and float(shares[j]) >= 0.1]
    assert reds == [[round(148 + 107 * float(shares[j]))] for j in kept]
    assert NASTY[0] not in text.plain
    only = dataclasses.replace(nasty, rows=nasty.rows[1:2], token_scores=nasty.token_scores[1:2], position=len(NASTY))
    assert [text.plain[s.start : s.end] for s in coloured_answer(only).spans if "underline" in str(s.style)] == [" <b>"]


@pytest.mark.slow
def test_reports_hold_the_answer_its_map_and_its_table(
    result: js.TextAttribution, nasty: js.TextAttribution, tmp_path: Path
) -> None:
    page = js.report([result, nasty], tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count('class="jscope-answer ') == 2
    assert page.count("data:image/svg+xml") == 3  # a map of each, bars of messages of the chat
    assert "<h2>the keys to the cabinet . the doors near</h2>" in page
    best = result.top(1, template=True)[0]
    assert f"<td>{best.score:.4g}</td>" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "http" not in page


def test_scores_that_make_none_of_messages(nasty: js.TextAttribution, tmp_path: Path) -> None:
    """Gradient x input of a scope with several cotangents has no sum over a message: the report goes without its bars."""
    dot = dataclasses.replace(nasty, options={**nasty.options, "reduction": "dot"})
    page = js.report(dot, tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == 1


def test_spans_that_overlap(pocket: Any) -> None:
    chosen = js.attribute_text(pocket, "the keys near", " the doors are old", spans=[(0, 2), (1, 4)])
    group = re.search(r'<div class="rows".*?>(.*?)</div>', js.views.answer(chosen).body)
    assert group
    assert Text(group[1]).text == [" the doors", " doors are old"]
