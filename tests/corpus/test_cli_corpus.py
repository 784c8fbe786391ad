"""The command ``jscope corpus``: what it writes and says, its exit codes, and how it ends when it is told to."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jscope_tl as js
from jscope_tl.cli import corpus
from jscope_tl.cli.command import main
from jscope_tl.corpus import batching

pytestmark = pytest.mark.newest_line

PROMPTS = [prompt.text for prompt in js.pocket_prompts("agreement", 12)]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "p.jsonl"
    lines = [{"id": f"p{i}", "prompt": prompt, "target": " is", "n": i} for i, prompt in enumerate(PROMPTS)]
    path.write_text("\n".join(map(json.dumps, [*lines, {"id": "bad", "prompt": ""}])))
    return str(path)


@pytest.mark.slow
def test_writes_a_run_and_says_what_is_in_it(
    pocket: Any, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    how = ["--scope", "contrastive", "--baseline", " are", "--position", "-2", "--gradient", "attnlrp", "--quiet"]
    assert main(["corpus", prompts, "--out", out, *how]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{js.corpus.open(out).headline()}\n"
    assert "13 prompts, 1 with an error; contrastive, gradient attnlrp scope of jscope-pocket" in printed.out
    assert printed.err == ""
    for i in (0, 7):
        result = js.attribute(
            pocket, PROMPTS[i], "contrastive", target=" is", baseline=" are", position=-2, gradient="attnlrp"
        )
        row = js.corpus.open(out).row(f"p{i}")
        np.testing.assert_allclose(row.scores, result.scores.numpy(), rtol=1e-3, atol=1e-5)
        assert row.carried == {"n": i}


def test_causes_are_asked_for_as_a_scope_is(
    pocket: Any, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, few = str(tmp_path / "run"), tmp_path / "few.jsonl"
    few.write_text("".join(Path(prompts).read_text().splitlines(keepends=True)[2:4]))
    how = ["--scope", "explain", "--baseline", " are", "-o", "n=2", "--gradient", "plain", "--quiet"]
    assert main(["corpus", str(few), "--out", out, *how]) == 0
    assert "explain, gradient plain scope" in capsys.readouterr().out
    expected = js.explain(pocket, PROMPTS[3], " is", " are", gradient="plain")
    np.testing.assert_allclose(js.corpus.open(out).row("p3").scores, expected.scores.numpy(), rtol=1e-4)


def test_shards_land_in_one_folder_and_are_summarised(
    prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    for i in (1, 0):
        assert main(["corpus", prompts, "--out", out, "--shard", f"{i}/2", "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("13 prompts")
    assert main(["corpus", "summary", out, "--by", "distance"]) == 0
    assert "distance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "the following arguments are required: --out"),
        (["--scope", "fishr", "--out", "{out}"], "Did you mean 'fisher'"),
        (["--scope", "explain", "-o", "rank=3", "--out", "{out}"], "explain has no option 'rank'"),
        (["--scope", "explian", "--out", "{out}"], "--scope explain"),
        (["--scope", "explain", "--reduction", "dot", "--out", "{out}"], "explain takes no --reduction, got 'dot'"),
        (["--scope", "explain", "--target", " zzz", "--out", "{out}"], "not in the vocabulary"),
        (["--shard", "2/2", "--out", "{out}"], "shard is the number of the shard"),
        (["--column", "promt", "--out", "{out}"], "Did you mean 'prompt'"),
        (["--option", "rank", "--out", "{out}"], "NAME=VALUE"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    given = [option.format(out=tmp_path / "run") for option in options]
    try:
        code = main(["corpus", prompts, *given])
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_writes_what_is_complete_and_says_how_to_go_on(
    prompts: str,
    tmp_path: Path,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, real, passes = tmp_path / "run", batching.explain_together, []

    def told_in_the_second(batch: Any) -> Any:
        passes.append(batch)
        if len(passes) == 2:
            signal.raise_signal(number)
        return real(batch)

    monkeypatch.setattr(batching, "explain_together", told_in_the_second)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a shell ignores it
    try:
        assert main(["corpus", prompts, "--out", str(out), "--batch-tokens", "20"]) == corpus.INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"jscope: interrupted; the rows so far are in {out}, and the same command resumes the run"
    assert len(passes[0]) <= len(js.corpus.open(out)) < len(PROMPTS)
    assert len(passes) == 2
    assert main(["corpus", prompts, "--out", str(out), "--quiet"]) == 0
    assert len(js.corpus.open(out)) == len(PROMPTS) + 1


def test_a_request_to_end_is_handled_inside_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), corpus.ended_as_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
