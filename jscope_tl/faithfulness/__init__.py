"""The faithfulness of attribution methods: whether they find known causes, and whether the tokens with high scores matter to the prediction."""

from jscope_tl.faithfulness.evaluation import evaluate
from jscope_tl.faithfulness.families import FAMILIES, Family, Template
from jscope_tl.faithfulness.ground_truth import GroundTruth
from jscope_tl.faithfulness.measures import MEASURES, Column, Measure, Question
from jscope_tl.faithfulness.methods import METHODS, Method
from jscope_tl.faithfulness.protocol import AUTHORS, CORRECTED, Protocol
from jscope_tl.faithfulness.random_weights import WeightDependence, weight_dependence
from jscope_tl.faithfulness.results import Faithfulness, Mean
from jscope_tl.faithfulness.swaps import Slot, Swap
from jscope_tl.faithfulness.validation import ValidatedPrompt
from jscope_tl.faithfulness.vocabulary import KINDS, RELATIONS, Kind, Relation

__all__ = [
    "AUTHORS",
    "CORRECTED",
    "FAMILIES",
    "KINDS",
    "MEASURES",
    "METHODS",
    "RELATIONS",
    "Column",
    "Faithfulness",
    "Family",
    "GroundTruth",
    "Kind",
    "Mean",
    "Measure",
    "Method",
    "Protocol",
    "Question",
    "Relation",
    "Slot",
    "Swap",
    "Template",
    "ValidatedPrompt",
    "WeightDependence",
    "evaluate",
    "weight_dependence",
]  # fmt: skip
