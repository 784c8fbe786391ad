"""Make a notebook with outputs from every example script: `python examples/make_notebooks.py [NAME ...]`.

Needs `pip install ".[dev]"`. `--real FOLDER` names a HuggingFace folder that replaces the hub in notebooks about a real model.
Outputs of more than 300 kB (views with circuitsvis) are left out. Once pyproject.toml has the address of the repository on GitHub
(`Repository` under `[project.urls]`), every notebook gets a Colab badge.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent
LONG = {"train_pocket_model"}
"""It trains for an hour."""
SCRIPTS = sorted(
    path
    for folder in (EXAMPLES, EXAMPLES / "case_studies")
    for path in folder.glob("*.py")
    if path.read_text(encoding="utf-8").startswith("# %%") and path.stem not in LONG
)
"""Scripts whose cells are marked."""
REAL = {"start_here", "Jacobian_Scopes_Demo"}
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
MOST = 300_000
"""Longest output in characters."""
BADGE = (
    "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/{path})\n\n"
)
INSTEAD = """from transformer_lens.model_bridge import TransformerBridge as _bridge
_boot = _bridge.boot_transformers
_bridge.boot_transformers = staticmethod(lambda name, **how: _boot({folder!r}, **how))"""


def repository() -> str | None:
    """``OWNER/NAME`` on GitHub, if pyproject.toml has it."""
    found = re.search(
        r'^Repository = "https://github\.com/([\w.-]+/[\w.-]+)"',
        (EXAMPLES.parent / "pyproject.toml").read_text("utf-8"),
        re.M,
    )
    return found and found[1]


def read(script: Path, repository: str | None) -> Any:
    """The notebook of a script without outputs, with a Colab badge on top if there is a repository."""
    notebook = jupytext.read(script)
    if repository is not None:
        path = script.with_suffix(".ipynb").relative_to(EXAMPLES.parent).as_posix()
        notebook.cells[0].source = BADGE.format(repository=repository, path=path) + notebook.cells[0].source
    return notebook


def made(script: Path, real: Path | None = None) -> Any:
    """The notebook of a script, executed.

    Args:
        script: with cells marked as ``# %%``.
        real: a folder in the place of the model on the hub.
    """
    notebook = read(script, repository())
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    if real is not None:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(INSTEAD.format(folder=str(real))))
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(script.parent)}}).execute()
    if real is not None:
        del notebook.cells[0]
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.execution_count = number + 1
        cell.metadata = {}
        cell.outputs = [_light(output) for output in cell.outputs if output.get("name") != "stderr"]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return notebook


def _light(output: Any) -> Any:
    output.pop("execution_count", None)
    data = output.get("data", {})
    if len(data.get("text/html", "")) > MOST:
        del data["text/html"]
    if output.output_type == "execute_result":
        output["execution_count"] = None
    return output


def main() -> None:
    """Write the notebooks beside their scripts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of scripts, without .py; all without them")
    parser.add_argument(
        "--real", type=Path, help="a HuggingFace folder of SmolLM2-135M-Instruct, for where there is no hub"
    )
    given = parser.parse_args()
    for script in SCRIPTS:
        if not given.names or script.stem in given.names:
            print(script.stem, flush=True)
            text = nbformat.writes(made(script, given.real if script.stem in REAL else None))
            named = text.replace(str(given.real), HUB) if given.real else text
            script.with_suffix(".ipynb").write_text(named + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
