"""The command ``jscope heads``: what it prints, what it writes, and one clear line for what it cannot do."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.cli.command import main, parser
from jscope_tl.cli.heads import OF
from jscope_tl.cli.heads import parser as heads_parser

pytestmark = pytest.mark.newest_line

PROMPT = "the keys to the cabinet near the doors"
OTHER = "the key to the cabinet near the doors"
CONTRAST = ["--scope", "contrastive", "--target", " are", "--baseline", " is"]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def found(capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    assert main(["heads", PROMPT, *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_prints_the_strongest_heads(pocket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", PROMPT, "--top", "3"]) == 0
    out = capsys.readouterr().out
    effects = js.patching.components(pocket, PROMPT)
    lines = [line.split() for line in out.splitlines() if line[:1].isdecimal()]
    assert [line[1] for line in lines] == [f"L{one.layer}H{one.head}" for one in effects.top(3)]
    assert [float(line[2]) for line in lines] == pytest.approx([one.effect for one in effects.top(3)], rel=1e-3)
    for part in ("fisher scope", "source zero", "nat (KL)", "refined", "blocks.1.attn.hook_z head 3", "cost: prediction", PROMPT,
                 "predicts ' are'", "--measure 3 measures the strongest"):  # fmt: skip
        assert part in out
    assert ".measure(5) measures the strongest" in repr(effects)


def test_measured_effects_are_not_called_predictions(pocket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", PROMPT, "--top", "2", "--measure", "2"]) == 0
    assert "predictions, which" not in capsys.readouterr().out
    assert "predictions, which" not in repr(js.patching.components(pocket, PROMPT).measure(16))


def test_json_is_the_result(pocket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    printed = found(capsys, *CONTRAST, "--source", "mean", "--positions", "each", "--position", "-2")
    effects = js.patching.components(
        pocket, PROMPT, "contrastive", target=" are", baseline=" is", source="mean", positions="each", position=-2
    )
    assert set(printed) == {field.name for field in fields(effects)}
    assert torch.allclose(torch.tensor(printed["predicted"]), effects.predicted, atol=1e-5)
    assert printed["axes"] == ["layer", "head", "pos"]
    assert printed["position"] == 7
    assert printed["measured"] is None


def test_what_was_not_measured_has_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", PROMPT, "--measure", "2", "--json"]) == 0
    out = capsys.readouterr().out
    assert "NaN" not in out
    numbers = [number for row in json.loads(out)["measured"] for number in row]
    assert sum(number is not None for number in numbers) == 2


@pytest.mark.slow
@pytest.mark.parametrize("of", OF)
def test_every_kind(of: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, saved = tmp_path / "page.html", tmp_path / "effects.safetensors"
    files = ["--html", str(page), "--save", str(saved)]
    assert main(["heads", PROMPT, *CONTRAST, "--of", of, *files, "--measure", "2"]) == 0
    out = capsys.readouterr().out
    assert "measured" in out
    effects = js.patching.ComponentEffects.load(saved)
    assert effects.of == of
    text = page.read_text(encoding="utf-8")
    assert text.count('class="jscope-map"') == 1
    assert ("CircuitsVis.AttentionPattern, {" in text) == (of == "edges")


def test_another_prompt_as_source(capsys: pytest.CaptureFixture[str]) -> None:
    printed = found(capsys, "--source", OTHER)
    assert "".join(printed["source_str_tokens"]).endswith(OTHER)


def test_prompts_from_a_file(pocket: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(f"{OTHER}\nthe books to the cabinet near the doors\n")
    effects = js.patching.components(pocket, PROMPT, source="mean", prompts=path.read_text().split("\n")[:2])
    printed = found(capsys, "--source", "mean", "--prompts", str(path))
    assert printed["source"] == effects.source
    assert torch.allclose(torch.tensor(printed["predicted"]), effects.predicted, atol=1e-5)
    assert found(capsys, "--source", "resample", "--prompts", str(path))["source_str_tokens"] is not None


def test_options_of_the_scope(capsys: pytest.CaptureFixture[str]) -> None:
    assert found(capsys, "-o", "method=exact")["options"]["method"] == "exact"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "give a prompt, as in: jscope heads"),
        (["  "], "the prompt is empty"),
        ([PROMPT, "--of", "hesds"], "--of is one of heads, edges, attn, mlps, neurons; got 'hesds'. Did you mean 'heads'?"),
        ([PROMPT, "--of", "features"], "Features need an autoencoder"),
        ([PROMPT, "--measure", "0"], "--measure is the number of"),
        ([PROMPT, "--top", "0"], "--top is the number of components to list"),
        ([PROMPT, "--source", "meen"], "Did you mean 'mean'?"),
        ([PROMPT, "--source", "resample"], "prompts"),
        ([PROMPT, "--source", "the key"], "tokens"),
        ([PROMPT, "--positions", "ech"], "'each'"),
        ([PROMPT, "--prompts", "none.txt"], "none.txt"),
        ([PROMPT, "--scope", "fischer"], "Did you mean 'fisher'?"),
        ([PROMPT, "--html", "a.html", "--save", "a.html"], "the same file"),
        ([PROMPT, "--html", "no/such/folder/a.html"], "no/such/folder"),
        ([PROMPT, "--position", "99"], "99"),
        ([PROMPT, "-o", "method"], "NAME=VALUE"),
        ([PROMPT, "--prompts", "x", "--source", "zero"], "x"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(given: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", *given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize("given", [["--measure", "two"], ["--html"], ["--top", "1", "--top", "2"], ["--nothing"]])
def test_what_the_parser_refuses(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["heads", PROMPT, *given])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("jscope heads: ")


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["heads", PROMPT, "--model", str(tmp_path / "none")]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_shared_options_are_the_same_in_both_commands() -> None:
    own = {action.dest: action for action in heads_parser()._actions}
    shared = [action for action in parser()._actions if action.dest in own and action.dest != "help"]
    assert {"prompt", "scope", "model", "target", "baseline", "position", "option", "html", "save", "json"} <= {
        action.dest for action in shared
    }
    for action in shared:
        assert action.option_strings == own[action.dest].option_strings
        if action.dest not in ("scope", "top", "baseline", "gradient"):
            assert (action.help, action.default) == (own[action.dest].help, own[action.dest].default)


def test_the_main_help_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "jscope heads PROMPT" in capsys.readouterr().out
