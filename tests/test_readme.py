"""What the README says is so."""

import doctest
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import jscope_tl as js
from jscope_tl.cli.command import parser

pytestmark = pytest.mark.newest_line

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def examples_run(path: Path) -> int:
    """How many lines of Python a page has, all of which print what it shows."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
    test = doctest.DocTestParser().get_doctest(code, {}, path.name, str(path), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test).failed == 0
    return len(test.examples)


@pytest.mark.slow
def test_python_blocks_run_and_print_what_they_show() -> None:
    assert examples_run(ROOT / "README.md") > 12


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "guide").glob("*.md")), ids=lambda path: path.stem)
def test_python_blocks_of_the_guide_run(path: Path) -> None:
    assert examples_run(path) >= (path.stem == "causes")
    assert "@@" not in path.read_text(encoding="utf-8")


def test_the_two_commands_are_the_first_two() -> None:
    run_it, test_it = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)[:2]
    assert run_it.startswith("pip install . && jscope ")
    assert test_it == 'pip install ".[dev]" && pytest -n auto\n'
    assert "readme_command 1" in (ROOT / ".ci" / "run").read_text()
    parser().parse_args(re.findall(r'"[^"]*"|\S+', run_it.partition("jscope ")[2]))


def test_every_scope_is_in_the_table() -> None:
    for name in js.available_scopes():
        if js.scopes.registry.scope_entry(name).builtin:
            assert re.search(rf"^\| `{name}[`(]", README, re.MULTILINE), name


def test_files_that_it_names_are_there() -> None:
    for name in re.findall(r"\]\((examples/[^)]+)\)|`((?:examples|jscope_tl)/[^`]+)`", README):
        assert (ROOT / (name[0] or name[1])).exists(), name


def test_nothing_is_left_to_fill_in() -> None:
    assert "README_" not in README
    assert "@@" not in README


def test_no_paths_of_a_machine() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        files = [path for path in ROOT.rglob("*") if path.suffix in {".py", ".md", ".toml", ".json"}]
    else:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )
        files = [ROOT / name for name in listed if name.endswith((".py", ".md", ".toml", ".json", "run"))]
    for path in files:
        if path.is_file():
            assert not re.search(r"/(home|Users|root|work)/\w", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_hits_on_known_causes_are_those_of_the_table(pocket: Any) -> None:
    """Of the methods that cost one backward pass or none; the dearer ones come from the same command."""
    header, *rows = re.findall(r"^\| (method|`\w+`) \| (.*) \|$", README.partition("## How faithful")[2], re.MULTILINE)
    tasks = header[1].split(" | ")[:6]
    claimed = {name.strip("`"): [int(cell.rstrip("%")) / 100 for cell in row.split(" | ")[:6]] for name, row in rows}
    of_known_alternatives = {"contrastive_alternative", "explain_alternative"}  # which these prompts do not have
    assert set(claimed) == set(js.faithfulness.METHODS) - of_known_alternatives
    prompts = [prompt for task in tasks for prompt in js.pocket_prompts(task, 50)]
    cheap = ["semantic", "temperature", "random"]
    found = js.faithfulness.evaluate(pocket, prompts, cheap, "known_cause", progress=False)["known_cause"]
    for method in cheap:
        hits = [found.mean(method, task=task).mean for task in tasks]
        assert hits == pytest.approx(claimed[method], abs=0.03)
