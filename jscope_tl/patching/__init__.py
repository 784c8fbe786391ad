"""Scopes together with activation patching: predict the effect of a patch, check a scope against patching, explain a patched run."""

from jscope_tl.components.against_measured import agreement
from jscope_tl.components.agreement import ComponentAgreement, MethodAgreement
from jscope_tl.components.effects import ComponentEffects
from jscope_tl.components.flow_of_token import flow
from jscope_tl.components.names import ComponentEffect
from jscope_tl.components.prediction import components
from jscope_tl.components.token_flow import FlowEdge, TokenFlow
from jscope_tl.patching.ablation import Ablation, ablate
from jscope_tl.patching.activation_patching import compare
from jscope_tl.patching.comparison import Agreement, Comparison
from jscope_tl.patching.context_effects import ContextEffects, DependentToken
from jscope_tl.patching.context_runs import context
from jscope_tl.patching.three_runs import SideBySide, side_by_side
from jscope_tl.results.cost import Cost

__all__ = [
    "Ablation",
    "Agreement",
    "Comparison",
    "ComponentAgreement",
    "ComponentEffect",
    "ComponentEffects",
    "ContextEffects",
    "Cost",
    "DependentToken",
    "FlowEdge",
    "MethodAgreement",
    "SideBySide",
    "TokenFlow",
    "ablate",
    "agreement",
    "compare",
    "components",
    "context",
    "flow",
    "side_by_side",
]
