"""Agreement of two runs: against scipy over the same files, and what must hold of any two."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import jscope_tl as js
from tests.corpus.written import attributed, failed, made_up, written

pytestmark = pytest.mark.newest_line


def opened(folder: Path, rows: list[dict[str, Any]], **how: Any) -> js.corpus.CorpusRun:
    return js.corpus.open(written(folder, rows, **how))


def rescored(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{**row, "scores": [float(np.float32(s * rng.uniform(0.2, 2))) for s in row["scores"]]} for row in rows]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [row for row in made_up(90, longest=25) if row["position"] > 5]


def test_a_run_agrees_with_itself(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    found = js.corpus.agreement(opened(tmp_path / "a", rows), opened(tmp_path / "b", rows[::-1], n_parts=3))
    assert found.n == len(rows)
    for row in found.rows:
        assert (row.mean.mean, row.mean.low, row.mean.high) == pytest.approx((1, 1, 1), abs=1e-12), row.name
        assert 0 <= row.chance < 1
    for row in found.differences:
        assert (row.difference.mean, row.difference.low, row.difference.high) == (0, 0, 0)
        assert row.first == pytest.approx(row.second)
    assert found.names == ("a", "b")
    assert found.notes == []


def test_against_scipy(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    other = rescored(rows, 1)
    found = js.corpus.agreement(opened(tmp_path / "a", rows, n_parts=2), opened(tmp_path / "b", other, n_parts=5))
    table, rho, top, overlap, by_chance, far, eff, off = found.to_pandas(), [], [], [], [], [], [], []
    rng = np.random.default_rng(0)
    for row, again in zip(rows, other, strict=True):
        kept = [t for t in range(row["position"] + 1) if t not in row["off_scale"]]
        a, b = (np.array(one["scores"])[kept] for one in (row, again))
        rho.append(stats.spearmanr(a, b).statistic)
        top.append(a.argmax() == b.argmax())
        p, q = a / a.sum(), b / b.sum()
        overlap.append(np.minimum(p, q).sum())
        by_chance.append(np.mean([np.minimum(p, rng.permutation(q)).sum() for _ in range(400)]))
        distance = row["position"] - np.array(kept)
        far.append((p - q) @ distance)
        eff.append(np.exp(stats.entropy(p)) - np.exp(stats.entropy(q)))
        whole = [np.array(one["scores"])[: row["position"] + 1] for one in (row, again)]
        off.append(
            whole[0][row["off_scale"]].sum() / whole[0].sum() - whole[1][row["off_scale"]].sum() / whole[1].sum()
        )
    for name, values in {"rank correlation": rho, "same strongest token": top, "overlap of shares": overlap}.items():
        low, high = stats.t.interval(0.95, len(rows) - 1, np.mean(values), stats.sem(values))
        assert table.loc[name, ["mean", "low", "high"]].tolist() == pytest.approx(
            [np.mean(values), low, high], rel=1e-5
        )
    assert table.loc["overlap of shares", "chance"] == pytest.approx(np.mean(by_chance), abs=0.005)
    for name, values in {"mean distance": far, "effective number of tokens": eff, "share off the scale": off}.items():
        low, high = stats.t.interval(0.95, len(rows) - 1, np.mean(values), stats.sem(values))
        got = table.loc[name, ["difference", "difference_low", "difference_high"]].tolist()
        assert got == pytest.approx([np.mean(values), low, high], rel=1e-4, abs=1e-6)
    assert found.lowest[0][1] == pytest.approx(min(rho))
    assert found.lowest[0][0] == rows[int(np.argmin(rho))]["id"]
    assert [rho for _, rho in found.lowest] == sorted(rho for _, rho in found.lowest)


@pytest.mark.slow
def test_unrelated_scores_agree_by_chance(tmp_path: Path) -> None:
    rows, other = made_up(1500, longest=25), made_up(1500, seed=0, longest=25)
    rng = np.random.default_rng(3)
    other = [{**row, "scores": rng.permutation(row["scores"]).tolist()} for row in other]
    found = js.corpus.agreement(opened(tmp_path / "a", rows), opened(tmp_path / "b", other))
    for row in found.rows:
        assert abs(row.mean.mean - row.chance) < 4 * row.mean.stderr, row.name


def test_changing_sides_changes_signs(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    a, b = opened(tmp_path / "a", rows), opened(tmp_path / "b", rescored(rows, 2))
    one, other = js.corpus.agreement(a, b), js.corpus.agreement(b, a)
    for x, y in zip(one.rows, other.rows, strict=True):
        assert x.mean.mean == pytest.approx(y.mean.mean)
    for u, v in zip(one.differences, other.differences, strict=True):
        assert (u.first, u.difference.mean) == pytest.approx((v.second, -v.difference.mean))


def test_what_is_left_out_is_counted(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    other = [
        failed(rows[0]["id"], "no"), {**rows[1], "str_tokens": [f" v{t}" for t in rows[1]["tokens"]], "tokens": [9] * len(rows[1]["tokens"])},
        {**rows[2], "scores": [0.0] * len(rows[2]["scores"])}, {**rows[3], "target_str": " x"}, *rows[4:8], {**rows[8], "position": 4},
    ]  # fmt: skip
    found = js.corpus.agreement(opened(tmp_path / "a", rows), opened(tmp_path / "b", other))
    assert found.n == 5
    said = "; ".join(found.notes)
    for reason in (
        "1 with an error",
        "1 with another text",
        "1 with fewer than 3",
        "1 with another position",
        "different tokens: 1",
    ):
        assert reason in said
    with pytest.raises(js.InputError, match="can be compared.*1 with an error"):
        js.corpus.agreement(opened(tmp_path / "a", rows), opened(tmp_path / "c", other[:1]))
    with pytest.raises(js.InputError, match="share no ids"):
        js.corpus.agreement(opened(tmp_path / "a", rows[:3]), opened(tmp_path / "d", rows[4:]))
    with pytest.raises(js.InputError, match="got a str"):
        inspect.unwrap(js.corpus.agreement)("a", "b")


def test_where_holds_on_both_sides(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    a, b = opened(tmp_path / "a", rows), opened(tmp_path / "b", rows)
    some = [row["id"] for row in rows]
    assert js.corpus.agreement(a.where(ids=some[:9]), b.where(ids=some[4:])).n == 5


def cut(row: dict[str, Any], texts: list[str], scores: list[float], off: list[int]) -> dict[str, Any]:
    return {
        **row,
        "str_tokens": texts,
        "tokens": list(range(50, 50 + len(texts))),
        "scores": scores,
        "position": len(texts) - 1,
        "off_scale": off,
    }


@pytest.mark.parametrize("squares", [False, True])
def test_other_tokens_are_aligned(tmp_path: Path, squares: bool) -> None:
    """One tokenizer's BOS, a word in two tokens, and a character in two: stretches have the norm of their block."""
    unit = "nat (KL)" if squares else "nat per unit of x"
    first = cut(made_up(1)[0], ["<s>", "The", " key", "s", " of", " é"], [9.0, 1.0, 3.0, 4.0, 2.0, 6.0], [0])
    second = cut(made_up(1)[0], [" The", " keys", " o", "f", " é⟨1/2⟩", " é⟨2/2⟩"], [1.0, 5.0, 1.2, 1.6, 3.6, 4.8], [])
    if squares:
        first, second = ({**row, "scores": [s**2 for s in row["scores"]]} for row in (first, second))
    found = js.corpus.agreement(
        opened(tmp_path / "a", [first], unit=unit, model="A"), opened(tmp_path / "b", [second], unit=unit, model="B")
    )
    assert [row.mean.mean for row in found.rows] == pytest.approx([1, 1, 1, 1])
    assert found.names == ("A", "B")
    assert "compared on stretches of text that are whole tokens in both: 1" in found.notes[0]


