"""Summaries: against pandas over the same files, and what must hold of any of them."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jscope_tl as js
from tests.corpus.written import attributed, failed, made_up, written

pytestmark = pytest.mark.newest_line

BY = {
    "distance": js.corpus.by_distance,
    "position": js.corpus.by_position,
    "token": lambda run, **how: js.corpus.by_token(run, least=2, **how),
    "class": lambda run, **how: js.corpus.by_class(
        run, lambda text: "even" if int(text[2:]) % 2 == 0 else "odd", **how
    ),
}
KEYS = {
    "distance": lambda f: f.explained - f.position,
    "position": lambda f: f.position,
    "token": lambda f: f.text.map(repr),
    "class": lambda f: f.text.map(lambda text: "even" if int(text[2:]) % 2 == 0 else "odd"),
}


def long(rows: list[dict[str, Any]], off_scale: bool) -> pd.DataFrame:
    """One line for each token that is counted."""
    lines = [
        {"id": row["id"], "explained": row["position"], "position": t, "text": row["str_tokens"][t], "score": row["scores"][t],
         "target": row["target_str"]}
        for row in rows if row["error"] is None
        for t in range(row["position"] + 1) if off_scale or t not in row["off_scale"]
    ]  # fmt: skip
    frame = pd.DataFrame(lines)
    of_prompt = frame.groupby("id").score
    frame["share"] = frame.score / of_prompt.transform("sum")
    frame["n"] = of_prompt.transform("size")
    frame["top"] = frame.groupby("id").score.transform("idxmax") == frame.index
    return frame


def oracle(frame: pd.DataFrame, key: Any) -> pd.DataFrame:
    """Means over prompts of each prompt's own numbers, with scipy's interval."""
    pairs = (
        frame.assign(key=key)
        .groupby(["key", "id"])
        .agg(share=("share", "sum"), count=("share", "size"), n=("n", "first"), top=("top", "any"))
    )
    pairs["expected"] = pairs["count"] / pairs.n
    pairs["ratio"] = pairs.share / pairs.expected
    found = pairs.groupby("key").agg(
        n=("share", "size"), n_tokens=("count", "sum"), ratio=("ratio", "mean"), share=("share", "mean"), expected=("expected", "mean"),
        top=("top", "mean"), error=("ratio", "sem"),
    )  # fmt: skip
    half = found.error * stats.t.ppf(0.975, found.n - 1)
    return found.assign(ratio_low=found.ratio - half, ratio_high=found.ratio + half)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    empty = {**made_up(1)[0], "id": "zero", "scores": [0.0] * len(made_up(1)[0]["scores"])}
    return [*made_up(150), failed("x", "no"), empty, failed("y", "no")]


@pytest.fixture(scope="module")
def run(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> js.corpus.CorpusRun:
    return js.corpus.open(written(tmp_path_factory.mktemp("run"), rows, n_parts=4))


@pytest.mark.parametrize("off_scale", [True, False])
@pytest.mark.parametrize("by", BY)
def test_against_pandas(run: js.corpus.CorpusRun, rows: list[dict[str, Any]], by: str, off_scale: bool) -> None:
    how = {"edges": list(range(40))} if by in ("distance", "position") else {}
    found = BY[by](run, off_scale=off_scale, **how)
    kept = [row for row in rows if row["id"] != "zero"]
    frame = long(kept, off_scale)
    expected = oracle(frame, KEYS[by](frame))
    table = found.to_pandas().set_index("name")
    if how:
        table.index = table.index.astype(int)
    expected = expected[expected.n >= 2] if by == "token" else expected
    assert {*table.index} == {*expected.index}
    for name in ("n", "n_tokens", "ratio", "share", "expected", "top", "ratio_low", "ratio_high"):
        got, right = table[name].to_numpy(float), expected.loc[table.index, name].to_numpy(float)
        assert got == pytest.approx(right, rel=1e-6, abs=1e-9, nan_ok=True), name
    assert (found.n, found.n_errors, found.n_empty) == (150, 2, 1)


def test_by_target_against_pandas(run: js.corpus.CorpusRun, rows: list[dict[str, Any]]) -> None:
    found = js.corpus.by_target(run, 2, k=4, least=3)
    frame = long([row for row in rows if row["id"] != "zero"], off_scale=False)
    frequent = pd.Series([row["target_str"] for row in rows if row["error"] is None]).value_counts().sort_index()
    frequent = frequent.sort_values(ascending=False, kind="stable")
    assert found.groups == frequent.index[:2].tolist()
    for target in found.groups:
        own = frame[frame.target == target]
        expected = oracle(own, own.text.map(repr))
        expected = expected[(expected.n >= 3) & (expected.ratio > 1)].sort_values("ratio_low", ascending=False).head(4)
        listed = [row for row in found.rows if row.group == target]
        assert [row.name for row in listed] == expected.index.tolist()
        assert [row.ratio.low for row in listed] == pytest.approx(expected.ratio_low.tolist())
    assert js.corpus.by_target(run, [" w3"]).groups == [" w3"]
    with pytest.raises(js.InputError, match="No prompt of this run has the target 'w3'"):
        js.corpus.by_target(run, "w3")


@pytest.mark.parametrize("by", BY)
def test_the_order_and_the_parts_change_nothing(
    run: js.corpus.CorpusRun, rows: list[dict[str, Any]], tmp_path: Path, by: str
) -> None:
    other = js.corpus.open(
        written(tmp_path, [rows[i] for i in np.random.default_rng(0).permutation(len(rows))], n_parts=3)
    )
    a, b = (BY[by](one).to_pandas().sort_values("name", ignore_index=True) for one in (run, other))
    pd.testing.assert_frame_equal(a, b, rtol=1e-9)


@pytest.mark.parametrize("by", BY)
def test_equal_scores_are_chance(tmp_path: Path, by: str) -> None:
    rows = [{**row, "scores": [0.3 * (i + 1)] * len(row["scores"])} for i, row in enumerate(made_up(30))]
    for row in BY[by](js.corpus.open(written(tmp_path, rows))).rows:
        assert row.ratio.mean == pytest.approx(1)
        assert row.share.mean == pytest.approx(row.expected)
        assert row.n == 1 or (row.ratio.low == pytest.approx(1) and row.ratio.high == pytest.approx(1))


@pytest.mark.parametrize("by", BY)
def test_the_size_of_scores_does_not_matter(
    run: js.corpus.CorpusRun, rows: list[dict[str, Any]], tmp_path: Path, by: str
) -> None:
    """A summary over prompts is free of each prompt's scale."""
    scaled = [
        row if row["error"] else {**row, "scores": [4.0 ** (i % 9) * s for s in row["scores"]]}
        for i, row in enumerate(rows)
    ]
    a, b = (BY[by](one).to_pandas() for one in (run, js.corpus.open(written(tmp_path, scaled))))
    pd.testing.assert_frame_equal(a, b, rtol=1e-6)


