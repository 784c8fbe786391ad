import os

os.environ["HF_HUB_OFFLINE"] = "1"
# TransformerLens installs torchvision, and with it another torch, for models with images.
os.environ["PIP_DRY_RUN"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # of each worker of pytest-xdist, and of processes that tests start

import functools
import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.model.loading import has_bridge
from jscope_tl.scopes import registry
from tests import models, oracles, real_model

torch.set_num_threads(1)
ALL_LINES = bool(os.environ.get("JSCOPE_ALL_LINES"))
ASK = "JSCOPE_ALL_LINES=1 runs it here too"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What does not depend on the TransformerLens line runs on the newest, which alone has no HookedTransformer."""
    if models.has_hooked() and not ALL_LINES:
        for item in items:
            if item.get_closest_marker("newest_line"):
                item.add_marker(pytest.mark.skip(reason=f"does not depend on the TransformerLens line; {ASK}"))


@pytest.fixture(scope="session", params=models.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


ONE_OF_EACH = [
    family if family == "llama" else pytest.param(family, marks=pytest.mark.slow) for family in models.FAMILIES
]
"""Without the slow tests one family stands for all."""


@pytest.fixture(scope="session", params=ONE_OF_EACH)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@functools.cache
def shared_tiny(kind: str, family: str, dtype: torch.dtype = torch.float32) -> models.Tiny:
    tiny = models.tiny(kind, family, dtype)
    with torch.no_grad():  # TransformerLens puts hooks of its own on a model the first time
        tiny.model.run_with_cache(models.TOKENS[None])
    return tiny


@functools.cache
def dense(family: str, position: int) -> oracles.Oracle:
    return oracles.dense(models.hf_model(family), models.TOKENS, position)


@pytest.fixture
def tiny(kind: str, family: str) -> models.Tiny:
    """A shared tiny model: not to be changed by a test."""
    return shared_tiny(kind, family)


@pytest.fixture(scope="session")
def llama(kind: str) -> Any:
    """A shared tiny Llama of each class: not to be changed by a test."""
    return shared_tiny(kind, "llama").model


@pytest.fixture(scope="session")
def pocket() -> Any:
    return js.load_pocket_model()


@pytest.fixture(scope="session")
def smollm2(kind: str) -> Any:
    """SmolLM2-135M-Instruct, for tests marked ``real``: not to be changed by a test."""
    if not has_bridge():
        pytest.skip("transformers 4 does not read SmolLM2 as transformers 5 has saved it")
    if kind == "bridge" and models.has_hooked() and not ALL_LINES:
        pytest.skip("SmolLM2 is a HookedTransformer on TransformerLens 3 and a TransformerBridge on 4; " + ASK)
    if not real_model.is_made():
        if os.environ.get("JSCOPE_NEEDS_REAL_MODEL"):
            pytest.fail("SmolLM2 is missing and this run needs it: python -m tests.real_model")
        pytest.skip("needs SmolLM2 (python -m tests.real_model)")
    return real_model.bridge() if kind == "bridge" else real_model.hooked()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("JSCOPE_NEEDS_BROWSER"):
            pytest.fail("Chromium is missing and this run needs it: apt-get install chromium")
        pytest.skip("needs Chromium (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def architectures() -> Iterator[Any]:
    """The benchmark's module of that name; its folder makes the files top-level modules."""
    names = ("architectures", "architecture_table", "oracle", "rules_oracle", "tiny_models")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("architectures")
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def _forget_new_scopes() -> Iterator[None]:
    """Scopes that a test or an example registers are gone after it."""
    before = dict(registry._ENTRIES)
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(before)
