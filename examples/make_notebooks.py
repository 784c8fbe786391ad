"""Every example as a notebook with its outputs, made of its script: `python examples/make_notebooks.py [NAME ...]`.

Needs `pip install ".[dev]"`. Notebooks about a real model are made with the HuggingFace folder that `--real FOLDER` names in the place of the
hub. Views with circuitsvis in them (over 300 kB each) are left to whoever runs the notebook.
"""

import argparse
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
"""Letters of an output."""
INSTEAD = """from transformer_lens.model_bridge import TransformerBridge as _bridge
_boot = _bridge.boot_transformers
_bridge.boot_transformers = staticmethod(lambda name, **how: _boot({folder!r}, **how))"""


def made(script: Path, real: Path | None = None) -> Any:
    """The notebook of a script, executed.

    Args:
        script: with cells marked as ``# %%``.
        real: a folder in the place of the model on the hub.
    """
    notebook = jupytext.read(script)
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
