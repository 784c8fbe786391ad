"""Notebooks are those that their scripts make: the same cells, executed, without an error."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.newest_line

EXAMPLES = Path(__file__).parents[1] / "examples"
jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_notebooks", EXAMPLES / "make_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPTS = maker().SCRIPTS


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_some() -> None:
    assert {"start_here", "Jacobian_Scopes_Demo", "bias", "patching"} <= {script.stem for script in SCRIPTS}
    assert {path.stem for path in EXAMPLES.rglob("*.ipynb")} == {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_notebooks_are_in_step(script: Path) -> None:
    text = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert cells(notebook) == cells(maker().read(script, maker().repository()))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert all(output.output_type != "error" for output in outputs)
    shown = [output.data for output in outputs if "<Figure size" in output.get("data", {}).get("text/plain", "")]
    assert all("image/png" in data for data in shown)
    assert len(text) < 1_000_000
    assert not re.search(r"/(tmp|root|home)/\w", text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_repository_gives_a_badge(script: Path) -> None:
    first, plain = (maker().read(script, address).cells[0] for address in ("owner/name", None))
    badge, _, text = first.source.partition("\n\n")
    assert (first.cell_type, text) == ("markdown", plain.source)
    page = re.fullmatch(
        r"\[!\[Open In Colab\]\(\S+\)\]\(https://colab\.research\.google\.com/github/owner/name/blob/main/(\S+)\)",
        badge,
    )
    assert page is not None
    assert EXAMPLES.parent / page[1] == script.with_suffix(".ipynb")


def test_a_public_address_is_in_all_places_or_in_none() -> None:
    """With it a package index shows the README's pictures, which it cannot from links into the repository."""
    readme = (EXAMPLES.parent / "README.md").read_text("utf-8")
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)
    assert pictures
    assert all(address.startswith("https://") == (maker().repository() is not None) for address in pictures)


@pytest.mark.slow
def test_a_notebook_is_made(tmp_path: Path) -> None:
    script = tmp_path / "small.py"
    script.write_text('# %% [markdown]\n# # Small\n\n# %%\nprint(1 + 1)\n\n# %%\n"x" * 5\n', encoding="utf-8")
    notebook = maker().made(script)
    assert cells(notebook) == cells(jupytext.read(script))
    assert [cell.outputs[0].get("text", "") for cell in notebook.cells[1:2]] == ["2\n"]
    assert notebook.cells[2].outputs[0].data["text/plain"] == "'xxxxx'"


@pytest.mark.slow
def test_guide_and_docstrings_are_rendered(tmp_path: Path) -> None:
    """Every page is there, and every link and picture inside leads somewhere."""
    pytest.importorskip("pdoc")
    subprocess.run([sys.executable, "-W", "ignore", EXAMPLES / "build_docs.py", tmp_path], check=True)
    for page in (EXAMPLES / "guide").glob("*.md"):
        assert (tmp_path / "guide" / f"{page.stem}.html").exists()
    assert "Jacobian Scopes for TransformerLens" in (tmp_path / "jscope_tl.html").read_text(encoding="utf-8")
    for path in tmp_path.rglob("*.html"):
        for link in set(re.findall(r'(?:href|src)="(?![a-z]+:|#|\$)([^"#]+)', path.read_text(encoding="utf-8"))):
            assert (path.parent / link).exists(), (path.name, link)
