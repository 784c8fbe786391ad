"""Ways to look at results. Views read results and never change them."""

from jscope_tl.views.attention_heads import attention
from jscope_tl.views.circuits import View
from jscope_tl.views.coloured_tokens import tokens
from jscope_tl.views.figures import heatmap, prediction, series
from jscope_tl.views.patching_maps import comparison
from jscope_tl.views.spectra import spectrum

__all__ = ["View", "attention", "comparison", "heatmap", "prediction", "series", "spectrum", "tokens"]
