"""Targets and baselines of several tokens: gradients of log-probabilities of whole texts, and contrasts of two."""

import copy
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.engine import branches
from tests import models, oracles
from tests.models import TOKENS, Tiny, snapshot

PROMPT, TARGET, BASELINE = TOKENS[:5], [208, 99, 431], [44, 17]
TOLERANCE = 1e-4
POINT = "blocks.1.hook_resid_pre"


def gradient(family: str, ids: list[int]) -> torch.Tensor:
    """Of the log-probability of ``ids`` after the prompt, by the prompt's embeddings, of the bare model in float64."""
    hf = copy.deepcopy(models.hf_model(family)).double()
    tokens = torch.cat([PROMPT, torch.tensor(ids[:-1], dtype=torch.long)])
    _, x = oracles.trunk(hf, tokens, 0)
    inside = hf.config.hidden_size**0.5 if hf.config.model_type == "gemma2" and oracles.V4 else 1.0
    x = x.clone().requires_grad_()
    y = hf.base_model(inputs_embeds=x[None] / inside, use_cache=False).last_hidden_state[0, len(PROMPT) - 1 :]
    log_p = oracles.logits_of(hf, y).log_softmax(-1)
    (found,) = torch.autograd.grad(sum(log_p[i, token] for i, token in enumerate(ids)), x)  # type: ignore[arg-type]
    return found[: len(PROMPT)]