def test_a_text_that_ends_alike_is_not_the_same(tmp_path: Path) -> None:
    first = cut(made_up(1)[0], [" a", " b", " c", " d", " e", " f"], [1.0] * 6, [])
    second = cut(made_up(1)[0], [" d", " e", " f"], [1.0] * 3, [])
    with pytest.raises(js.InputError, match="another position"):
        js.corpus.agreement(opened(tmp_path / "a", [first]), opened(tmp_path / "b", [second]))


def test_settings_that_differ_are_named(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    a = opened(tmp_path / "a", rows, dtype="float32", options={"rank": 3, "seed": 0}, device="cpu")
    b = opened(tmp_path / "b", rows, dtype="bfloat16", options={"rank": 4, "seed": 0}, device="cuda")
    assert js.corpus.agreement(a, b).notes == [
        "settings that differ: dtype 'float32' against 'bfloat16'; options.rank 3 against 4"
    ]


def test_roots_of_squares_beside_norms(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    squared = [{**row, "scores": [s**2 for s in row["scores"]]} for row in rows]
    found = js.corpus.agreement(
        opened(tmp_path / "a", rows), opened(tmp_path / "b", squared, unit="2 nat (KL) per unit of x squared")
    )
    assert [row.mean.mean for row in found.rows] == pytest.approx([1] * 4)
    assert [row.difference.mean for row in found.differences] == pytest.approx([0] * 3, abs=1e-6)
    assert any("roots" in note for note in found.notes)


@pytest.mark.slow
def test_scopes_of_a_model(pocket: Any, tmp_path: Path) -> None:
    prompts = [prompt.text for prompt in js.pocket_prompts("agreement", 12)]
    runs = [
        js.corpus.open(attributed(tmp_path / s, pocket, prompts, s)) for s in ("temperature", "entropy", "semantic")
    ]
    found = js.corpus.agreement(runs[0], runs[1])
    assert found.names == ("temperature", "entropy")
    expected = [
        stats.spearmanr(
            *(js.attribute(pocket, prompt, scope).scores[1:].numpy() for scope in ("temperature", "entropy"))
        ).statistic
        for prompt in prompts
    ]
    assert found.rows[0].mean.mean == pytest.approx(np.mean(expected), abs=1e-4)
    assert "1 with an error" in repr(found)
    assert js.corpus.agreement(*runs[:2], names=("x", "y")).headline() == "x against y on 12 prompts"
    with pytest.raises(js.InputError, match="names are two"):
        js.corpus.agreement(*runs[:2], names=["x"])
    with pytest.raises(ValueError, match="same prompts"):
        replace(found, n=3)
