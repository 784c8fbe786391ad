"""The command ``jscope corpus summary``: what it prints and writes, and one clear line for what it cannot do."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import jscope_tl as js
from jscope_tl.cli import corpus_summary
from jscope_tl.cli.command import _run
from tests.corpus.written import failed, made_up, written

pytestmark = pytest.mark.newest_line


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    rows = [*made_up(60), failed("x", "no")]
    return [str(written(folder / name, rows, scope=name)) for name in ("temperature", "entropy")]


def command(*argv: str) -> int:
    return _run(partial(corpus_summary.run, argv))


def test_prints_everything(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(folders[0], "--top", "3") == 0
    out = capsys.readouterr().out
    run = js.corpus.open(folders[0])
    assert run.headline() in out
    for found in (
        js.corpus.by_distance(run),
        js.corpus.by_position(run),
        js.corpus.by_token(run),
        js.corpus.by_target(run),
    ):
        assert f"by {found.by}" in out
        row = found.rows[0]
        assert f"{row.ratio.low:.2f} to {row.ratio.high:.2f}" in out
    assert "an error: 1" in out
    assert out.count("times chance: score") == 1


def test_json_is_what_the_functions_give(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(folders[0], "--by", "token", "--against", folders[1], "--json") == 0
    found = json.loads(capsys.readouterr().out)
    runs = [js.corpus.open(folder) for folder in folders]
    expected = js.corpus.by_token(runs[0])
    (summary,) = found["summaries"]
    assert [row["ratio"]["mean"] for row in summary["rows"]] == [row.ratio.mean for row in expected.rows]
    assert found["agreement"]["names"] == ["temperature", "entropy"]
    assert found["agreement"]["n"] == js.corpus.agreement(*runs).n


def test_against_another_run(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(folders[0], "--by", "distance", "--against", folders[1]) == 0
    out = capsys.readouterr().out
    n = js.corpus.agreement(*map(js.corpus.open, folders)).n
    assert f"temperature against entropy on {n} prompts" in out
    assert "1.000 to 1.000" in out  # the same scores


def test_classes(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({f"w{i}": "low" for i in range(6)}))
    assert command(folders[0], "--by", "class", "--classes", str(path)) == 0
    out = capsys.readouterr().out
    assert "low" in out
    assert "other" in out
    assert command(folders[0], "--contains", "w3", "--target", " w1", "--by", "position") == 0
    assert "containing 'w3', target ' w1'" in capsys.readouterr().out


@pytest.mark.slow
def test_a_page(folders: list[str], tmp_path: Path) -> None:
    assert command(folders[0], "--html", str(tmp_path / "page.html"), "--against", folders[1]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "By distance" in text
    assert "temperature against entropy" in text


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere"], "no folder 'nowhere'"),
        (["RUN", "--top", "0"], "--top is a whole number, 1 or more"),
        (["RUN", "--by", "class"], "--classes FILE"),
        (["RUN", "--classes", "nowhere.json"], "cannot be read"),
        (["RUN", "--html", "nowhere/x.html"], "no folder 'nowhere'"),
        (["RUN", "--against", "nowhere"], "no folder 'nowhere'"),
        (["RUN", "--contains", "zebra"], "nothing to summarise"),
    ],
)
def test_one_line_for_what_cannot_be_done(
    folders: list[str], argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [folders[0] if one == "RUN" else one for one in argv]
    assert command(*given) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_classes_that_are_none(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "classes.json"
    for content, says in (("[1]", "no JSON object"), ("{", "cannot be read"), ('{"w1": 3}', "for ' w1' it is 3")):
        path.write_text(content)
        assert command(folders[0], "--by", "class", "--classes", str(path)) == 2
        assert says in capsys.readouterr().err


def test_unknown_options(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--by", "words"], []):
        with pytest.raises(SystemExit) as stop:
            corpus_summary.run([folders[0], *argv] if argv else [])
        assert stop.value.code == 2
        assert "jscope corpus summary" in capsys.readouterr().err


def test_helps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        corpus_summary.run(["--help"])
    assert stop.value.code == 0
    text: Any = capsys.readouterr().out
    assert "--against" in text
