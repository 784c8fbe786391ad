"""The layout of the package: imports point along the flow of the data, and what the folders promise is so."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

import jscope_tl
import tests

pytestmark = pytest.mark.newest_line

ROOT = Path(jscope_tl.__file__).parent
MODULES = [name for _, name, _ in pkgutil.walk_packages([str(ROOT)], "jscope_tl.") if not name.endswith("__main__")]
FLOW = [
    "errors", "model", "pocket", "engine", "scopes", "results", "attribution", "components", "patching", "diagnostics", "faithfulness",
    "corpus", "views", "explorer", "cli",
]  # fmt: skip
"""A folder imports from itself and from those before it."""
AGAINST = {(f"jscope_tl.results.{module}", "jscope_tl.views.notebook") for module in ("files", "rows")}
"""A notebook asks the result, and the picture is made by the views."""


def imports(module: str) -> set[str]:
    """Modules of the package that a module imports, wherever in its file."""
    path = Path(importlib.import_module(module).__file__ or "")
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found = set(whole)
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= inside or {node.module or ""}
    return {name for name in found if name.startswith("jscope_tl")}


def folder(module: str) -> str:
    return module.split(".")[1]


def test_the_flow_has_every_folder() -> None:
    assert {folder(module) for module in MODULES} == set(FLOW)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_along_the_flow(module: str) -> None:
    later = FLOW[FLOW.index(folder(module)) + 1 :]
    against = {(module, name) for name in imports(module) if name != "jscope_tl" and folder(name) in later}
    assert against <= AGAINST
    assert "jscope_tl" not in imports(module), "import what is needed from where it is"


def test_there_is_no_circle_of_imports() -> None:
    """Leaves are taken off the graph until nothing is left; what is left would be a circle."""
    graph = {module: {n for n in imports(module) if n != module and (module, n) not in AGAINST} for module in MODULES}
    while graph:
        leaves = {module for module, needed in graph.items() if not needed & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {module: needed for module, needed in graph.items() if module not in leaves}


@pytest.mark.parametrize("module", ["jscope_tl", *MODULES])
def test_no_module_is_shadowed(module: str) -> None:
    """What a package shows under the name of one of its modules is that module."""
    package = importlib.import_module(module)
    for name in MODULES:
        parent, _, own = name.rpartition(".")
        if parent == module:
            found = importlib.import_module(name)  # some are loaded when they are needed, whatever tests ran before
            assert isinstance(getattr(package, own), ModuleType), name
            assert getattr(package, own) is found, name


@pytest.mark.parametrize("module", MODULES)
def test_no_deferred_annotations(module: str) -> None:
    """``from __future__ import annotations`` silently switches off jaxtyping's checks of dataclass fields."""
    text = Path(importlib.import_module(module).__file__ or "").read_text(encoding="utf-8")
    assert "from __future__" not in text


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_files_stay_readable() -> None:
    for path in ROOT.rglob("*.py"):
        assert path.read_text(encoding="utf-8").count("\n") <= 300, path


def test_few_entries_at_the_top() -> None:
    entries = [path for path in ROOT.iterdir() if path.name not in ("__pycache__", "__init__.py", "py.typed")]
    assert len(entries) == len(FLOW)


def test_types_of_inner_functions_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests, "_checked", {})

    @jaxtyping.jaxtyped(typechecker=beartype)
    def same(x: Float[Tensor, "a"], y: Float[Tensor, "a"]) -> None:
        """Inside a test, as inside a function of the package."""

    with pytest.raises(jaxtyping.TypeCheckError):
        same(torch.ones(1), torch.ones(2))
