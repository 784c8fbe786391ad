"""Names inside TransformerLens, transformers and torch that no documentation promises: each is listed, and a test fails where it moves."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from jscope_tl.components.lens_attribution import KINDS, MODULE
from jscope_tl.engine.under_rules import CALLED
from jscope_tl.model.loading import has_bridge
from tests.conftest import shared_tiny
from tests.models import TOKENS, has_hooked

PACKAGE = Path(__file__).parents[1] / "jscope_tl"
OURS = {"_measurer", "_cues", "_spanner", "_group", "_given", "_repr_html_"}
"""Private attributes of this package's objects that no class defines, and what IPython asks for."""
LISTED = {
    "_forward_hooks", "_forward_pre_hooks", "_modules", "_parameters", "_cdata", "_saved_", "_python_dispatch", "_C",
    "_disabled_torch_function_impl", "_commit_hash", "_original_component",
}  # fmt: skip
"""Private names of others, each with a test below."""

needs_bridge = pytest.mark.skipif(not has_bridge(), reason="this TransformerLens has no bridge")


def names_used(tree: ast.AST) -> Iterator[str]:
    """Attributes, modules, and strings that may be names."""
    in_fields = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in in_fields:
            yield from node.value.split(".") if " " not in node.value else ()


def names_defined(tree: ast.AST) -> Iterator[str]:
    """Functions and classes, and what is set on ``self``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from [node.attr] if isinstance(node.value, ast.Name) and node.value.id == "self" else []
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


@pytest.mark.slow
def test_every_private_name_that_is_used_is_listed() -> None:
    trees = [ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")]
    used, defined = ({name for tree in trees for name in names(tree)} for names in (names_used, names_defined))
    private = {name for name in used - (defined - LISTED) - OURS if re.fullmatch(r"_[A-Za-z]\w*", name)}
    assert private == LISTED


def test_modules_keep_hooks_and_parts_where_torch_puts_them() -> None:
    module = nn.Sequential(nn.Linear(1, 1))
    module.register_forward_hook(lambda *given: None)
    module.register_forward_pre_hook(lambda *given: None)
    assert (len(module._forward_hooks), len(module._forward_pre_hooks), [*module._modules]) == (1, 1, ["0"])
    assert [*module[0]._parameters] == ["weight", "bias"]


def test_memory_that_a_graph_holds_is_seen() -> None:
    x = torch.ones(3, requires_grad=True)
    node: Any = x.exp().grad_fn
    assert [name for name in dir(node) if name.startswith("_saved_")] == ["_saved_result"]
    assert x.untyped_storage()._cdata == x[1:].untyped_storage()._cdata != torch.ones(3).untyped_storage()._cdata
    assert hasattr(TorchDispatchMode, "__torch_dispatch__")


def test_a_tensor_class_may_keep_out_of_functions() -> None:
    assert nn.Parameter.__torch_function__ is torch._C._disabled_torch_function_impl


@needs_bridge
def test_bridges_show_what_is_read_of_them() -> None:
    bridge: Any = shared_tiny("bridge", "llama").model
    assert bridge.adapter.supports_generation is True
    assert bridge.compatibility_mode is False
    assert bridge.original_model.config.model_type == "llama"
    assert bridge.original_model.generation_config is not None
    assert bridge.hook_dict["hook_embed"] is bridge.hook_dict["embed.hook_out"]
    assert any("._original_component" in name for name, _ in bridge.named_modules())


def test_configurations_remember_the_revision_in_transformers_4() -> None:
    """transformers 5 resolves it while it loads, and no longer keeps it: the provenance says None, as TransformerLens' own does."""
    kept = getattr(transformers.LlamaConfig(_commit_hash="abc"), "_commit_hash", None)
    assert kept == ("abc" if int(transformers.__version__.partition(".")[0]) < 5 else None)


def test_names_of_classes_say_what_modules_compute(llama: Any) -> None:
    called = [type(module).__name__.lower() for module in llama.modules()]
    for kind in ("norm", "attn"):
        assert any(CALLED[kind] in name for name in called), kind
    assert any("mlp" in name for name in called)


def test_hook_points_say_which_function_and_level_a_hook_has(llama: Any) -> None:
    def mine(activation: Any, hook: Any) -> None: ...

    point = llama.hook_dict["blocks.0.hook_resid_pre"]
    before = len(point.fwd_hooks)
    try:
        point.add_hook(mine, level=7)
        handle = point.fwd_hooks[-1]
        assert handle.context_level == 7
        assert getattr(handle, "user_hook", mine) is mine  # which 2.x does not keep
        assert handle.hook.id in point._forward_hooks
    finally:
        point.remove_hooks("fwd", level=7)
    assert len(point.fwd_hooks) == before


@needs_bridge
def test_attribution_patching_has_the_nodes_that_are_compared() -> None:
    lens: Any = pytest.importorskip(MODULE)
    bridge = shared_tiny("bridge", "gpt2").model
    found = lens.attribution_patch(bridge, TOKENS[None], TOKENS.flip(0)[None], lambda logits: logits[0, -1, 0])
    assert {*KINDS.values()} <= {node.kind for node in found.node_scores}


@pytest.mark.skipif(not has_hooked(), reason="this TransformerLens has no HookedTransformer")
def test_llama_weights_are_converted_where_the_pocket_model_looks_for_it() -> None:
    module = importlib.import_module("transformer_lens.pretrained.weight_conversions")
    assert callable(module.convert_llama_weights)
