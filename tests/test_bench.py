"""The benchmark runs, and reports what it measured; no speed is asserted."""

import importlib
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook
from scipy.stats import spearmanr

import jscope_tl as js
from jscope_tl.model.loading import has_bridge
from jscope_tl.pocket.load import pocket_folder

pytestmark = [pytest.mark.slow, pytest.mark.newest_line]

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__main__")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, which its folder makes top-level ones; their annotations are checked as the package's are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        with install_import_hook(MODULES, "beartype.beartype"):
            found = {name: importlib.import_module(name) for name in MODULES}
        yield found
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture
def estimators(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["estimators"]


@pytest.fixture
def shapes(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["shapes"]


def test_it_reports_everything(
    estimators: ModuleType,
    shapes: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As `python examples/benchmarks` runs it."""
    monkeypatch.setitem(shapes.SHAPES, "gpt2-small", dict(d_model=32, n_layers=2, n_heads=4, d_vocab=300))
    monkeypatch.setattr(estimators, "BUDGETS", (16,))
    written, figure = tmp_path / "bench.json", tmp_path / "bench.png"
    options = {"shapes": "gpt2-small", "pos": 6, "seeds": 2, "json": written, "figure": figure}
    monkeypatch.setattr(sys, "argv", ["bench", *(f"--{name}={value}" for name, value in options.items())])
    runpy.run_path(str(FOLDER), run_name="__main__")
    found = json.loads(written.read_text())
    (row,) = found["engine"]
    assert row["pos"] == 6
    assert all(value > 0 for value in row.values() if isinstance(value, float))
    assert found["batch"]["one by one / batch"] > 0
    assert {m["method"] for m in found["estimators"]} == {*estimators.METHODS, "all directions (`exact`)"}
    assert figure.stat().st_size > 5000
    assert "semantic / forward" in capsys.readouterr().out


@pytest.mark.parametrize("budget", [16, 32, 64, 128])
def test_krylov_stays_within_its_budget(estimators: ModuleType, budget: int) -> None:
    rank, images, probes = estimators.krylov_split(budget)
    assert rank + 2 * images + 2 + probes == budget
    assert min(images, probes) >= 2


def test_cases_are_the_prompts_own(estimators: ModuleType, pocket: Any) -> None:
    """The linear map of a prompt has the exact scores of the prompt, through the engine too."""
    prompt = "the keys near the door"
    case = estimators.linear(pocket, prompt)
    exact = js.attribute(pocket, prompt, "fisher", method="exact").scores
    torch.testing.assert_close(case.exact, exact, rtol=1e-3, atol=0)
    torch.testing.assert_close(case.vjp().squared_norms(case.S).sum(0), exact, rtol=1e-3, atol=0)


def test_random_models_have_falling_spectra(shapes: ModuleType) -> None:
    W = shapes._matrix(torch.Size([40, 60]), torch.Generator().manual_seed(0))
    sizes = torch.linalg.svdvals(W)
    torch.testing.assert_close(sizes / sizes[0], torch.arange(1, 41.0) ** -shapes.WEIGHT_DECAY)


def test_the_folder_is_no_package() -> None:
    """`python FOLDER` makes its files top-level modules."""
    assert not (FOLDER / "__init__.py").exists()


@pytest.mark.skipif(not has_bridge(), reason="TransformerLens before 3 loads no local folder")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux")
def test_costs_of_each_call(modules: dict[str, ModuleType]) -> None:
    costs = modules["costs"]
    for call in costs.CALLS:
        found = costs.measured(str(pocket_folder()), call, 24, 28)
        assert found["seconds"] > 0
        assert found["MB"] >= 0
        n_forward, n_backward = map(float, found["passes"].split("+"))
        assert n_forward >= 1
        assert n_backward == {"fisher": 28, "pattern": 16}.get(call, 1)


def test_times_of_the_explorer(chromium: Any) -> None:
    """In a process of its own: the tests have a browser at work in this one."""
    command = [sys.executable, "-W", "ignore", FOLDER, "explorer", "--times", "1"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=FOLDER.parents[1]).stdout
    cells = [cell.strip() for cell in said.splitlines()[-1].strip("|").split("|")]
    assert cells[0] == "pocket"
    assert all(float(cell.removesuffix(" s")) >= 0 for cell in cells[1:])
    assert len(cells) == 6


def test_scopes_against_the_control(
    modules: dict[str, ModuleType],
    pocket: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    truth = js.ground_truth(pocket, "pocket agreement", n=4, progress=False)
    monkeypatch.setattr(modules["control"], "load_model", lambda name: pocket)
    modules["control"].main(["pocket", str(truth.save(tmp_path / "truth.json")), "--n", "2"])
    printed = dict(re.findall(r"^\| (.+) \| (-?[\d.]+ \[.+\]) \|$", capsys.readouterr().out, re.MULTILINE))
    expected: dict[str, list[float]] = {}
    for prompt in truth.report:
        tokens = torch.tensor(prompt.tokens)
        control = js.attribute(pocket, tokens, "random_direction").scores[1:]
        target, baseline = prompt.target, prompt.baseline
        own = {name: js.attribute(pocket, tokens, name) for name in ("semantic", "log_prob", "temperature", "entropy")}
        own["another random direction"] = js.attribute(pocket, tokens, "random_direction", seed=1)
        own["contrastive"] = js.attribute(pocket, tokens, "contrastive", target=target, baseline=baseline)
        own["fisher, rank 4"] = js.attribute(pocket, tokens, "fisher", method="low_rank", rank=4)
        own["explain"] = js.explain(pocket, tokens, target, baseline)
        for name, result in own.items():
            expected.setdefault(name, []).append(float(spearmanr(result.scores[1:], control).statistic))
    for name, values in expected.items():
        low, high = sorted(values)
        assert printed.pop(name) == f"{(low + high) / 2:.2f} [{low:.2f}, {high:.2f}]"
    assert not printed
