"""The command on answers: a chat, a continuation, a given answer; and one clear line for what it cannot do."""

import io
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.cli.command import main
from tests import real_model

PROMPT = "the keys to the cabinet . the doors near"
CHAT = [{"role": "user", "content": "My brother Tom lives in Oslo. Where does Tom live?"}]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def printed_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_given_answer(capsys: pytest.CaptureFixture[str], pocket: Any) -> None:
    """The numbers of the Python call, and the sources that they are of."""
    found = printed_json(capsys, PROMPT, "--answer", " the house are old", "--by", "sentence", "--spans", "message")
    expected = js.attribute_text(pocket, PROMPT, " the house are old", by="sentence", spans="message")
    torch.testing.assert_close(torch.tensor(found["scores"]), expected.scores)
    torch.testing.assert_close(torch.tensor(found["token_scores"]), expected.token_scores)
    assert [source["text"] for source in found["sources"]] == [source.text for source in expected.sources]
    assert {field.name for field in fields(expected)} <= {*found}
    assert (found["scope"], found["unit"], len(found["rows"])) == ("log_prob", expected.unit, 1)


def test_a_continuation_is_generated(capsys: pytest.CaptureFixture[str], pocket: Any) -> None:
    found = printed_json(capsys, PROMPT, "--continue", "2")
    expected = js.attribute_text(pocket, PROMPT, max_new_tokens=2)
    assert found["str_tokens"] == expected.str_tokens
    assert len(found["rows"]) == 2
    assert found["continued"] == "greedy, cut after 2 tokens"
    torch.testing.assert_close(torch.tensor(found["scores"]), expected.scores)


def test_settings_go_on_to_the_scope(capsys: pytest.CaptureFixture[str], pocket: Any) -> None:
    found = printed_json(
        capsys, PROMPT, "--answer", " the house are", "--scope", "fisher", "-o", "method=low_rank", "-o", "rank=3",
        "--gradient", "attnlrp", "--at", "blocks.1.hook_resid_pre",
    )  # fmt: skip
    options = {"method": "low_rank", "rank": 3}
    expected = js.attribute_text(
        pocket, PROMPT, " the house are", scope="fisher", gradient="attnlrp", at="blocks.1.hook_resid_pre", **options
    )
    torch.testing.assert_close(torch.tensor(found["scores"]), expected.scores)
    against = printed_json(capsys, PROMPT, "--answer", " the house are", "--scope", "contrastive", "--baseline", " is")
    assert against["baseline"] == " is"


def test_prints_every_row(capsys: pytest.CaptureFixture[str], pocket: Any) -> None:
    result = js.attribute_text(pocket, PROMPT, " the house are old")
    for given, listed in ((["--top", "1"], 1), ([], 3)):
        assert main([PROMPT, "--answer", " the house are old", *given]) == 0
        out = capsys.readouterr().out
        assert f"prompt:  {PROMPT}" in out
        assert "warning: " not in out
        for i, row in enumerate(result.rows):
            best = ", ".join(f"{s.source.text!r} {s.source.positions[0]}: {s.score:.4g}" for s in result.top(listed, i))
            assert re.search(rf"{i} +'{row.text}' +\S+ +{re.escape(best)} *\n", out)


@pytest.mark.slow
def test_files_hold_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, saved = tmp_path / "page.html", tmp_path / "result.safetensors"
    assert main([PROMPT, "--continue", "3", "--html", str(page), "--save", str(saved)]) == 0
    js.report(js.TextAttribution.load(saved), tmp_path / "again.html")
    first, second = (
        re.sub(r"base64,[^\"]*", "", p.read_text(encoding="utf-8")) for p in (page, tmp_path / "again.html")
    )
    assert first == second
    assert "jscope-answer" in first


