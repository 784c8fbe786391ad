"""Runs over many prompts, which are written as Parquet files and can be resumed and sharded, and summaries of these runs.

`schema` defines the columns of a run, `explaining` writes it, `dataset` reads it, and `summaries` evaluates it.
"""

from jscope_tl.corpus.circuits import components
from jscope_tl.corpus.component_means import ComponentMeans, MeanEffect
from jscope_tl.corpus.dataset import CorpusRun
from jscope_tl.corpus.dataset import open_run as open
from jscope_tl.corpus.explaining import run_corpus as run
from jscope_tl.corpus.on_ray import Ray
from jscope_tl.corpus.row import Row
from jscope_tl.corpus.sources import by_target
from jscope_tl.corpus.summaries import by_class, by_distance, by_position, by_token
from jscope_tl.corpus.summary import Summary, SummaryRow
from jscope_tl.corpus.two_runs import RunAgreement, agreement

__all__ = [
    "ComponentMeans", "CorpusRun", "MeanEffect", "Ray", "Row", "RunAgreement", "Summary", "SummaryRow", "agreement", "by_class", "by_distance",
    "by_position", "by_target", "by_token", "components", "open", "run",
]  # fmt: skip
