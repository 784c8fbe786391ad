"""The house: imports point along the data's way, and the words on its doors are kept."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import jscope_tl

ROOT = Path(jscope_tl.__file__).parent
MODULES = [name for _, name, _ in pkgutil.walk_packages([str(ROOT)], "jscope_tl.")]
LINE = [
    "errors", "progress", "inputs", "devices", "memory", "state", "engine", "pull", "singular", "model", "prompts", "cuts", "frozen", "forward", "embeddings", "scopes.base", "scopes.registry", "scopes.trace", "scopes.directions",
    "scopes.fisher", "scopes.spectral", "result", "storage", "paths", "averaging", "linearised", "attribute", "batch", "jacobian", "decoding", "spectrum", "influence", "patterns", "agreement",
    "patching.pairs", "patching.sweep", "patching.first_order", "patching.comparison", "patching.compare", "patching.ablated", "patching.ablation", "patching.side_by_side",
    "faithfulness.cases", "faithfulness.attention", "faithfulness.methods", "faithfulness.protocol", "faithfulness.measures", "faithfulness.results", "faithfulness.evaluate",
    "diagnostics.sink", "diagnostics.linearity", "diagnostics.side_by_side",
]  # fmt: skip


def imports(module: str) -> set[str]:
    path = ROOT.parent / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text())
    top_level = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {node.module for node in top_level if node.module and node.module.startswith("jscope_tl")}


@pytest.mark.parametrize("module", LINE)
def test_imports_point_along_the_line(module: str) -> None:
    later = {f"jscope_tl.{name}" for name in LINE[LINE.index(module) + 1 :]} | {"jscope_tl.views", "jscope_tl.cli"}
    assert not imports(f"jscope_tl.{module}") & later


@pytest.mark.parametrize("module", MODULES)
def test_no_deferred_annotations(module: str) -> None:
    """``from __future__ import annotations`` silently switches off jaxtyping's checks of dataclass fields."""
    assert "__future__" not in {*imports(module)}
    text = Path(importlib.import_module(module).__file__ or "").read_text()
    assert "from __future__" not in text


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_public_names_are_documented() -> None:
    for name in jscope_tl.__all__:
        assert (getattr(jscope_tl, name).__doc__ or "").strip(), name


def test_files_stay_readable() -> None:
    for path in ROOT.rglob("*.py"):
        assert path.read_text().count("\n") <= 300, path
