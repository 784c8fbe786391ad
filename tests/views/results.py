"""Results with awkward tokens, made from real ones."""

import dataclasses
import math
from itertools import accumulate, pairwise
from typing import Any

import torch

import jscope_tl as js
from jscope_tl.model.text import Text
from jscope_tl.results.pattern import as_pattern
from jscope_tl.results.text_attribution import Span

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


def answer_with(result: js.TextAttribution, str_tokens: list[str], n_prompt: int) -> js.TextAttribution:
    """An answer of these tokens in a chat of two messages: the first token and the last one of the prompt are a template's and far above.

    Row ``i`` has the scores 1, 2, 3, ... times ``i + 1``.
    """
    n, ends = len(str_tokens), [0, *accumulate(map(len, str_tokens))]
    own = [i not in (0, n_prompt - 1) for i in range(n)]
    messages = tuple((0 if i < n_prompt else 1) if own[i] else -1 for i in range(n))
    roles = tuple(("template", "user", "assistant")[message + 1] for message in messages)
    text = Text("".join(str_tokens), tuple(pairwise(ends)), roles, messages, n_prompt)
    scores = torch.stack([(torch.arange(n) + 1.0) * (i + 1) for i in range(n - n_prompt)])
    scores[:, [0, n_prompt - 1]] = 1000
    scores = scores.tril(n_prompt - 1)
    rows = tuple(Span(i, i + 1, str_tokens[n_prompt + i], math.log(0.25)) for i in range(n - n_prompt))
    return dataclasses.replace(
        result, tokens=torch.arange(n), str_tokens=str_tokens, position=n - 2, bos_positions=(0,), token_scores=scores, rows=rows,
        token_stderr=None, signed=None, predictions=result.predictions[:1] * len(rows), text=text, by="token", segments=(), warnings=[],
    )  # fmt: skip
