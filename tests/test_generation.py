"""What a model goes on with, against a plain loop of forward passes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.attribution.generation import Generation, generated, stop_ids
from jscope_tl.model.running import Passes
from jscope_tl.model.view import ModelView
from tests.models import N_CTX, TOKENS, Tiny, snapshot

PROMPT = TOKENS[:5]


def by_hand(model: Any, n: int, choose: Callable[[torch.Tensor], int], tokens: torch.Tensor = PROMPT) -> list[int]:
    """``n`` forward passes."""
    with torch.no_grad():
        for _ in range(n):
            logits = model(tokens[None], return_type="logits")[0, -1].double()
            tokens = torch.cat([tokens, torch.tensor([choose(logits)])])
    return tokens[-n:].tolist()


def go_on(model: Any, hooks: Any = (), tokens: torch.Tensor = PROMPT, **how: Any) -> list[int]:
    return generated(ModelView(model), tokens, Generation(**{"stop": [], **how}), hooks, Passes())[0]


def test_greedy_is_a_plain_loop(tiny: Tiny) -> None:
    before = snapshot(tiny.model)
    expected = by_hand(tiny.model, 6, lambda logits: int(logits.argmax()))
    assert go_on(tiny.model, max_new_tokens=6) == expected
    assert snapshot(tiny.model) == before


def test_a_seed_is_repeatable(tiny: Tiny) -> None:
    generator = torch.Generator().manual_seed(3)
    expected = by_hand(tiny.model, 6, lambda z: int(torch.multinomial((z / 1.5).softmax(-1), 1, generator=generator)))
    before = torch.get_rng_state()
    for _ in range(2):
        assert go_on(tiny.model, max_new_tokens=6, temperature=1.5, seed=3) == expected
    assert torch.equal(torch.get_rng_state(), before)
    assert len({tuple(go_on(tiny.model, max_new_tokens=6, temperature=1.5, seed=seed)) for seed in range(4)}) > 1


def test_the_lowest_temperatures_are_greedy(llama: Any) -> None:
    expected = go_on(llama, max_new_tokens=3)
    for temperature in (1e-300, 1e-323):
        assert go_on(llama, max_new_tokens=3, temperature=temperature) == expected


@pytest.mark.slow
def test_draws_are_those_of_the_distribution(llama: Any) -> None:
    """The share of the likeliest token among 300 draws, within three standard errors; temperature 2 makes it rarer."""
    with torch.no_grad():
        logits = llama(PROMPT[None], return_type="logits")[0, -1].double()
    for temperature in (0.5, 2.0):
        p = (logits / temperature).softmax(-1)
        drawn = [go_on(llama, max_new_tokens=1, temperature=temperature, seed=seed)[0] for seed in range(300)]
        best = int(p.argmax())
        expected, found = float(p[best]), drawn.count(best) / 300
        assert abs(found - expected) < 3 * (expected * (1 - expected) / 300) ** 0.5 + 1e-9


def test_it_ends_before_a_stop_token(llama: Any) -> None:
    whole = go_on(llama, max_new_tokens=6)
    later = next(i for i in range(1, 6) if whole[i] not in whole[:i])
    assert go_on(llama, max_new_tokens=6, stop=[whole[later]]) == whole[:later]
    with pytest.raises(js.InputError, match="The model ends the text at once"):
        go_on(llama, max_new_tokens=6, stop=[whole[0]])
    view = ModelView(llama)
    ended = generated(view, PROMPT, Generation(6, stop=[whole[later]]), (), Passes())[1]
    assert ended == "ended by itself"
    assert generated(view, PROMPT, Generation(2, stop=[]), (), Passes())[1] == "cut after 2 tokens"


@pytest.mark.newest_line
def test_what_ends_a_text(pocket: Any) -> None:
    view = ModelView(pocket)
    assert stop_ids(view, None) == {view.tokenizer.eos_token_id}
    assert stop_ids(view, [" are", 7]) == {pocket.to_single_token(" are"), 7}
    assert stop_ids(view, []) == set()
    with pytest.raises(js.InputError, match="stop is a list of tokens"):
        stop_ids(view, "the")
    with pytest.raises(js.InputError, match="must be exactly one"):
        stop_ids(view, ["the keys"])


def test_hooks_see_whole_texts(llama: Any) -> None:
    """Hooks of the user's change what is said as they change a forward pass."""
    lengths = []

    def zero(x: torch.Tensor, hook: Any) -> torch.Tensor:
        lengths.append(x.shape[1])
        return torch.cat([torch.zeros_like(x[:, :3]), x[:, 3:]], 1)

    found = go_on(llama, [("hook_embed", zero)], max_new_tokens=4)
    assert lengths == [5, 6, 7, 8]
    with llama.hooks(fwd_hooks=[("hook_embed", zero)]):
        assert found == by_hand(llama, 4, lambda logits: int(logits.argmax()))
    assert found != go_on(llama, max_new_tokens=4)


def test_there_is_room_for_so_many(llama: Any) -> None:
    tokens = TOKENS.repeat(6)[: N_CTX - 2]
    assert len(go_on(llama, tokens=tokens, max_new_tokens=9)) == 2
    with pytest.raises(js.InputError, match="takes at most 48 with a continuation; shorten it"):
        go_on(llama, tokens=TOKENS.repeat(6), max_new_tokens=1)


def test_every_token_is_one_forward_pass_more(llama: Any) -> None:
    result = js.attribute_text(llama, PROMPT, max_new_tokens=4, stop=[])
    assert result.tokens[5:].tolist() == go_on(llama, max_new_tokens=4)
    assert (result.provenance.n_forward, result.provenance.n_backward) == (5, 4)
    assert result.continued == "greedy, cut after 4 tokens"
    given = js.attribute_text(llama, PROMPT, result.tokens[5:])
    assert torch.equal(given.scores, result.scores)
    drawn = js.attribute_text(llama, PROMPT, max_new_tokens=2, stop=[], temperature=0.7, generation_seed=5)
    assert drawn.continued == "sampled at temperature 0.7, seed 5, cut after 2 tokens"
    assert drawn.tokens[5:].tolist() == go_on(llama, max_new_tokens=2, temperature=0.7, seed=5)


@pytest.mark.newest_line
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"seed": -1}, "seed"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"temperature": float("inf")}, "temperature must be 0"),
    ],
)
def test_bad_values(how: dict[str, Any], says: str) -> None:
    with pytest.raises(js.InputError, match=says):
        Generation(**how)
