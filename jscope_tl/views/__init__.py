"""Ways to look at results. Views read results and never change them."""

from jscope_tl.views.attention_heads import attention
from jscope_tl.views.circuits import View
from jscope_tl.views.coloured_tokens import tokens
from jscope_tl.views.figures import heatmap, prediction, series
from jscope_tl.views.linear import linearity
from jscope_tl.views.methods import faithfulness
from jscope_tl.views.patching_maps import comparison
from jscope_tl.views.spectra import spectrum

__all__ = [
    "View", "attention", "comparison", "faithfulness", "heatmap", "linearity", "prediction", "series", "spectrum", "tokens"
]  # fmt: skip