def chat_file(folder: Path, content: str) -> str:
    path = folder / "chat.json"
    path.write_text(content, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("{'role'", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is an empty list; give a list of messages"),
        ('{"messages": []}', "is an object; give a list"),
        ('"hello"', "is a string; give a list"),
        ("null", "is null; give a list"),
        ('["hello"]', "is a list with a string; give a list of messages"),
        ('[{"role": "user", "content": "a"}, 3]', "is a list with a number"),
        ('[{"role": "user"}]', "Message 0 is {'role': 'user'}"),
        ('[{"role": "user", "content": " "}]', "Message 0, of the user, is empty"),
        ('[{"role": "user", "content": "the keys"}]', "has no chat template"),
    ],
)
def test_chats_that_cannot_be_read(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--chat", chat_file(tmp_path, content)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_chats_from_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("[]"))
    assert main(["--chat", "-"]) == 2
    assert "The chat in standard input is an empty list" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chat", "no such file"], "'no such file' cannot be read"),
        (["--chat", "."], "cannot be read"),
        ([PROMPT, "--chat", "chat.json"], "--chat FILE replaces the prompt; give one of them"),
        (["--continue", "3"], "--continue needs a prompt"),
        ([" ", "--answer", " are"], "--answer needs a prompt"),
        ([PROMPT, "--continue", "3", "--answer", " are"], "give one of them"),
        ([PROMPT, "--continue", "0"], "1 or more; got 0"),
        ([PROMPT, "--answer", ""], "The continuation is empty"),
        (
            [PROMPT, "--continue", "3", "--target", " are"],
            "--target is an option for one prediction, but --continue explains every token",
        ),
        ([PROMPT, "--answer", " are", "-o", "target= is"], "leave the option target out"),
        ([PROMPT, "--answer", " are", "--position", "3"], "--position is an option for one prediction, but --answer"),
        ([PROMPT, "--answer", " are", "--per", "head"], "--per is an option for one prediction, but --answer"),
        ([PROMPT, "--answer", " are", "--attention"], "--attention is an option for one prediction"),
        ([PROMPT, "--by", "sentence"], "--by needs an answer to explain; add --continue N or --answer TEXT"),
        ([PROMPT, "--spans", "word"], "--spans needs an answer to explain"),
        ([PROMPT, "--answer", " are", "--by", "sentense"], "Did you mean 'sentence'"),
        ([PROMPT, "--answer", " are", "--spans", "sentences"], "spans is 'token', 'word'"),
        ([PROMPT, "--answer", " are", "--scope", "contrastive"], "needs a baseline"),
        ([PROMPT, "--answer", " are", "--scope", "fischer"], "Did you mean 'fisher'"),
        ([PROMPT, "--answer", " are", "--top", "0"], "--top is the number of tokens to list, 1 or more"),
        ([PROMPT, "--answer", " are", "--html", "/no/such/folder/page.html"], "no folder"),
        ([PROMPT, "--answer", " are", "--html", "same", "--save", "same"], "the same file"),
    ],
)
def test_wrong_input_costs_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.slow
def test_a_closed_pipe_keeps_the_files(tmp_path: Path) -> None:
    command = f"{sys.executable} -m jscope_tl.cli '{PROMPT}' --continue 2 --json --save {tmp_path}/r | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True)
    assert done.returncode == 0
    assert len(js.TextAttribution.load(tmp_path / "r").rows) == 2


@pytest.mark.real
@pytest.mark.slow
def test_a_chat_of_a_real_model(smollm2: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model answers Oslo, and Oslo in the question is the strongest source of it."""
    path, saved = chat_file(tmp_path, json.dumps(CHAT)), tmp_path / "r.safetensors"
    model = ["--model", str(real_model.folder())]
    assert (
        main(["--chat", path, *model, "--continue", "12", "--save", str(saved), "--html", str(tmp_path / "p.html")])
        == 0
    )
    assert re.search(r"user: My brother Tom lives in Oslo\. Where", capsys.readouterr().out)
    result = js.TextAttribution.load(saved)
    said = [row.text for row in result.rows]
    best = result.top(1, said.index(" Oslo"))[0].source
    assert (best.text, best.role) == (" Oslo", "user")
    answered = [*CHAT, {"role": "assistant", "content": "He lives in Oslo."}]
    path = chat_file(tmp_path, json.dumps(answered))
    given = printed_json(capsys, "--chat", path, *model, "--by", "message", "--spans", "message")
    assert [source["role"] for source in given["sources"] if source["message"] >= 0] == ["user", "assistant"]
    assert len(given["rows"]) == 1
    assert main(["--chat", path, *model, "--continue", "3"]) == 2
    assert "leave out --continue" in capsys.readouterr().err