def test_shares_of_all_categories_are_one(run: js.corpus.CorpusRun) -> None:
    for edges in ([0, 1], [0, 3, 4, 9]):
        found = js.corpus.by_position(run, edges=edges)
        assert sum(row.share.mean * row.n for row in found.rows) == pytest.approx(found.n)
        assert sum(row.top * row.n for row in found.rows) == pytest.approx(found.n)
    assert [row.name for row in found.rows] == ["0 to 2", "3", "4 to 8", "9 and more"]


def test_default_rows_of_distance() -> None:
    from jscope_tl.corpus.passes import labels_of, to_edges

    names = list(labels_of(to_edges(None, 16)).values())
    assert names[14:19] == ["14", "15", "16 to 31", "32 to 63", "64 to 127"]


@pytest.mark.parametrize("chance", ["distance", "position"])
def test_chance_by_place_takes_out_where_tokens_stand(
    run: js.corpus.CorpusRun, rows: list[dict[str, Any]], tmp_path: Path, chance: str
) -> None:
    """In prompts of one length whose scores depend on the place alone, classes are at chance; without this those near the end are above."""
    fixed = []
    for row in (row for row in rows if row["error"] is None and row["id"] != "zero"):
        t = np.arange(len(row["scores"]))
        place = np.maximum(11 - t, 0) if chance == "distance" else t
        tokens = [f" w{2 * (i > 3)}" for i in place]
        fixed.append(
            {**row, "position": 11, "scores": (1 / (1 + place)).tolist(), "str_tokens": tokens, "off_scale": []}
        )
    fixed = [
        {**row, "scores": row["scores"][:12], "str_tokens": row["str_tokens"][:12], "tokens": row["tokens"][:12]}
        for row in fixed
    ]
    fixed = [row for row in fixed if len(row["scores"]) == 12]
    other = js.corpus.open(written(tmp_path, fixed))
    classes = {" w0": "near", " w2": "far"}
    even = {row.name: row.ratio.mean for row in js.corpus.by_class(other, classes).rows}
    assert even["near"] > 1.2 * even["far"]
    for row in js.corpus.by_class(other, classes, chance=chance).rows:
        assert (row.ratio.mean, row.share.mean) == pytest.approx((1, row.expected), rel=1e-5)


