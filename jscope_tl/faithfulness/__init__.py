"""How faithful methods are: do they find known causes, and do the tokens that they name matter to the prediction?"""

from jscope_tl.faithfulness.evaluation import aopc, evaluate, known_cause, leave_one_out
from jscope_tl.faithfulness.methods import METHODS
from jscope_tl.faithfulness.protocol import AUTHORS, CORRECTED, Protocol
from jscope_tl.faithfulness.results import Faithfulness, Mean

__all__ = [
    "AUTHORS",
    "CORRECTED",
    "METHODS",
    "Faithfulness",
    "Mean",
    "Protocol",
    "aopc",
    "evaluate",
    "known_cause",
    "leave_one_out",
]
