"""On a real language model: what a pocket model cannot show."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import jscope_tl as js
from tests import real_model
from tests.oracles import relative_difference

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPT = "When Mary and John went to the store, John gave a drink to"


def test_the_model_predicts_as_one_that_has_learned_english(smollm2: Any) -> None:
    result = js.attribute(smollm2, PROMPT, "contrastive", target=" Mary", baseline=" John")

    assert result.prediction.top[0].str_token == " Mary"
    assert torch.isfinite(result.scores).all()


def test_a_blank_at_the_end_is_noticed(smollm2: Any) -> None:
    """It changes the prediction: words of this vocabulary start with their blank."""
    with_blank, without = (js.attribute(smollm2, f"The capital of France is{end}", "log_prob") for end in (" ", ""))
    assert without.prediction.top[0].str_token == " Paris" != with_blank.prediction.top[0].str_token
    assert any("after the blank at position" in warning for warning in with_blank.warnings)
    series = js.attribute(smollm2, "29, 35, 41, ", "log_prob")
    assert not without.warnings + series.warnings


@functools.cache
def in_float64() -> Any:
    """The model without the package and without TransformerLens; norms compute in float32 even there, to 1e-7."""
    hf = AutoModelForCausalLM.from_pretrained(real_model.folder(), attn_implementation="eager").double().eval()
    return hf.requires_grad_(False)


QUANTITIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "semantic": lambda z, target: z[target],
    "log_prob": lambda z, target: z.log_softmax(-1)[target],
    "logit_temperature": lambda z, target: (z - z.mean()).norm(),
    "entropy": lambda z, target: -(z.softmax(-1) * z.log_softmax(-1)).sum(),
}
PROMPTS = {
    "As a state-of-the-art AI assistant, you never argue or deceive, because you are": " truthful",
    "Tom loves Korean food. He grew up in the South and goes to Columbia. He is a": " liberal",
    "Italian: Buon pomeriggio, cari colleghi ricercatori. English: Good afternoon, dear fellow": " researchers",
    "German: Dies ist ein Aufsatz über kausale Zuschreibung. English: This is a paper on causal": " attribution",
    "French: Nous l'appelons lentille jacobienne. English: We call it Jacobian": " Sc",
    "Italiano: Ma quando tu sarai nel dolce mondo, priegoti ch'a la mente altrui mi rechi: English: But when you have "
    "returned to the sweet": " world",
}
"""The paper's, up to the word that is explained (here, where that is several tokens, the first of them)."""


@pytest.mark.parametrize("prompt", PROMPTS)
def test_gradients_are_those_of_float64(smollm2: Any, prompt: str) -> None:
    """Norms to 2e-5, gradient x input to 5e-5.

    Float32 leaves up to 8e-6 in norms after 30 layers, and 3e-5 in products, whose terms are larger than their sum; each
    bound has room for CPUs that add in another order.
    """
    hf, wrong = in_float64(), {}
    tokens, target = smollm2.to_tokens(prompt)[0], smollm2.to_single_token(PROMPTS[prompt])
    x = hf.get_input_embeddings()(tokens).requires_grad_()
    logits = hf(inputs_embeds=x[None], logits_to_keep=1).logits[0, -1]
    for i, (name, quantity) in enumerate(QUANTITIES.items()):
        (gradient,) = torch.autograd.grad(quantity(logits, target), x, retain_graph=True)
        by_input = gradient * x.detach()
        expected = {
            "row_norm": gradient.norm(dim=-1), "dot": by_input.sum(-1).abs(), "elementwise": by_input.norm(dim=-1)
        }  # fmt: skip
        options = {"target": target} if name in ("semantic", "log_prob") else {}
        of_input = ("dot", "elementwise")[(i + len(tokens)) % 2]
        for reduction in ("row_norm", of_input):
            scores = expected[reduction]
            found = js.attribute(smollm2, tokens, name, reduction=reduction, **options).scores
            difference = relative_difference(found, scores)
            if difference > (2e-5 if reduction == "row_norm" else 5e-5):
                wrong[name, reduction] = difference
    assert not wrong


@pytest.mark.parametrize(("target", "doubted"), [("Japan", True), (" Japan", False), (".", False)])
def test_a_target_without_its_space_is_doubted(smollm2: Any, target: str, doubted: bool) -> None:
    result = js.attribute(smollm2, "Anna moved from Spain to Japan. Now she lives in", "log_prob", target=target)
    assert any("' Japan' is another token, and more probable" in warning for warning in result.warnings) == doubted


@pytest.mark.newest_line
def test_fisher_is_as_near_to_the_whole_trace_as_it_says(smollm2: Any) -> None:
    """On the positions that make up 95 % of the total, and in the order of the ten highest."""
    exact = js.attribute(smollm2, PROMPT, "fisher", method="exact", progress=False).scores
    result = js.attribute(smollm2, PROMPT, "fisher", progress=False)

    assert result.stderr is not None
    assert result.warnings == []
    assert result.provenance.n_backward <= 60
    assert ((result.scores - exact).abs() <= 4 * result.stderr).all()
    order = exact.argsort(descending=True)
    large = order[: int((exact[order].cumsum(0) < 0.95 * exact.sum()).sum()) + 1]
    assert float(((result.scores - exact).abs() / exact)[large].mean()) < 0.05
    top, error = result.scores[order[:10]], result.stderr[order[:10]]
    apart = torch.hypot(error[:, None], error)
    assert (top[:, None] - top > -3 * apart)[torch.ones(10, 10).triu(1).bool()].all()


def test_low_rank_is_that_of_the_whole_matrix(smollm2: Any) -> None:
    """The leading directions come from products; in float64 and from the matrix they are the same to a thousandth."""
    found = js.attribute(smollm2, PROMPT, "fisher", method="low_rank", rank=4, progress=False)
    hf = in_float64()
    tokens = smollm2.to_tokens(PROMPT)[0]
    x = hf.get_input_embeddings()(tokens).requires_grad_()
    y = hf.model(inputs_embeds=x[None]).last_hidden_state[0, -1]
    W, p = hf.lm_head.weight, hf.lm_head(y).softmax(-1).detach()
    centred = W - p @ W
    eigenvalues, eigenvectors = torch.linalg.eigh(centred.T @ (p[:, None] * centred))
    rows = [torch.autograd.grad(y @ u, x, retain_graph=True)[0] for u in eigenvectors[:, -4:].T]
    expected = sum(size * row.square().sum(-1) for size, row in zip(eigenvalues[-4:], rows, strict=True))
    assert relative_difference(found.scores, expected) < 2e-3