@pytest.fixture(params=["side by side", "one sequence"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(branches, "LONG", 10**6 if request.param == "side by side" else 1)
    return request.param


def test_a_span_is_one_gradient(tiny: Tiny) -> None:
    result = js.attribute(tiny.model, PROMPT, "log_prob", target=TARGET)
    expected = gradient(tiny.family, TARGET).norm(dim=1)
    assert oracles.relative_difference(result.scores, expected) < TOLERANCE
    assert (result.provenance.n_forward, result.provenance.n_backward) == (1, 1)
    assert result.unit == "nat per unit of x"
    inside = js.attribute(tiny.model, TOKENS, "log_prob", target=TARGET, position=4)
    assert oracles.relative_difference(inside.scores[:5], expected) < TOLERANCE
    assert not inside.scores[5:].any()


def test_a_contrast_is_the_difference_of_two_gradients(tiny: Tiny, way: str) -> None:
    difference = gradient(tiny.family, TARGET) - gradient(tiny.family, BASELINE)
    result = js.attribute(tiny.model, PROMPT, "contrastive", target=TARGET, baseline=BASELINE)
    assert oracles.relative_difference(result.scores, difference.norm(dim=1)) < TOLERANCE
    assert result.provenance.n_backward == 1
    x = oracles.trunk(copy.deepcopy(models.hf_model(tiny.family)).double(), PROMPT, 0)[1]
    dot = js.attribute(tiny.model, PROMPT, "contrastive", target=TARGET, baseline=BASELINE, reduction="dot")
    assert oracles.relative_difference(dot.scores, (difference * x).sum(1).abs()) < TOLERANCE
    against_one = js.attribute(tiny.model, PROMPT, "contrastive", target=TARGET, baseline=BASELINE[0])
    difference = gradient(tiny.family, TARGET) - gradient(tiny.family, BASELINE[:1])
    assert oracles.relative_difference(against_one.scores, difference.norm(dim=1)) < TOLERANCE


def test_one_sequence_is_one_forward_pass(llama: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside it a trial on a few tokens, whether the model keeps continuations apart; a window of attention would not."""
    monkeypatch.setattr(branches, "LONG", 1)
    result = js.attribute(llama, PROMPT, "contrastive", target=TARGET, baseline=BASELINE)
    assert result.provenance.n_forward == (4 if kind == "bridge" else 2)
    gemma = models.tiny("bridge", "gemma2").model if kind == "bridge" else llama
    windowed = js.attribute(gemma, PROMPT, "contrastive", target=TARGET, baseline=BASELINE)
    assert windowed.provenance.n_forward == 2


def test_local_attention_reaches_as_far_as_in_each_text_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPT-Neo counts back over the tokens of the other continuation, whatever the mask says."""
    if kind == "hooked":
        return  # runs two prompts side by side
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        vocab_size=models.D_VOCAB, hidden_size=32, num_layers=2, num_heads=4, window_size=12, bos_token_id=0, eos_token_id=1,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=models.N_CTX, attn_implementation="eager",
        initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.bridge_of(GPTNeoForCausalLM(config).eval(), "tiny-neo")
    found = []
    for long in (1, 10**6):
        monkeypatch.setattr(branches, "LONG", long)
        result = js.attribute(model, TOKENS.repeat(2), "contrastive", target=[5, 6, 7, 8], baseline=[15, 16, 17, 18])
        found.append(result.scores)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)


def patterns(
    model: Any, ids: list[int], shared: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The log-probability of ``ids``, and factors of all pattern entries; those of the prompt itself are ``shared``."""
    n, tokens = len(PROMPT), torch.cat([PROMPT, torch.tensor(ids[:-1], dtype=torch.long)])
    own: dict[str, torch.Tensor] = {}

    def multiply(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        name = str(len(own))
        own[name] = torch.ones_like(pattern).requires_grad_()
        shared.setdefault(name, torch.ones_like(pattern[..., :n, :n]).requires_grad_())
        factor = own[name].clone()
        factor[..., :n, :n] = shared[name]
        return pattern * factor

    with torch.enable_grad():
        logits = model.run_with_hooks(
            tokens[None], fwd_hooks=[(lambda name: name.endswith("attn.hook_pattern"), multiply)], return_type="logits"
        )
        log_p = logits[0, n - 1 :].log_softmax(-1)
        return sum(log_p[i, token] for i, token in enumerate(ids)), own  # type: ignore[return-value]


def test_entries_of_patterns(llama: Any, way: str) -> None:
    """Those where the prompt attends are the same for both texts; each text has its own where it attends itself."""
    shared: dict[str, torch.Tensor] = {}
    (a, of_a), (b, of_b) = (patterns(llama, ids, shared) for ids in (TARGET, BASELINE))
    n, leaves = len(PROMPT), [*shared.values(), *of_a.values(), *of_b.values()]
    gradients = torch.autograd.grad(a - b, leaves)
    expected = sum(found[0].relu().sum((0, 1))[:n] for found in gradients)
    result = js.attribute(llama, PROMPT, "contrastive", target=TARGET, baseline=BASELINE, at="pattern")
    assert oracles.relative_difference(result.scores, expected) < TOLERANCE
    heads = js.attribute(llama, PROMPT, "contrastive", target=TARGET, baseline=BASELINE, at="pattern", per="head")
    assert heads.scores.shape == (3, 4, n)
    torch.testing.assert_close(heads.scores.sum((0, 1)), result.scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "how", [{"at": "resid_pre"}, {"gradient": "attnlrp"}, {"at": POINT, "reduction": "elementwise"}]
)
def test_both_ways_agree(llama: Any, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for long in (1, 10**6):
        monkeypatch.setattr(branches, "LONG", long)
        found.append(js.attribute(llama, PROMPT, "contrastive", target=TARGET, baseline=BASELINE, **how))
    torch.testing.assert_close(found[0].scores, found[1].scores, rtol=1e-4, atol=1e-6)
    assert found[0].hook_points == found[1].hook_points


def test_what_the_result_says(pocket: Any) -> None:
    given = {"target": "the doors are", "baseline": "the door"}
    result = js.attribute(pocket, "the keys to the cabinet near", "contrastive", **given)
    assert [token.str_token for token in result.target_tokens] == [" the", " doors", " are"]
    assert [token.str_token for token in result.baseline_tokens] == [" the", " door"]
    product = 1.0
    for token in result.target_tokens:
        product *= token.probability
    assert result.prediction.target.probability == pytest.approx(product)
    text = repr(result)
    assert "target ' the doors are' against ' the door'" in text
    assert "(3 tokens: ' the'" in text
    assert any("has 3 tokens and the baseline" in warning for warning in result.warnings)
    alone = js.attribute(pocket, "the keys to the cabinet near", "log_prob", target="the doors")
    assert not any("tokens and the baseline" in warning for warning in alone.warnings)


def test_a_semantic_span_is_the_sum_of_its_logits(llama: Any) -> None:
    """As one cotangent at each position says: the gradient of their sum."""
    model = llama
    result = js.attribute(model, PROMPT, "semantic", target=TARGET)
    kept: dict[str, torch.Tensor] = {}

    def leaf(x: torch.Tensor, hook: Any) -> torch.Tensor:
        kept["x"] = x.detach().clone().requires_grad_()
        return kept["x"]

    with torch.enable_grad():
        tokens = torch.cat([PROMPT, torch.tensor(TARGET[:-1])])[None]
        logits = model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", leaf)], return_type="logits")[0, 4:]
        (found,) = torch.autograd.grad(sum(logits[i, token] for i, token in enumerate(TARGET)), kept["x"])
    assert oracles.relative_difference(result.scores, found[0, :5].norm(dim=1)) < TOLERANCE


def test_batches(pocket: Any) -> None:
    prompts = ["the keys near", "the key to the cabinet near"]
    batch = list(js.attribute_batch(pocket, prompts, "log_prob", target="the doors"))
    for prompt, result in zip(prompts, batch, strict=True):
        assert torch.equal(result.scores, js.attribute(pocket, prompt, "log_prob", target="the doors").scores)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"target": TARGET, "baseline": TARGET}, "are the same tokens"),
        ({"target": TARGET}, "needs a target and a baseline"),
        ({"baseline": BASELINE}, "needs a target and a baseline"),
        ({"target": [], "baseline": 3}, "target is an empty list"),
        ({"target": "the zebra", "baseline": 3}, "words that are not in the vocabulary"),
        ({"target": TARGET, "baseline": BASELINE, "path": "line"}, "leave path out"),
        (
            {"target": TARGET, "baseline": BASELINE, "fwd_hooks": [("hook_embed", lambda x, hook: x)]},
            "runs two texts together",
        ),
        ({"target": [3] * 60, "baseline": BASELINE}, "Prompt and target have 64 tokens"),
    ],
)
def test_what_cannot_be_explained(llama: Any, how: dict[str, Any], says: str) -> None:
    before = snapshot(llama)
    with pytest.raises(js.InputError, match=says):
        js.attribute(llama, PROMPT, "contrastive", **how)
    assert snapshot(llama) == before


def test_other_entry_points_take_one_token(llama: Any) -> None:
    for call in (js.patching.ablate, js.influence_pattern, js.patching.components):
        with pytest.raises(
            js.InputError, match=r"A target must be a string that is one token, or a token id; got \[208"
        ):
            call(llama, PROMPT, "log_prob", target=TARGET)


def test_nothing_of_the_users_is_changed(llama: Any, way: str) -> None:
    before = snapshot(llama)
    with torch.inference_mode():
        inside = js.attribute(llama, PROMPT, "contrastive", target=TARGET, baseline=BASELINE)
    assert snapshot(llama) == before
    outside = js.attribute(llama, PROMPT, "contrastive", target=TARGET, baseline=BASELINE)
    assert torch.equal(inside.scores, outside.scores)
