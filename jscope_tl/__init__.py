"""Jacobian Scopes for TransformerLens: how strongly a prediction depends on each token of a prompt."""

from jscope_tl import corpus, diagnostics, faithfulness, patching, views
from jscope_tl.attribution.attribute import attribute
from jscope_tl.attribution.batch import attribute_batch
from jscope_tl.attribution.explain import explain
from jscope_tl.attribution.influence import influence_pattern
from jscope_tl.attribution.jacobian import jacobian
from jscope_tl.attribution.paths import Line, Noise, Path, Point
from jscope_tl.attribution.spectrum import spectrum
from jscope_tl.attribution.text import attribute_text
from jscope_tl.diagnostics.heads import HeadAgreement, head_agreement
from jscope_tl.engine.inputs import Reduction
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.state import State
from jscope_tl.errors import InputError
from jscope_tl.explorer.notebook import Explorer, app
from jscope_tl.explorer.report import report
from jscope_tl.faithfulness.ground_truth import GroundTruth, ground_truth
from jscope_tl.model.basis import Basis
from jscope_tl.pocket import PocketPrompt, load_pocket_model, pocket_prompts, pocket_tasks, series
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.pattern import InfluencePattern
from jscope_tl.results.spectrum import Spectrum
from jscope_tl.results.text_attribution import TextAttribution
from jscope_tl.scopes.alternatives import AlternativesScope
from jscope_tl.scopes.base import Scope, Score
from jscope_tl.scopes.directions import (
    ContrastiveScope,
    EntropyScope,
    LogitTemperatureScope,
    LogProbScope,
    QuantityScope,
    RandomDirectionScope,
    SemanticScope,
    TemperatureScope,
)
from jscope_tl.scopes.fisher import FisherInputScope, FisherScope
from jscope_tl.scopes.registry import available_scopes, get_scope, register_scope
from jscope_tl.scopes.spectral import SpectralScope

__all__ = [
    "AlternativesScope", "Attribution", "Basis", "ContrastiveScope", "EntropyScope", "Explorer", "FisherInputScope", "FisherScope", "GroundTruth", "HeadAgreement",
    "InfluencePattern", "InputError", "Line", "LogProbScope", "LogitTemperatureScope", "Noise", "Path",
    "PocketPrompt", "Point", "QuantityScope", "RandomDirectionScope", "Reduction", "Rules", "Scope", "Score",
    "SemanticScope", "SpectralScope", "Spectrum", "State", "TemperatureScope", "TextAttribution", "app", "attribute", "attribute_batch", "attribute_text",
    "available_scopes", "corpus", "diagnostics", "explain", "faithfulness", "get_scope", "ground_truth", "head_agreement", "influence_pattern",
    "jacobian", "load_pocket_model", "patching", "pocket_prompts", "pocket_tasks", "register_scope", "report",
    "series", "spectrum", "views",
]  # fmt: skip
