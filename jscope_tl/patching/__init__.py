"""Scopes and activation patching in one workflow: predict a patch, check a scope, explain a patched run."""

from jscope_tl.patching.ablation import Ablation, ablate
from jscope_tl.patching.compare import compare
from jscope_tl.patching.comparison import Agreement, Comparison, Cost
from jscope_tl.patching.side_by_side import SideBySide, side_by_side

__all__ = ["Ablation", "Agreement", "Comparison", "Cost", "SideBySide", "ablate", "compare", "side_by_side"]
