"""What is checked on an architecture: the package on TransformerLens' bridge, against autograd on the HuggingFace model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import oracle
import torch
from jaxtyping import Float
from torch import Tensor

import jscope_tl as js
from jscope_tl.model.patterns import to_heads

Check = Callable[["Case"], tuple[Tensor, Callable[[], Tensor]]]
"""What the package finds, and how to find what is right."""
TOKENS = torch.tensor([0, 17, 30, 44, 17, 28, 9, 31])
OTHER = torch.tensor([0, 51, 12, 8, 77, 60, 23, 90])
TARGET, EXPLAINED, LAYER = 40, [4, 7], 1
RULES = {"attnlrp": ("halved", "secant"), "relp": ("constant", "secant"), "gim": ("tempered", "plain")}
"""Of attention and MLPs; norm scales are constant in all."""


@dataclass(frozen=True)
class Case:
    """One architecture: TransformerLens' bridge in float32, and the HuggingFace model in float64."""

    bridge: Any
    hf: Any

    @cached_property
    def run(self) -> oracle.Forward:
        """The prompt as HuggingFace runs it."""
        return oracle.forward(self.hf, TOKENS)

    def attribute(self, scope: str, **options: Any) -> Tensor:
        """The package's scores."""
        target = {"target": TARGET} if scope == "semantic" else {}
        return js.attribute(self.bridge, TOKENS, scope, progress=False, **target, **options).scores

    def gradient(self, frozen: tuple[str, ...] = ()) -> Float[Tensor, "pos"]:
        """Norms of the gradient of the target's logit."""
        run = oracle.forward(self.hf, TOKENS, frozen) if frozen else self.run
        return _norms(run.logits[-1, TARGET], run.embeddings)

    def layer_inputs(self, run: oracle.Forward) -> list[Tensor]:
        """What each decoder layer reads, where each runs once."""
        if not run.layers or any(len(layer) != 1 or layer[0].ndim != 2 for layer in run.layers):
            raise ValueError("the layers do not run once each on one stream")
        return [layer for (layer,) in run.layers]


def _gradient(value: Tensor, at: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, at, retain_graph=True)
    return found


def _norms(value: Tensor, at: Float[Tensor, "pos d"]) -> Float[Tensor, "pos"]:
    return _gradient(value, at).norm(dim=-1)


def _logits(case: Case) -> tuple[Tensor, Callable[[], Tensor]]:
    return case.bridge(TOKENS.unsqueeze(0), return_type="logits")[0], lambda: case.run.logits


def _semantic(case: Case) -> tuple[Tensor, Callable[[], Tensor]]:
    return case.attribute("semantic"), case.gradient


def _temperature(case: Case) -> tuple[Tensor, Callable[[], Tensor]]:
    return case.attribute("temperature"), lambda: _norms(case.run.y[-1].norm(), case.run.embeddings)


def _layer_map(case: Case) -> tuple[Tensor, Callable[[], Tensor]]:
    def expected() -> Tensor:
        return torch.stack([_norms(case.run.logits[-1, TARGET], x) for x in case.layer_inputs(case.run)])

    return case.attribute("semantic", at="resid_pre"), expected


def _influence(case: Case) -> tuple[Tensor, Callable[[], Tensor]]:
    pattern = js.influence_pattern(case.bridge, TOKENS, "semantic", EXPLAINED, target=TARGET, progress=False)
    return pattern.scores, lambda: torch.stack(
        [_norms(case.run.logits[i, TARGET], case.run.embeddings) for i in EXPLAINED]
    )


def _attention(case: Case) -> tuple[Tensor, Callable[[], Tensor]]:
    _, cache = case.bridge.run_with_cache(TOKENS.unsqueeze(0))
    patterns = torch.stack([head.pattern for head in to_heads(cache, TOKENS)])
    return patterns, lambda: torch.cat(oracle.attention_patterns(case.hf, TOKENS))


def _patching(case: Case) -> tuple[Tensor, Callable[[], Tensor]]:
    """Predicted and actual effects of patching one layer's input, position by position."""
    point = f"blocks.{LAYER}.hook_resid_pre"
    found = js.patching.compare(case.bridge, TOKENS, OTHER, "semantic", target=TARGET, at=[point], progress=False)
    positions = found.effects[0].isfinite().nonzero().flatten().tolist()

    def expected() -> Tensor:
        base, source = (case.layer_inputs(run)[LAYER] for run in (case.run, oracle.forward(case.hf, OTHER)))
        gradient, logit = _gradient(case.run.logits[-1, TARGET], base), case.run.logits[-1, TARGET]
        predicted = (gradient * (source - base).detach()).sum(-1)
        patched = [oracle.forward(case.hf, TOKENS, replaced=(LAYER, t, source[t].detach())) for t in positions]
        effects = torch.stack([run.logits[-1, TARGET] - logit for run in patched])
        return torch.cat([predicted[positions], effects])

    return torch.cat([found.predicted[0, positions], found.effects[0, positions]]), expected


def _frozen(*kinds: str) -> Check:
    return lambda case: (case.attribute("semantic", frozen=kinds), lambda: case.gradient(kinds))


def _ruled(name: str, at_pattern: bool = False) -> Check:
    """Gradient rules, by row norms or by entries of attention patterns."""
    at = {"at": "pattern"} if at_pattern else {}

    def expected(case: Case) -> Tensor:
        run = oracle.forward(case.hf, TOKENS, ("norm",), rules=RULES[name])
        if not torch.allclose(run.logits, case.run.logits):
            raise ValueError("the rules' oracle does not know how the layers are written")
        logit = run.logits[-1, TARGET]
        if not at_pattern:
            return _norms(logit, run.embeddings)
        entries = [(P * _gradient(logit, P))[0].relu().sum((0, 1)) for P in run.patterns]
        return torch.stack(entries).sum(0).detach()

    return lambda case: (case.attribute("semantic", gradient=name, **at), lambda: expected(case))


CHECKS: dict[str, Check] = {
    "logits": _logits,
    "semantic": _semantic,
    "temperature": _temperature,
    "layer map": _layer_map,
    "influence pattern": _influence,
    "attention pattern": _attention,
    "patching": _patching,
    "frozen attn": _frozen("attn"),
    "frozen norm": _frozen("norm"),
    "frozen both": _frozen("attn", "norm"),
    "attnlrp": _ruled("attnlrp"),
    "relp": _ruled("relp"),
    "gim": _ruled("gim"),
    "attnlrp at pattern": _ruled("attnlrp", at_pattern=True),
}
"""In the order of the table's columns; `logits` are the bridge's own."""
