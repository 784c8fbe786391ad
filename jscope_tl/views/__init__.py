"""Ways to look at results. Views read results and never change them."""

from jscope_tl.views.attention_heads import attention
from jscope_tl.views.circuits import View
from jscope_tl.views.coloured_tokens import tokens
from jscope_tl.views.figures import heatmap, prediction, series

__all__ = ["View", "attention", "heatmap", "prediction", "series", "tokens"]
