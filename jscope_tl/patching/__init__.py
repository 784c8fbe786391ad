"""Scopes and activation patching in one workflow: predict a patch, check a scope, explain a patched run."""

from jscope_tl.patching.ablation import Ablation, ablate
from jscope_tl.patching.activation_patching import compare
from jscope_tl.patching.agreement_with_measuring import agreement
from jscope_tl.patching.comparison import Agreement, Comparison, Cost
from jscope_tl.patching.component_agreement import ComponentAgreement, MethodAgreement
from jscope_tl.patching.component_effects import ComponentEffect, ComponentEffects
from jscope_tl.patching.component_prediction import components
from jscope_tl.patching.flow_of_token import flow
from jscope_tl.patching.three_runs import SideBySide, side_by_side
from jscope_tl.patching.token_flow import FlowEdge, TokenFlow

__all__ = [
    "Ablation",
    "Agreement",
    "Comparison",
    "ComponentAgreement",
    "ComponentEffect",
    "ComponentEffects",
    "Cost",
    "FlowEdge",
    "MethodAgreement",
    "SideBySide",
    "TokenFlow",
    "ablate",
    "agreement",
    "compare",
    "components",
    "flow",
    "side_by_side",
]
