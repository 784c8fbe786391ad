"""The benchmark runs, and reports what it measured; no speed is asserted."""

import json
import sys
from pathlib import Path

import pytest
import torch

from jscope_tl.bench import __main__ as bench
from jscope_tl.bench import estimators, shapes


def test_it_reports_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(shapes.SHAPES, "gpt2-small", dict(d_model=32, n_layers=2, n_heads=4, d_vocab=300))
    monkeypatch.setattr(estimators, "BUDGETS", (16,))
    written, figure = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = [
        "--shapes",
        "gpt2-small",
        "--pos",
        "6",
        "--seeds",
        "2",
        "--json",
        str(written),
        "--figure",
        str(figure),
    ]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    bench.main()
    found = json.loads(written.read_text())
    (row,) = found["engine"]
    assert row["pos"] == 6
    assert all(value > 0 for value in row.values() if isinstance(value, float))
    assert found["batch"]["one by one / batch"] > 0
    assert {m["method"] for m in found["estimators"]} == {*estimators.METHODS, "all directions (`exact`)"}
    assert figure.stat().st_size > 5000
    assert "semantic / forward" in capsys.readouterr().out


@pytest.mark.parametrize("budget", [16, 32, 64, 128])
def test_krylov_stays_within_its_budget(budget: int) -> None:
    rank, images, probes = estimators.krylov_split(budget)
    assert rank + 2 * images + 2 + probes == budget
    assert min(images, probes) >= 2


def test_cases_are_the_prompts_own(pocket: object) -> None:
    """The linear map of a prompt has the exact scores of the prompt, through the engine too."""
    import jscope_tl as js

    prompt = "the keys near the door"
    case = estimators.linear(pocket, prompt)
    exact = js.attribute(pocket, prompt, "fisher", method="exact").scores
    torch.testing.assert_close(case.exact, exact, rtol=1e-3, atol=0)
    torch.testing.assert_close(case.pull().energies(case.S).sum(0), exact, rtol=1e-3, atol=0)


def test_random_models_have_falling_spectra() -> None:
    W = shapes._matrix(torch.Size([40, 60]), torch.Generator().manual_seed(0))
    sizes = torch.linalg.svdvals(W)
    torch.testing.assert_close(sizes / sizes[0], torch.arange(1, 41.0) ** -shapes.WEIGHT_DECAY)
