"""The command: what it prints, what it writes, and one clear line for what it cannot do."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.cli import command
from jscope_tl.cli.command import main
from jscope_tl.cli.faithfulness import read_prompts
from jscope_tl.faithfulness import methods as methods_module
from jscope_tl.model.loading import has_bridge
from tests import models

PROMPT = "the keys to the cabinet near the doors"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_prints_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([PROMPT, "--scope", "fisher"]) == 0
    out = capsys.readouterr().out
    assert PROMPT in out
    for part in (
        "fisher scope of the prediction at position 8",
        "predicts ' are'",
        "2 nats (KL)",
        "BOS is left out",
        "±",
    ):
        assert part in out


def test_json_is_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([PROMPT, "--scope", "contrastive", "--target", " are", "--baseline", " is", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    result = js.attribute(js.load_pocket_model(), PROMPT, "contrastive", target=" are", baseline=" is")
    assert printed["scores"] == pytest.approx(result.scores.tolist())
    assert printed["unit"] == result.unit
    assert printed["str_tokens"] == result.str_tokens
    assert set(printed) == {field.name for field in fields(result)}
    assert printed["provenance"] == asdict(result.provenance)
    assert printed["provenance"]["n_forward"] == 1


def test_writes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, saved = tmp_path / "page.html", tmp_path / "result.safetensors"
    assert (
        main([PROMPT, "--position", "-3", "--at", "blocks.1.hook_resid_pre", "--html", str(page), "--save", str(saved)])
        == 0
    )
    result = js.Attribution.load(saved)
    assert (result.position, result.provenance.hook_point) == (6, "blocks.1.hook_resid_pre")
    assert "cabinet" in page.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [["--scope", "fisher"], ["--scope", "log_prob", "--path", "noise"]])
def test_report_beside_attention(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main([PROMPT, *settings, "--html", str(page), "--attention"]) == 0
    label = ", ".join(settings[1::2])
    assert f"Agreement of heads with {label}" in page.read_text(encoding="utf-8")


def test_options_of_a_scope(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([PROMPT, "--scope", "fisher", "-o", "method=low_rank", "-o", "rank=3", "--json"]) == 0
    options = json.loads(capsys.readouterr().out)["options"]
    assert (options["method"], options["rank"]) == ("low_rank", 3)


def test_lists_scopes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-scopes"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in js.available_scopes())
    assert "method, rank, images, probes" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a prompt"),
        ([PROMPT, "--scope", "fischer"], "Did you mean 'fisher'"),
        ([PROMPT, "--target", " keys zebra"], "words that are not in the vocabulary"),
        ([PROMPT, "--target", "zebra"], "not in the vocabulary"),
        ([PROMPT, "--scope", "entropy", "--target", " are"], "no option 'target'"),
        ([PROMPT, "--scope", "contrastive"], "needs a baseline"),
        ([PROMPT, "--position", "99"], "outside the prompt"),
        ([PROMPT, "--at", "hook_embd"], "Did you mean 'hook_embed'"),
        ([PROMPT, "--device", "abacus"], "Device 'abacus'"),
        ([PROMPT, "--dtype", "float8"], "no dtype 'float8'"),
        ([PROMPT, "-o", "rank"], "NAME=VALUE"),
        ([PROMPT, "--html", "/no/such/folder/page.html"], "no folder"),
        ([PROMPT, "--top", "0"], "1 or more"),
        ([""], "empty"),
        (["explain", PROMPT], "use --scope explain"),
        (["the \udcff keys"], "are not text"),
        ([PROMPT, "--target", " are", "-o", "target=44"], "given twice"),
        ([PROMPT, "--device", "meta"], "holds no data"),
        ([PROMPT, "--save", ""], "not a path of a file"),
        ([PROMPT, "--html", "."], "not a path of a file"),
        ([PROMPT, "--attention"], "give both"),
        (
            [PROMPT, "--scope", "fisher", "--target", " are"],
            "scope that has it: alternatives, contrastive, log_prob, semantic",
        ),
        ([PROMPT, "--baseline", " is"], "Leave it out, or use a scope that has it: alternatives, contrastive"),
        ([" \n\t"], "the prompt is empty; give one"),
        ([PROMPT, "--html", "same", "--save", "./same"], "the same file"),
        ([PROMPT, "--save", os.devnull], "pass another file name"),
        ([PROMPT, "-o", "target=" + "[" * 100_000], "not in the vocabulary"),
        ([PROMPT, "-o", "target=" + "1" * 5_000], "not in the vocabulary"),
    ],
)
def test_wrong_input_costs_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-such-option"], "unrecognized arguments"),
        ([PROMPT, "--position", "last"], "invalid int value: 'last'"),
        ([PROMPT, "more"], "unrecognized arguments: more; a prompt of several words needs quotes"),
        ([PROMPT, "--scope", "fisher", "--scope", "entropy"], "--scope is given twice"),
        ([PROMPT, "--top=3", "--top", "3"], "--top is given twice"),
        (["faithfulness", "--methods", "random", "--methods", "fisher"], "--methods is given twice"),
        (["faithfulness", "--n"], "expected one argument"),
    ],
)
def test_options_that_argparse_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_options_that_may_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--frozen", "attn", "--frozen", "norm", "-o", "target= are", "--option", "target= is"]
    assert main([PROMPT, *arguments]) == 2
    assert "target is given twice" in capsys.readouterr().err
    assert main([PROMPT, *arguments[:-2]]) == 0


@pytest.mark.parametrize("per", [None, "layer", "head"])
def test_gradient_rules_and_attention_patterns(
    capsys: pytest.CaptureFixture[str], pocket: Any, per: str | None
) -> None:
    """The numbers of the Python call."""
    own = [] if per is None else ["--per", per]
    assert main([PROMPT, "--scope", "log_prob", "--gradient", "attnlrp", "--at", "pattern", *own, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = js.attribute(pocket, PROMPT, "log_prob", gradient="attnlrp", at="pattern", per=per)
    torch.testing.assert_close(torch.tensor(found["scores"]), expected.scores)
    assert found["unit"] == expected.unit


def test_rules_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in (
        (["--gradient", "lrp"], "Did you mean 'attnlrp'"),
        (["--gradient", "gim", "--frozen", "attn"], "Give one of them"),
        (["--per", "head"], "it needs at='pattern'"),
    ):
        assert main([PROMPT, *given]) == 2
        assert said in capsys.readouterr().err


def test_folders_that_hold_no_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """They are no names, so no hub is asked for them."""
    file = tmp_path / "file"
    file.touch()
    for name, message in (
        (str(tmp_path / "none"), "There is no folder"),
        ("./none", "There is no folder"),
        ("~/no/such/folder", "There is no folder"),
        (str(file), "is a file; give the folder"),
        (str(tmp_path), "save_pretrained"),
        (" ", "is empty"),
    ):
        assert main([PROMPT, "--model", name]) == 3
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_an_interrupted_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "attribute", interrupt)
    assert main([PROMPT]) == 130
    assert capsys.readouterr().err == "jscope: interrupted\n"


def interrupt(*args: object, **how: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "text", ['["the keys", "a key"]', '[\n  {"prompt": "the keys"}\n]', '[{"prompt": "the keys"}]', "["]
)
def test_a_json_array_of_prompts(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(text)
    assert main(["faithfulness", "--prompts", str(path), "--methods", "random"]) == 2
    captured = capsys.readouterr()
    assert "JSON array" in captured.err
    assert 'one JSON object per line, as in {"prompt": "..."}' in captured.err
    assert captured.err.count("\n") == 1


METHODS = ["random", "semantic", "temperature", "entropy"]
MEASURED = ["faithfulness", "--n", "2", "--json", "--methods", *METHODS]


def slower(monkeypatch: pytest.MonkeyPatch, stop_at: tuple[str, int] | None = None) -> list[tuple[str, int]]:
    """temperature seems to take 20 s and entropy an hour; returns what is explained, and Ctrl-C comes at one of them."""
    plain, seen, prompts = methods_module.Explainer._one, list[tuple[str, int]](), list[Any]()

    def one(self: Any, name: str, tokens: Any, *given: Any) -> Any:
        prompts.extend([] if any(tokens is known for known in prompts) else [tokens])
        seen.append((name, next(i for i, known in enumerate(prompts) if known is tokens)))
        if seen[-1] == stop_at:
            raise KeyboardInterrupt
        seconds = {"temperature": 20.0, "entropy": 3600.0}.get(name, 0.1)
        return replace(plain(self, name, tokens, *given), seconds=seconds)

    monkeypatch.setattr(methods_module.Explainer, "_one", one)
    return seen


@pytest.mark.slow
def test_cheap_methods_come_first_and_dear_ones_are_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = slower(monkeypatch)
    assert main(MEASURED) == 0
    out, err = capsys.readouterr()
    last = list(dict.fromkeys(seen))
    n = max(i for _, i in last) + 1
    assert last[:4] == [(name, 0) for name in METHODS]
    later = [name for name, i in last[4:]]
    assert later == ["random", "semantic"] * (n - 1) + ["temperature"] * (n - 1) + ["entropy"] * (n - 1)
    assert f"2 methods on {n - 1} more prompts" in err
    assert f"temperature about {20 * (n - 1) / 60:.0f} min, entropy about {n - 1:.1f} h" in err
    monkeypatch.undo()
    tasks = [task for task in js.pocket_tasks() if task != "series"]
    prompts = [prompt for task in tasks for prompt in js.pocket_prompts(task, 2)]
    together = js.faithfulness.evaluate(js.load_pocket_model(), prompts, METHODS)
    for name, rows in json.loads(out).items():
        same = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        expected = [{k: v for k, v in row.items() if k != "seconds"} for row in together[name].rows]
        assert sorted(same, key=str) == sorted(expected, key=str)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop_at", "kept", "n", "message"),
    [
        (("semantic", 0), [], 0, "interrupted in the first prompt; nothing is complete"),
        (("semantic", 3), ["random", "semantic"], 3, "3 of 12 prompts are complete; missing: temperature, entropy."),
        (
            ("temperature", 1),
            ["random", "semantic"],
            12,
            "temperature had 1 of 12 prompts; missing: temperature, entropy.",
        ),
        (("entropy", 4), ["random", "semantic", "temperature"], 12, "entropy had 4 of 12 prompts; missing: entropy."),
    ],
)
def test_an_interruption_keeps_what_is_complete(
    stop_at: tuple[str, int],
    kept: list[str],
    n: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    slower(monkeypatch, stop_at)
    assert main([*MEASURED, "--csv", str(tmp_path)]) == 130
    out, err = capsys.readouterr()
    assert message in err
    assert bool(out) == bool(kept) == bool(list(tmp_path.iterdir()))
    for rows in (json.loads(out) if kept else {}).values():
        assert [row["method"] for row in rows if row["prompt"] == 0] == kept
        assert {method: sum(row["method"] == method for row in rows) for method in kept} == dict.fromkeys(kept, n)


def test_a_prompt_may_begin_with_a_bracket(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text("[INST] the keys to\nthe keys [1]\n")
    assert read_prompts(str(path)) == ["[INST] the keys to", "the keys [1]"]


def test_a_model_that_cannot_be_loaded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([PROMPT, "--model", "no-such/model"]) == 3
    assert main([PROMPT, "--model", str(tmp_path)]) == 3
    err = capsys.readouterr().err
    assert "'no-such/model' could not be loaded" in err
    assert err.count("\n") == 2


@pytest.mark.skipif(not has_bridge(), reason="TransformerLens before 3 loads no local folders")
def test_a_local_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    models.hf_model("gpt2").save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    assert main([PROMPT, "--model", str(tmp_path), "--json", "--dtype", "bfloat16"]) == 0
    provenance = json.loads(capsys.readouterr().out)["provenance"]
    assert provenance["dtype"] == "bfloat16"


@pytest.mark.slow
def test_as_a_command_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jscope_tl.cli", PROMPT, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["scope"] == "semantic"
    assert done.stderr == ""


def run_with(environment: dict[str, str], *arguments: str, **how: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "jscope_tl.cli", *arguments]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, **how)  # type: ignore[call-overload]


@pytest.mark.slow
def test_terminals_without_unicode() -> None:
    done = run_with(
        {"PYTHONIOENCODING": "ascii"}, "german : der hund schläft . english : the", "--scope", "entropy", "--json"
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert " schläft" in json.loads(done.stdout)["str_tokens"]
    assert run_with({"PYTHONIOENCODING": "ascii"}, "--list-scopes").returncode == 0


@pytest.mark.slow
def test_a_closed_pipe_is_no_failure(tmp_path: Path) -> None:
    command = f"{sys.executable} -m jscope_tl.cli '{PROMPT}' --json --save {tmp_path}/r | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert js.Attribution.load(tmp_path / "r").scope == "semantic"


def test_warning_filters_are_as_before() -> None:
    before = list(warnings.filters)
    main([PROMPT, "--json"])
    assert list(warnings.filters) == before


@pytest.mark.slow
def test_options_of_the_wrong_type_cost_one_line() -> None:
    """In a process of its own, which has no type checks of the tests."""
    options = ["rtol=abc", "rtol=null", "seed=null", "method=3", "rank=half"]
    code = (
        f"from jscope_tl.cli import main; print([main([{PROMPT!r}, '--scope', 'fisher', '-o', o]) for o in {options}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[2, 2, 2, 2, 2]\n"
    said = done.stderr.splitlines()
    assert len(said) == len(options)
    assert all(line.startswith("jscope: ") for line in said)


def test_a_prompt_that_looks_like_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heds", "--top", "1"]) == 0
    assert capsys.readouterr().err == "jscope: 'heds' is a prompt, not a command. Did you mean 'heads'?\n"
    for prompt in (["the keys"], ["the heads"], ["map"], ["guide"]):
        assert main(prompt) == 0
        assert not capsys.readouterr().err


def test_explain_beside_the_scopes(capsys: pytest.CaptureFixture[str], pocket: Any, tmp_path: Path) -> None:
    """`js.explain` is asked as a scope is; options that it settles itself are refused by name."""
    page = tmp_path / "page.html"
    asked = ["--scope", "explain", "--target", " liberal", "--baseline", " conservative", "--json", "--html", str(page)]
    assert main([PROMPT, *asked]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"] == pytest.approx(
        js.explain(pocket, PROMPT, " liberal", " conservative").scores.tolist(), rel=1e-4
    )
    assert page.stat().st_size > 10_000
    assert main([PROMPT, "--scope", "explain", "--gradient", "relp", "--per", "head"]) == 2
    assert "explain takes no --per, got 'head'; leave it out" in capsys.readouterr().err
    assert main([PROMPT, "--scope", "explain", "-o", "rank=3"]) == 2
    assert main([PROMPT, "--scope", "explain", "--attention", "--html", str(tmp_path / "other.html")]) == 2
    assert "--attention is not for --scope explain" in capsys.readouterr().err
    assert not (tmp_path / "other.html").exists()
    assert main([PROMPT, "--scope", "explain", "--gradient", "plain", "--json"]) == 0
    plain = js.explain(pocket, PROMPT, gradient="plain").scores.tolist()
    assert json.loads(capsys.readouterr().out)["scores"] == pytest.approx(plain, rel=1e-4, abs=1e-6)
    with pytest.raises(js.InputError, match="js.explain"):
        js.attribute(pocket, PROMPT, "explain")


def test_heads_of_a_target_need_a_scope_that_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", PROMPT, "--target", " liberal"]) == 2
    assert "--target needs --scope log_prob" in capsys.readouterr().err
    assert main(["heads", PROMPT, "--target", " liberal", "--baseline", " conservative"]) == 2
    assert "--baseline needs --scope contrastive" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "app", "corpus", "corpus summary", "heads", "faithfulness", "guide"])
def test_help_fits_into_a_terminal(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


def test_hints_for_a_prompt_are_given_only_where_they_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([PROMPT, "--bogus"])
    assert "quotes" not in capsys.readouterr().err
    assert main(["explain"]) == 0  # a prompt of one word
