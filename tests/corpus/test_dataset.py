"""A run as a data set: what is read is what is in the files, and what is damaged is named."""

import inspect
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jscope_tl as js
from jscope_tl.corpus.schema import ROW
from tests.corpus.written import attributed, failed, made_up, row_of, written

pytestmark = pytest.mark.newest_line

PROMPTS = [
    "the keys to the cabinet near the doors",
    "the key near the door",
    "29 , 35 , 41 ,",
    "the keys near the door",
]


@pytest.fixture(scope="module")
def folder(pocket: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return attributed(tmp_path_factory.mktemp("run"), pocket, PROMPTS, n_parts=2)


@pytest.fixture(scope="module")
def run(folder: Path) -> js.corpus.CorpusRun:
    return js.corpus.open(folder)


def test_rows_are_those_of_attribute(pocket: Any, run: js.corpus.CorpusRun) -> None:
    assert len(run) == 5
    assert [row.id for row in run] == ["0", "1", "2", "3", "bad"]
    for row, prompt in zip(run, PROMPTS, strict=False):
        result = js.attribute(pocket, prompt, "temperature")
        assert row.scores == pytest.approx(result.scores.numpy(), rel=1e-4)
        assert row.str_tokens == result.str_tokens
        assert row.target_str == result.prediction.target.str_token
        assert row.top(3) == [(t.position, t.str_token, pytest.approx(t.score, rel=1e-4)) for t in result.top(3)]
        assert row.stderr is None
        assert run.row(row.id).tokens.tolist() == result.tokens.tolist()
    assert run.unit == result.unit
    assert run.lengths().tolist() == [len(js.attribute(pocket, prompt).tokens) for prompt in PROMPTS] + [0]


def test_a_row_with_an_error(run: js.corpus.CorpusRun) -> None:
    row = run.row("bad")
    assert row.error == "the prompt is empty"
    assert row.carried == {"source": "a"}
    assert (row.position, len(row.scores), row.top(), row.text) == (None, 0, [], "")
    assert run.n_errors == 1
    assert "the prompt is empty" in repr(row)


def test_where(run: js.corpus.CorpusRun) -> None:
    assert [row.id for row in run.where(errors=True)] == ["bad"]
    assert len(run.where(errors=False)) == 4
    assert [row.id for row in run.where(contains="cabinet near")] == ["0"]
    first = run.row(0)
    assert first.target is not None
    of_text, of_id = (run.where(target=target) for target in (first.target_str, first.target))
    assert [row.id for row in of_text] == [row.id for row in of_id]
    assert {row.target for row in of_text} == {first.target}
    assert [row.id for row in run.where(ids=[3, "1"]).where(contains="keys")] == ["3"]
    assert len(run.where(contains="keys").where(errors=True)) == 0
    with pytest.raises(js.InputError, match=r"where\(\) left it out"):
        run.where(errors=True).row("0")


def test_where_knows_characters_that_several_tokens_hold(tmp_path: Path, pocket: Any) -> None:
    row = row_of("0", js.attribute(pocket, PROMPTS[1]))
    row["str_tokens"] = ["<bos>", " é⟨1/2⟩", " é⟨2/2⟩", " x", " y", *row["str_tokens"][5:]]
    run = js.corpus.open(written(tmp_path, [row]))
    assert len(run.where(contains="é x")) == 1


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"errors": "yes"}, "errors is True"),
        ({"contains": 3}, "part of the prompt's text"),
        ({"target": 1.5}, "text or the id"),
        ({"target": -1}, "text or the id"),
        ({"ids": "12"}, "ids is a list of ids"),
        ({"ids": 3}, "ids is a list of ids"),
    ],
)
def test_bad_conditions(run: js.corpus.CorpusRun, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(js.InputError, match=says):
        inspect.unwrap(js.corpus.CorpusRun.where)(run, **asked)


def test_unknown_names(run: js.corpus.CorpusRun) -> None:
    with pytest.raises(js.InputError, match="no prompt 'bat' among the 5.*Did you mean 'bad'"):
        run.row("bat")
    with pytest.raises(js.InputError, match="no column 'score'.*Did you mean 'scores'"):
        run.to_pandas(["score"])
    with pytest.raises(js.InputError, match="size is how many rows"):
        next(run.batches(size=0))


def test_frames_are_what_plain_readers_see(folder: Path, run: js.corpus.CorpusRun) -> None:
    plain = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert run.to_arrow().to_pylist() == plain
    frame = run.to_pandas()
    assert list(frame.columns) == ROW.names
    assert frame.attrs["unit"] == run.unit
    assert [scores if scores is None else scores.tolist() for scores in frame.scores] == [
        row["scores"] for row in plain
    ]
    assert run.where(errors=True).to_pandas(["id"]).id.tolist() == ["bad"]
    assert [row["id"] for batch in run.batches(["id"], size=2) for row in batch.to_pylist()] == [
        row["id"] for row in plain
    ]


def test_polars(run: js.corpus.CorpusRun, monkeypatch: pytest.MonkeyPatch) -> None:
    polars = pytest.importorskip("polars")
    frame = run.to_polars()
    assert isinstance(frame, polars.DataFrame)
    assert frame["scores"].to_list() == run.to_arrow()["scores"].to_pylist()
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    with pytest.raises(js.InputError, match="pip install polars"):
        run.to_polars()


def test_duckdb_reads_the_files(run: js.corpus.CorpusRun) -> None:
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.execute(
        "SELECT id, list_max(scores) FROM read_parquet($files) WHERE error IS NULL ORDER BY id",
        {"files": list(run.files)},
    ).fetchall()
    assert found == [(row.id, pytest.approx(float(row.scores.max()))) for row in run.where(errors=False)]


def test_an_empty_run(tmp_path: Path) -> None:
    run = js.corpus.open(written(tmp_path, [], n_parts=0))
    assert (len(run), list(run), run.n_errors, len(run.to_pandas()), run.lengths().tolist()) == (0, [], 0, 0, [])
    assert len(js.corpus.open(written(tmp_path, [], n_parts=1))) == 0
    with pytest.raises(js.InputError, match="no prompt"):
        run.row("0")


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(js.InputError, match="no folder"):
        js.corpus.open(tmp_path / "none")
    with pytest.raises(js.InputError, match=r"has no run\.json"):
        js.corpus.open(tmp_path)
    for content in ("{", "[1]"):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(js.InputError, match=r"run\.json"):
            js.corpus.open(tmp_path)


def test_a_prompt_twice(tmp_path: Path) -> None:
    rows = made_up(4)
    with pytest.raises(js.InputError, match=r"'2', in '.*part-0-00000.parquet' and '.*part-0-00001.parquet'"):
        js.corpus.open(written(tmp_path, [*rows, rows[2]], n_parts=2))


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "flipped", "foreign"])
def test_a_damaged_part_is_named(tmp_path: Path, damage: str) -> None:
    folder = written(tmp_path, made_up(40), n_parts=2)
    path = folder / "part-0-00001.parquet"
    content = path.read_bytes()
    if damage == "foreign":
        pq.write_table(pq.read_table(path).drop(["scores"]), path)
    else:
        middle = content.index(b" w1") - 40
        flipped = (
            content[:middle] + bytes(255 - byte for byte in content[middle : middle + 30]) + content[middle + 30 :]
        )
        path.write_bytes({"cut": content[:-20], "empty": b"", "other": b"x" * 500, "flipped": flipped}[damage])
    with pytest.raises(js.InputError, match=r"part-0-00001\.parquet"):
        list(js.corpus.open(folder))


