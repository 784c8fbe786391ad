"""Results with awkward tokens, made from real ones."""

import dataclasses
from typing import Any

import torch

import jscope_tl as js
from jscope_tl.results.pattern import as_pattern

NASTY = [
    "<bos>", " <s>", " </script>", " \"quoted\" & 'single'", "\n", " 🙂", "\t", " &lt;", "<!--", "<img src=x onerror=alert(1)>",
    " $x^2$", "\\", "`${1}`", " 👩\u200d🔬", " é", "\u2028",
]  # fmt: skip
PROMPT = "tom grew up in the south and goes to columbia . at school he is a"


def with_tokens(result: js.Attribution, str_tokens: list[str]) -> js.Attribution:
    """The same result of another prompt of any length, scores 1, 2, 3, ... with a BOS that is far above."""
    scores = torch.arange(len(str_tokens), dtype=torch.float32) + 1
    scores[0] = 1000
    return dataclasses.replace(
        result, scores=scores, stderr=None, tokens=torch.arange(len(str_tokens)), str_tokens=str_tokens,
        position=len(str_tokens) - 1, bos_positions=(0,),
    )  # fmt: skip


def pattern_of(result: js.Attribution) -> js.InfluencePattern:
    """A pattern over the tokens of a result, without a model."""
    n = len(result.tokens)
    scores = torch.rand(n, n, generator=torch.Generator().manual_seed(0)).tril() + torch.eye(n)
    return dataclasses.replace(
        as_pattern(result), scores=scores, stderr=None, position=n - 1, positions=tuple(range(n)),
        targets=(result.prediction.target,) * n,
    )  # fmt: skip


def attention_of(n: int, layers: int = 2, heads: int = 2) -> Any:
    """Random causal attention ``[layer, head, dest, src]``."""
    noise = torch.rand(layers, heads, n, n, generator=torch.Generator().manual_seed(1))
    return noise.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)
