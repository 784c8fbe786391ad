"""Checks of scores: attention sinks, the range of the linear approximation, two scopes on the same prompts, and heads that agree with a scope."""

from jscope_tl.diagnostics.attention_sink import MaskEffect, Sink, sink
from jscope_tl.diagnostics.linear_range import Linearity, linearity
from jscope_tl.diagnostics.scope_comparison import ScopeComparison, compare_scopes

__all__ = ["Linearity", "MaskEffect", "ScopeComparison", "Sink", "compare_scopes", "linearity", "sink"]
