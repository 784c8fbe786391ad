"""Answers without parts of their prompt: against loops over texts, and Fisher's prediction against dense Jacobians."""

from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from tests import models, oracles
from tests.models import TOKENS, Tiny, snapshot

PROMPT, ANSWER = TOKENS[:6], TOKENS[6:]
POCKET = ("the keys to the cabinet . the doors are", " old and")


def log_probs(model: Any, tokens: torch.Tensor, hooks: Any = ()) -> torch.Tensor:
    """Of the last predictions, those of the answer."""
    with torch.no_grad():
        logits = model.run_with_hooks(tokens[None], fwd_hooks=list(hooks), return_type="logits")[0]
    return logits[-len(ANSWER) - 1 : -1].double().log_softmax(-1)


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def test_measured_effects_are_those_of_a_loop(tiny: Tiny) -> None:
    found = js.patching.context(tiny.model, PROMPT, ANSWER, by="token")
    base = log_probs(tiny.model, TOKENS)
    assert [part.positions for part in found.parts] == [(t,) for t in range(1, 6)]  # BOS stays
    for i, t in enumerate(range(1, 6)):
        left = torch.cat([TOKENS[:t], TOKENS[t + 1 :]])
        log_q = log_probs(tiny.model, left)
        torch.testing.assert_close(found.removed[i], kl(base, log_q).float(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.without[i], log_q.gather(1, ANSWER[:, None])[:, 0].exp().float())
        assert [token.token for token in found.instead[i]] == log_q.argmax(-1).tolist()

        def blank(x: torch.Tensor, hook: Any, t: int = t) -> torch.Tensor:
            return x.index_fill(1, torch.tensor([t]), 0)

        zeroed = kl(base, log_probs(tiny.model, TOKENS, [("hook_embed", blank)]))
        torch.testing.assert_close(found.zeroed[i], zeroed.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.probabilities, base.gather(1, ANSWER[:, None])[:, 0].exp().float())


def test_predictions_are_those_of_dense_jacobians(tiny: Tiny) -> None:
    """``½ δ^T J^T F_u J δ`` with the vectors of all tokens of a part in ``δ``, for every prediction of the answer."""
    text = js.patching.context(tiny.model, PROMPT, ANSWER, by="token").text
    parts = {"ab": (text.offsets[1][0], text.offsets[2][1]), "c": text.offsets[4]}
    found = js.patching.context(tiny.model, PROMPT, ANSWER, by=parts)
    assert [part.positions for part in found.parts] == [(1, 2), (4,)]
    assert found.predicted is not None
    for j, position in enumerate((5, 6)):
        o = oracles.dense(models.hf_model(tiny.family), TOKENS, position)
        F = oracles.fisher_matrix(o)
        for i, part in enumerate(found.parts):
            moved = sum(o.J[:, t] @ o.x[t] for t in part.positions)
            expected = float(0.5 * moved @ F @ moved)
            assert float(found.predicted[i, j]) == pytest.approx(expected, rel=1e-3)


def test_cues_are_the_contrast_with_what_is_said_instead(pocket: Any) -> None:
    found = js.patching.context(pocket, *POCKET, by="sentence")
    assert [part.text for part in found.parts] == ["the keys to the cabinet .", "the doors are"]
    depends = found.top(1)[0]
    assert depends.kl == float(found.removed.max())
    for out, part in ((0, 0), (1, 1), (depends.out, depends.part)):
        token, instead = int(found.tokens[found.text.n_prompt + out]), found.instead[part][out].token
        tokens = found.tokens[: found.text.n_prompt + out]
        scope = js.LogProbScope(token) if token == instead else js.ContrastiveScope(token, instead)
        assert torch.equal(found.cues(out, part).scores, js.attribute(pocket, tokens, scope).scores)


def test_rankings_and_tables(pocket: Any) -> None:
    found = js.patching.context(pocket, *POCKET, by="word")
    best = found.top(100)
    assert [token.kl for token in best] == sorted(found.removed.flatten().tolist(), reverse=True)
    assert {token.part for token in found.top(3, part=1)} == {1}
    frame = found.to_dataframe()
    assert frame["removed"].unstack().to_numpy().tolist() == found.removed.tolist()
    assert frame.loc[(best[0].part, best[0].out), "instead"] == best[0].instead.str_token
    assert -1 <= found.correlation() <= 1
    assert "rank correlation" in repr(found)
    costs = found.costs
    assert costs["removed"].n_forward == costs["zeroed"].n_forward + 1 == len(found.parts) + 1
    assert costs["predicted"].n_backward == len(found.parts) + 2


def test_chats_keep_what_their_template_wrote(pocket: Any) -> None:
    template = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} . {% endfor %}key :"
    chat = [{"role": "tom", "content": "the keys near"}, {"role": "mary", "content": "the door"}]
    found = js.patching.context(pocket, chat, " the keys", chat_template=template)
    assert [(part.role, part.text) for part in found.parts] == [("tom", "the keys near"), ("mary", "the door")]
    kept = found.tokens[[t for t in range(len(found.tokens)) if t not in found.parts[0].positions]]
    with torch.no_grad():
        logits = pocket(kept[None].long(), return_type="logits")[0, -3:-1].double().log_softmax(-1)
    torch.testing.assert_close(
        found.without[0], logits.gather(1, found.tokens[-2:, None])[:, 0].exp().float(), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"by": "page"}, "There is no by='page'"),
        ({"by": {"x": (90, 95)}}, "is outside the text"),
        ({"by": {"answer": "old"}}, "There is no part of the prompt to leave out"),
        ({"prepend_bos": False}, "nothing would be left before the answer"),
    ],
)
def test_what_cannot_be_left_out(pocket: Any, how: dict[str, Any], says: str) -> None:
    before = snapshot(pocket)
    with pytest.raises(js.InputError, match=says):
        js.patching.context(pocket, *POCKET, **how)
    assert snapshot(pocket) == before


def test_bad_places(pocket: Any, tmp_path: Path) -> None:
    found = js.patching.context(pocket, *POCKET)
    for call, says in (
        (lambda: found.top(0), "k is"),
        (lambda: found.top(1, 7), "no part 7"),
        (lambda: found.cues(9, 0), "no token 9"),
    ):
        with pytest.raises(js.InputError, match=says):
            call()
    again = js.patching.ContextEffects.load(found.save(tmp_path / "context.safetensors"))
    with pytest.raises(js.InputError, match="comes from a file"):
        again.cues(0, 0)


def test_nothing_of_the_users_is_changed(llama: Any) -> None:
    before = snapshot(llama)
    with torch.inference_mode():
        js.patching.context(llama, PROMPT, ANSWER, by="token")
    assert snapshot(llama) == before
