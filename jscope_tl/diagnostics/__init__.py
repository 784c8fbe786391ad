"""What to know before a map is believed: attention sinks, how far the linear picture holds, whether cheap scopes do."""

from jscope_tl.diagnostics.linearity import Linearity, linearity
from jscope_tl.diagnostics.side_by_side import SideBySide, compare_scopes
from jscope_tl.diagnostics.sink import MaskEffect, Sink, sink

__all__ = ["Linearity", "MaskEffect", "SideBySide", "Sink", "compare_scopes", "linearity", "sink"]
