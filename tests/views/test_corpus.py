"""Pictures of a corpus: what is drawn is what the summaries hold; the page is one file that needs no network."""

import inspect
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest

import jscope_tl as js
from tests.corpus.written import failed, made_up, written

matplotlib.use("Agg")

pytestmark = pytest.mark.newest_line

HOSTILE = ["<s>", "</script><script>alert(1)</script>", " $x_", "\n", " é⟨1/2⟩", " é⟨2/2⟩", " "]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[js.corpus.CorpusRun, js.corpus.CorpusRun]:
    rows, folder = made_up(60), tmp_path_factory.mktemp("runs")
    hostile = {
        **rows[0],
        "id": "<b>",
        "str_tokens": HOSTILE,
        "tokens": list(range(7)),
        "position": 6,
        "scores": [9.0, *range(6)],
    }
    rows = [{**hostile, "id": f"<b>{i}"} for i in range(6)] + rows + [failed("<i>", "<u>no</u>")]
    other = [{**row, "scores": row["scores"] and row["scores"][::-1]} for row in rows]
    return js.corpus.open(written(folder / "a", rows)), js.corpus.open(written(folder / "b", other, scope="entropy"))


def test_distances_are_drawn(runs: Any) -> None:
    found = js.corpus.by_distance(runs[0])
    axis = js.views.summary(found).axes[0]
    points = axis.collections[1].get_offsets()
    assert points[:, 1].tolist() == pytest.approx([row.ratio.mean for row in found.rows])
    spans = [(s[0, 1], s[1, 1]) for s in axis.collections[0].get_segments()]
    assert spans == [pytest.approx((row.ratio.low, row.ratio.high)) for row in found.rows]
    assert [label.get_text() for label in axis.get_xticklabels()] == [row.name for row in found.rows]
    assert axis.lines[0].get_ydata()[0] == 1  # chance


def test_a_ranking_is_drawn(runs: Any) -> None:
    found = js.corpus.by_token(runs[0], least=2)
    axis = js.views.summary(found, most=4).axes[0]
    assert axis.collections[1].get_offsets()[:, 0].tolist() == pytest.approx([row.ratio.mean for row in found.rows[:4]])
    assert axis.get_yticklabels()[0].get_text() == f"{found.rows[0].name} ({found.rows[0].n})"
    assert axis.yaxis_inverted()


def test_targets_are_kept_apart(runs: Any) -> None:
    found = js.corpus.by_target(runs[0], 2, least=2)
    labels = [label.get_text() for label in js.views.summary(found).axes[0].get_yticklabels()]
    assert len(labels) == len(found.rows)
    assert all(label.startswith(f"{row.group!r} ← {row.name}") for label, row in zip(labels, found.rows, strict=True))


def test_agreement_is_drawn(runs: Any) -> None:
    found = js.corpus.agreement(*runs)
    axis = js.views.agreement(found).axes[0]
    drawn = [line.get_xdata()[0] for line in axis.lines]
    assert drawn[1::2] == [row.mean.mean for row in found.rows]
    assert drawn[::2] == [row.chance for row in found.rows]


def test_in_axes_of_ones_own(runs: Any) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    axis = figure.subplots()
    assert js.views.summary(js.corpus.by_distance(runs[0]), ax=axis) is figure
    assert js.views.agreement(js.corpus.agreement(*runs), ax=figure.subplots()) is figure


@pytest.mark.parametrize("view", [js.views.summary, js.views.agreement, js.views.mean_effects])
def test_what_is_no_summary(view: Any) -> None:
    with pytest.raises(js.InputError, match="This view takes"):
        inspect.unwrap(view)(3)


def test_a_summary_without_rows(runs: Any) -> None:
    found = js.corpus.by_token(runs[0], least=1000)
    with pytest.raises(js.InputError, match=r"no rows to draw: tokens not listed .* fewer than 1000 prompts"):
        js.views.summary(found)
    assert "fewer than 1000" in found._repr_html_()
    assert "fewer than 1000" in repr(found)


def test_notebooks(runs: Any) -> None:
    for shown in (
        js.corpus.by_target(runs[0]),
        js.corpus.agreement(*runs),
        runs[0].row("<b>1"),
        runs[0].row("<i>"),
        runs[0],
    ):
        html = shown._repr_html_()
        assert "<script" not in html
        assert "<u>" not in html
    assert "off the scale" in runs[0].where(contains="w1").row("1")._repr_html_()


@pytest.fixture(scope="module")
def page(runs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    summaries = [
        js.corpus.by_distance(runs[0]),
        js.corpus.by_token(runs[0], least=2),
        js.corpus.by_target(runs[0], least=2),
    ]
    path = tmp_path_factory.mktemp("page") / "page.html"
    return js.views.corpus_page(runs[0], path, summaries, js.corpus.agreement(*runs))


@pytest.mark.slow
def test_a_page_has_everything(runs: Any, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for part in (
        "By distance",
        "By token",
        "By source",
        f"temperature against entropy on {js.corpus.agreement(*runs).n} prompts",
        "&lt;u&gt;no",
        "Settings",
    ):
        assert part in text
    assert text.count("times chance: score") == 1
    assert not re.search(r"<script|<u>|(?:src|href)=[\"']http", text)


@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1100])
def test_a_page_in_a_browser(page: Path, browse: Any, width: int) -> None:
    opened = browse(page, width=width)
    assert opened.errors == []
    assert opened.foreign == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    opened.keep(f"corpus_{width}")


@pytest.mark.parametrize("of", ["heads", "mlps", "neurons"])
def test_mean_effects(pocket: Any, of: str, tmp_path: Path) -> None:
    prompts = [prompt.text for prompt in js.pocket_prompts("agreement", 3)]
    means = js.corpus.components(pocket, [*prompts, ""], "log_prob", of=of, refine=0)
    view = js.views.mean_effects(means)
    titles = re.findall(r'title="(L\d[^"]*)"', view.body)
    shown = 30 if of == "neurons" else means.mean.numel()
    assert len(titles) == shown
    best = means.top(1)[0]
    assert any(f"{best.name}: {best.mean:.4g}" in title for title in titles)
    assert "failed: 1, such as 3: " in view.body
    assert view.save(tmp_path / "page.html").exists()
    assert means._repr_html_() in (js.views.component_means.means_map(means),)
    sure = means.component(0)
    if of == "heads":
        cell = re.search(r'title="L0H0 [^"]*">(.?)</td>', view.body)
        assert cell is not None
        assert cell[1] == ("·" if sure.low <= 0 <= sure.high else "")