def test_files_that_are_no_parts_are_left_alone(tmp_path: Path) -> None:
    folder = written(tmp_path, made_up(3))
    (folder / ".part-0-00001.parquet.tmp").write_bytes(b"torn")
    (folder / "notes.txt").write_text("x")
    assert len(js.corpus.open(folder)) == 3


@pytest.mark.slow
def test_rows_are_read_as_they_are_needed(tmp_path: Path) -> None:
    """Going through ten times as many rows takes no more memory, but for their ids."""
    peaks = []
    for n in (600, 6000):
        run = js.corpus.open(written(tmp_path / str(n), made_up(n, longest=60)))
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        arrow = max(pa.total_allocated_bytes() - before for _ in run)
        peaks.append(arrow + tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


def test_settings_are_those_of_the_file(tmp_path: Path) -> None:
    folder = written(tmp_path, [*made_up(2), failed("x", "no")], scope="fisher", model="m", unit="nat (KL)", other=[1])
    run = js.corpus.open(folder)
    assert run.settings == json.loads((folder / "run.json").read_text())
    assert (run.scope, run.model, run.unit) == ("fisher", "m", "nat (KL)")
    assert "3 prompts, 1 with an error; fisher scope of m" in repr(run)
    assert np.asarray(run.ids).tolist() == ["0", "1", "x"]