@pytest.mark.parametrize("chance", ["distance", "position"])
def test_chance_by_place_against_numpy(run: js.corpus.CorpusRun, rows: list[dict[str, Any]], chance: str) -> None:
    frame = long([row for row in rows if row["id"] != "zero"], off_scale=False)
    place = frame.explained - frame.position if chance == "distance" else frame.position
    singles = 16 if chance == "distance" else 8
    frame["bin"] = [p if p < singles else singles + int(np.log2(p // singles)) for p in place]
    usual = oracle(frame, frame.bin).ratio
    frame["weight"] = usual.loc[frame.bin].to_numpy()
    frame["n"] = 1 / (
        frame.weight / frame.groupby("id").weight.transform("sum")
    )  # one over the share that chance gives
    pairs = frame.assign(key=frame.text.map(repr), expected=1 / frame.n).groupby(["key", "id"])
    pairs = pairs.agg(share=("share", "sum"), expected=("expected", "sum"))
    expected = (pairs.share / pairs.expected).groupby("key").mean()
    found = js.corpus.by_token(run, least=2, chance=chance)
    assert [row.ratio.mean for row in found.rows] == pytest.approx([expected[row.name] for row in found.rows])
    assert f"tokens at its {chance} in this run" in repr(found)
    assert js.corpus.by_target(run, least=2, chance=chance).chance == chance
    with pytest.raises(js.InputError, match="Did you mean 'distance'"):
        js.corpus.by_token(run, chance="distanse")


def test_classes_are_looked_up(pocket: Any, tmp_path: Path) -> None:
    run = js.corpus.open(attributed(tmp_path, pocket, ["the keys to the cabinet near the doors"]))
    found = js.corpus.by_class(run, {"the": "article", " keys": "noun", "keys": "wrong"})
    assert {row.name: row.n_tokens for row in found.rows} == {"article": 3, "noun": 1, "other": 4}
    asked: list[str] = []
    js.corpus.by_class(run, lambda text: asked.append(text))
    assert len(asked) == len({*asked})


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda run: js.corpus.by_class(run, 3), "a mapping from tokens to classes"),
        (lambda run: js.corpus.by_class(run, {" w1": 3}), "for ' w1' it is 3"),
        (lambda run: js.corpus.by_distance(run, edges=[1, 2]), "increasing whole numbers from 0"),
        (lambda run: js.corpus.by_distance(run, edges=[0, 2, 2]), "increasing whole numbers from 0"),
        (lambda run: js.corpus.by_position(run, edges=[]), "increasing whole numbers from 0"),
        (lambda run: js.corpus.by_token(run, least=1), "least is a whole number, 2 or more"),
        (lambda run: js.corpus.by_target(run, 0), "targets is a whole number"),
        (lambda run: js.corpus.by_token(run.where(errors=True)), r"nothing to summarise.*\(2 rows have an error"),
        (lambda run: js.corpus.by_token(run.where(ids=["zero"])), "nothing to summarise"),
        (lambda run: inspect.unwrap(js.corpus.by_distance)("run/"), "as js.corpus.open"),
        (lambda run: inspect.unwrap(js.corpus.by_target)("run/"), "as js.corpus.open"),
    ],
)
def test_what_cannot_be_summarised(run: js.corpus.CorpusRun, call: Any, says: str) -> None:
    with pytest.raises(js.InputError, match=says):
        call(run)


def test_text_says_what_was_left_out(run: js.corpus.CorpusRun) -> None:
    text = repr(js.corpus.by_distance(run))
    assert "influence by distance: temperature scope of made up, 150 prompts" in text
    assert "an error: 2" in text
    assert "a score above 0: 1" in text
    assert "containing 'w1'" in repr(js.corpus.by_token(run.where(contains="w1")))


def test_fisher_is_said_to_add_up(tmp_path: Path, pocket: Any) -> None:
    squared, norms = (
        js.corpus.by_distance(js.corpus.open(attributed(tmp_path / scope, pocket, ["the keys near the door"], scope)))
        for scope in ("fisher", "temperature")
    )
    assert any("add up to a trace" in line for line in squared.meaning)
    assert any("do not add up" in line for line in norms.meaning)
