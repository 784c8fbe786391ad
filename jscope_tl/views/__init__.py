"""Views of results. They never change a result.

There are two kinds: HTML pages (`circuitsvis_views.View`), with circuitsvis or with HTML alone, and matplotlib figures (helpers are in
`figures`). To add a view, add a module to this folder and its name below.
"""

from jscope_tl.views.answer_bars import sources
from jscope_tl.views.answer_view import answer
from jscope_tl.views.attention_heads import attention
from jscope_tl.views.circuitsvis_views import View
from jscope_tl.views.coloured_tokens import tokens
from jscope_tl.views.component_map import heads
from jscope_tl.views.component_means import mean_effects
from jscope_tl.views.context_strip import context
from jscope_tl.views.corpus_figures import agreement, summary
from jscope_tl.views.corpus_report import corpus_page
from jscope_tl.views.figures import prediction, series
from jscope_tl.views.flow_graph import flow
from jscope_tl.views.linear import linearity
from jscope_tl.views.maps import heatmap
from jscope_tl.views.methods import faithfulness
from jscope_tl.views.patching_maps import comparison
from jscope_tl.views.spectra import spectrum

__all__ = [
    "View", "agreement", "answer", "attention", "comparison", "context", "corpus_page", "faithfulness", "flow", "heads", "heatmap",
    "linearity", "mean_effects", "prediction", "series", "sources", "spectrum", "summary", "tokens",
]  # fmt: skip
