"""The guide and the docstrings as HTML: `python examples/build_docs.py FOLDER`. Needs `pip install ".[dev]"`."""

import re
import shutil
import sys
import tempfile
from pathlib import Path

import pdoc

ROOT = Path(__file__).parents[1]


def build(out: Path) -> None:
    """Write the README and the guide's pages as the package ``guide``, and all of ``jscope_tl``, into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "guide"
        package.mkdir()
        _write(package / "__init__.py", ROOT / "README.md")
        for page in (ROOT / "examples" / "guide").glob("*.md"):
            _write(package / f"{page.stem}.py", page)
        sys.path.insert(0, folder)
        try:
            pdoc.pdoc("guide", "jscope_tl", output_directory=out)
        finally:
            sys.path.remove(folder)
    left_out = shutil.ignore_patterns("guide", "benchmarks", "__pycache__")
    shutil.copytree(ROOT / "examples", out, ignore=left_out, dirs_exist_ok=True)  # what pages name


def _write(module: Path, page: Path) -> None:
    """A page as a module's docstring, which is what pdoc renders."""
    text = re.sub(r"\]\((?:examples/guide/)?(\w+)\.md(#[\w-]+)?\)", _link(page), page.read_text(encoding="utf-8"))
    text = (
        text.replace("](examples/", "](")
        .replace("```python real", "```python")
        .replace("```python duckdb", "```python")
    )
    module.write_text(f"__doc__ = {text!r}\n", encoding="utf-8")


def _link(page: Path) -> str:
    folder = "guide/" if page.name == "README.md" else ""
    return rf"]({folder}\1.html\2)"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/build_docs.py FOLDER")
    build(Path(sys.argv[1]))
