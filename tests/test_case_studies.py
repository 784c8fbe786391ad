"""Every case study runs as a script, says whether its claims hold, and leaves its pictures; also on a model of one's own."""

import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

from jscope_tl.model.loading import has_bridge
from jscope_tl.pocket.load import pocket_folder

pytestmark = [pytest.mark.slow, pytest.mark.newest_line]

mpl.use("Agg")
FOLDER = Path(__file__).parents[1] / "examples" / "case_studies"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")
AS_IN_A_KERNEL = "import sys; sys.argv = ['ipykernel_launcher.py', '-f', 'kernel.json']; exec(open({!r}).read())"


def run(*command: str, cwd: Path | None = None) -> str:
    env = {
        **os.environ,
        "PYTHONPATH": str(FOLDER.parents[1]),
        "MPLBACKEND": "Agg",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=env, encoding="utf-8", cwd=cwd
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_here(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The output of a script that runs in this process, which has imported everything already."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "common", raising=False)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as in a process of its own
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    plt.close("all")
    return capsys.readouterr().out


def claims(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("CLAIM ")]


def pictures(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".png", ".html") and path.stat().st_size > 5_000]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pocket_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--longest", "240", "--prompts", "4")
    said = run_here(name, monkeypatch, capsys, "--out", str(tmp_path / "pictures"), *few)
    assert claims(said)
    for line in claims(said):
        assert line.startswith(("CLAIM holds: ", "CLAIM DOES NOT HOLD: "))
        assert line.endswith(")")  # with the numbers that decide it
    assert "nan" not in said
    assert pictures(tmp_path / "pictures")
    if name == "spectral":  # what its text says of copying, and of its directions
        matched, copied = re.findall(r"matched word ([\d.]+), the copied word ([\d.]+)", said)[0]
        assert float(copied) > float(matched)
        assert len(re.findall(r"^(?:agreement|repetition) +[012] +1\.0", said, re.MULTILINE)) == 6


@pytest.fixture(scope="module")
def local_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama that was never trained, in a folder, with the pocket model's tokenizer."""
    if not has_bridge():
        pytest.skip("TransformerLens 2 loads no local folders")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(pocket_folder())
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        torch.nn.init.uniform_(model.model.norm.weight, 0.5, 1.5)  # Temperature Scope needs a gain
    folder = tmp_path_factory.mktemp("local")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["instructions", "time_series"])
def test_own_model(
    name: str,
    local_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = run_here(name, monkeypatch, capsys, "--model", str(local_model), "--out", str(tmp_path))
    assert claims(said)
    assert all(line.startswith("CLAIM of the paper, ") for line in claims(said))
    assert pictures(tmp_path)


def test_papers_conventions(local_model: Path) -> None:
    said = run(
        "-c",
        f"import sys; sys.argv += ['--model', {str(local_model)!r}]; import common; study = common.start();"
        "case = study.paper_case('the keys are'); result = study.explain(case, 'semantic');"
        "print(result.bos_positions, result.position, result.prediction.target.token == case.ids[-1]);"
        "series = study.series_case([29, 30, 31, 33]); print(series.numbers, study.words(series)[2:])",
        cwd=FOLDER,
    )
    assert "(0, 1) 3 True" in said  # two BOS; the prediction before the last token, which is the target
    assert "(2, 4, 6) ['29', ',', '30', ',', '31', ',', '33']" in said


def test_in_a_notebook() -> None:
    assert claims(run("-c", AS_IN_A_KERNEL.format("instructions.py"), cwd=FOLDER))
