"""What the README says is so."""

import doctest
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import jscope_tl as js
from jscope_tl.cli.command import main

pytestmark = pytest.mark.newest_line

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "examples" / "guide"
PAGES = [ROOT / "README.md", *sorted(GUIDE.glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def page(name: str) -> str:
    return (GUIDE / name).read_text(encoding="utf-8")


def examples_run(path: Path, blocks: str = "python") -> int:
    """How many lines of Python a page has, all of which print what it shows."""
    code = "\n".join(re.findall(rf"```{blocks}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
    test = doctest.DocTestParser().get_doctest(code, {}, path.name, str(path), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test).failed == 0
    return len(test.examples)


@pytest.mark.slow
def test_python_blocks_run_and_print_what_they_show() -> None:
    assert examples_run(ROOT / "README.md") > 9


@pytest.mark.real
@pytest.mark.slow
def test_blocks_about_a_real_model_run(smollm2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SmolLM2 in the place of what a hub would send."""
    bridge = pytest.importorskip("transformer_lens.model_bridge").TransformerBridge
    monkeypatch.setattr(bridge, "boot_transformers", lambda name: smollm2)
    assert examples_run(ROOT / "README.md", "python real") >= 5


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES[1:], ids=lambda path: path.stem)
def test_python_blocks_of_the_guide_run(path: Path) -> None:
    assert examples_run(path) >= (path.stem == "causes")
    assert "@@" not in path.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.slow
def test_questions_in_sql_run() -> None:
    """Without DuckDB, which the extra `dev` has, they are not tried."""
    pytest.importorskip("duckdb")
    assert "```python duckdb\n" in page("corpora.md")
    assert examples_run(GUIDE / "corpora.md", "python(?: duckdb)?") > 0


def test_it_is_read_in_two_minutes() -> None:
    assert README.count("\n") <= 150


def test_every_page_of_the_guide_is_found_from_the_readme() -> None:
    assert {path.name for path in PAGES[1:]} <= {*re.findall(r"\]\(examples/guide/(\w+\.md)\)", README)}


def test_the_two_commands_are_the_first_two() -> None:
    run_it, test_it = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)[:2]
    assert run_it.startswith("pip install . && jscope ")
    assert test_it == 'pip install ".[dev]" && pytest -n auto\n'
    assert "readme_command 1" in (ROOT / ".ci" / "run").read_text()


def test_every_scope_is_in_the_table() -> None:
    for name in js.available_scopes():
        if js.scopes.registry.scope_entry(name).builtin:
            assert re.search(rf"^\| `{name}[`(]", page("scopes.md"), re.MULTILINE), name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_files_that_it_names_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / name).exists(), name
    for name in re.findall(r"`((?:examples|jscope_tl)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


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
    """Of one method with a backward pass and of one without; the others come from the same command."""
    header, *rows = re.findall(r"^\| (method|`\w+`) \| (.*) \|$", page("faithfulness.md"), re.MULTILINE)
    tasks = header[1].split(" | ")[:6]
    claimed = {name.strip("`"): [int(cell.rstrip("%")) / 100 for cell in row.split(" | ")[:6]] for name, row in rows}
    of_known_alternatives = {"contrastive_alternative", "explain_alternative"}  # which these prompts do not have
    assert set(claimed) == set(js.faithfulness.METHODS) - of_known_alternatives
    prompts = [prompt for task in tasks for prompt in js.pocket_prompts(task, 50)]
    cheap = ["temperature", "random"]
    found = js.faithfulness.evaluate(pocket, prompts, cheap, "known_cause", progress=False)["known_cause"]
    for method in cheap:
        hits = [found.mean(method, task=task).mean for task in tasks]
        assert hits == pytest.approx(claimed[method], abs=0.03)


def test_every_package_is_in_the_wheel() -> None:
    """They are listed, as the guide's pages lie elsewhere."""
    listed = re.findall(r'"(jscope_tl[\w.]*)"', PYPROJECT.partition("packages = [")[2].partition("]")[0])
    found = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in ROOT.glob("jscope_tl/**/__init__.py")
    }
    assert sorted(listed) == sorted({*found, "jscope_tl.guide"})


def test_the_guide_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {path.stem for path in PAGES[1:]}
    assert main(["guide", "text"]) == 0
    assert capsys.readouterr().out.rstrip() == page("text.md").rstrip()
    assert main(["guide", "texts"]) == 2
    assert "Did you mean 'text'" in capsys.readouterr().err
    assert main(["guide", "slurm"]) == 2
    assert "Pages that contain it: corpora." in capsys.readouterr().err
