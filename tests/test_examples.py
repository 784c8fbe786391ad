"""The notebooks of the examples run from the first cell to the last, and show what they announce."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import real_model

pytestmark = [pytest.mark.slow, pytest.mark.newest_line]

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    env = {
        **os.environ,
        "PYTHONPATH": str(EXAMPLES.parent),
        "MPLBACKEND": "Agg",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_beside_attention(tmp_path: Path) -> None:
    said = run("beside_attention.py", "--out", str(tmp_path))
    hits, of = map(int, re.findall(r"strongest source of (\d+) of (\d+)", said)[0])
    assert hits > 0.8 * of
    copied = [float(value) for value in re.findall(r"attention to the word to be copied ([\d.]+)", said)]
    assert max(copied[:2]) > 0.5  # the scope leads to the induction heads
    assert len(re.findall(r"rank correlation [+-][\d.]+", said)) == 5
    for page in ("induction", "translation", "report"):
        assert (tmp_path / f"{page}.html").stat().st_size < 3_000_000


def test_patching(tmp_path: Path) -> None:
    said = run("patching.py", "--out", str(tmp_path))
    number = r"([+-]?[\d.]+)"
    found = re.findall(rf"^(agreement|repetition) +(\w+) +{number} +{number}", said, re.MULTILINE)
    readme = (EXAMPLES / "guide" / "patching.md").read_text(encoding="utf-8")
    claimed = re.findall(rf"^\| (agreement|repetition) \| `(\w+)` \| {number} \| {number} \|", readme, re.MULTILINE)
    assert [row[:2] for row in found] == [row[:2] for row in claimed]
    assert len(found) == 8
    for (*_, score, predicted), (*_, claimed_score, claimed_predicted) in zip(found, claimed, strict=True):
        assert abs(float(score) - float(claimed_score)) < 0.05
        assert abs(float(predicted) - float(claimed_predicted)) < 0.05
    held = [int(share) for share in re.findall(r"two cells hold (\d+)%", said)]
    assert len(held) == 4
    assert min(held) > 80
    assert (tmp_path / "agreement.png").stat().st_size > 10_000


def test_continuation(tmp_path: Path) -> None:
    said = run("continuation.py", "--out", str(tmp_path))
    assert "strongest source 'columbia'" in said
    assert re.search(r"1\. ' columbia' at 10", said)
    assert "' liberal' depends most on 'where he studies': without it the model says ' conservative'" in said
    for page in ("answer", "context"):
        assert (tmp_path / f"{page}.html").stat().st_size < 500_000


@pytest.mark.real
def test_continuation_of_a_chat(tmp_path: Path, smollm2: Any) -> None:
    said = run("continuation.py", "--model", str(real_model.folder("smollm2")), "--out", str(tmp_path))
    assert "' Oslo' depends most on 'brother': without it the model says ' Rome'" in said
    assert "' baker in Oslo': probability" in said


def test_components(tmp_path: Path) -> None:
    said = run("components.py", "--out", str(tmp_path))
    assert re.search(r"^L1H3 +1\.3\d+ +1 ", said, re.MULTILINE)  # the head that reads the subject
    unseen, of = map(int, re.findall(r"as number (\d+) of (\d+)", said)[0])
    assert unseen > 0.8 * of
    movers = re.findall(r"^(L\dH\d): carries \+([\d.]+) of .* attention to it ([\d.]+)", said, re.MULTILINE)
    assert movers[0][0] == "L1H3"
    assert float(movers[0][2]) > 0.9
    rows = re.findall(r"^(ablated|patched), (.+): rank correlation (-?[\d.]+)", said, re.MULTILINE)
    found = {(way, method): float(value) for way, method, value in rows}
    for way in ("ablated", "patched"):
        assert found[way, "fisher, refined"] > 0.9
        assert found[way, "fisher, refined"] > found[way, "fisher"] > found[way, "attribution patching (log_prob)"]
    assert found["patched", "TransformerLens (log_prob)"] == found["patched", "attribution patching (log_prob)"]
    assert (tmp_path / "components.png").stat().st_size > 10_000
    assert (tmp_path / "flow.html").read_text(encoding="utf-8").count("<svg") == 2
