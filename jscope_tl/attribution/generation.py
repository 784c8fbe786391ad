"""What a model goes on with: greedy, or sampled with a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.engine.progress import progress_bar
from jscope_tl.errors import InputError, count
from jscope_tl.model.prompts import to_id, to_str_tokens
from jscope_tl.model.running import Passes, ends_at, undisturbed
from jscope_tl.model.text import Tokenized, continued, tokenized
from jscope_tl.model.view import ModelView


@dataclass(frozen=True)
class Generation:
    """How a continuation is generated.

    Attributes:
        max_new_tokens: at most so many.
        temperature: logits are divided by it before a token is drawn; 0: the most probable token is taken (greedy).
        seed: of the draws. The global random generator is not touched.
        stop: tokens that end it, ids or strings of one token; None: those that end a text of this model.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    seed: int = 0
    stop: Sequence[str | int] | None = None

    def __post_init__(self) -> None:
        count("max_new_tokens", self.max_new_tokens, 1)
        count("seed", self.seed, 0)
        number = self.temperature
        if not isinstance(number, Real) or isinstance(number, bool) or not 0 <= number < 1e6:
            raise InputError(f"temperature is 0 (greedy) or more; got {number!r}.")

    @property
    def described(self) -> str:
        """In words."""
        return f"sampled at temperature {self.temperature:g}, seed {self.seed}" if self.temperature else "greedy"


def generated(
    view: ModelView,
    tokens: Int[Tensor, "pos"],
    how: Generation,
    hooks: Sequence[Any],
    passes: Passes,
    progress: bool | None = None,
) -> tuple[list[int], str]:
    """Ids of what the model goes on with, the token that ends it not among them, and why it ended.

    The whole text runs for each token. With a key-value cache hooks would see one position alone, and bridges of TransformerLens 3.9
    and 4.3 do not fill it under transformers 5.24, which calls it by another name: their own ``generate`` then loses the prompt.

    Raises:
        InputError: there is no room for another token, or the model ends the text at once.
    """
    stop, n = stop_ids(view, how.stop), min(how.max_new_tokens, view.n_ctx - len(tokens))
    if n < 1:
        raise InputError(
            f"The prompt has {len(tokens)} tokens, and {view.name} takes no more than {view.n_ctx}; shorten it."
        )
    found: list[int] = []
    generator = torch.Generator("cpu").manual_seed(how.seed)
    with undisturbed(view, hooks), ends_at(view, hooks, -1) as ends:
        for _ in progress_bar(progress, "generated tokens", "token", range(n)):
            text = torch.cat([tokens, tokens.new_tensor(found)])
            logits = ends(text.unsqueeze(0), passes)[1][0].double().cpu()
            following = (
                _drawn((logits - logits.max()) / how.temperature, generator)
                if how.temperature
                else int(logits.argmax())
            )
            if following in stop:
                break
            found.append(following)
    if not found:
        ended = to_str_tokens(view, [following])[0]
        raise InputError(
            f"The model ends the text at once, with {ended!r}: there is no continuation to explain. Give one."
        )
    return found, "ended by itself" if len(found) < n else f"cut after {n} tokens"


def with_answer(
    view: ModelView,
    prompt: Any,
    continuation: Any,
    wanted: Generation,
    *,
    prepend_bos: Any,
    template: Any,
    hooks: Sequence[Any],
    passes: Passes,
    progress: bool | None,
) -> tuple[Tokenized, str]:
    """A prompt and what follows it, and where that comes from, in words: given, of the chat's last message, or generated."""
    given = tokenized(view, prompt, continuation, prepend_bos, template)
    if len(given.tokens) > given.text.n_prompt:
        return given, "given"
    ids, ended = generated(view, given.tokens, wanted, hooks, passes, progress)
    return continued(view, given, ids), f"{wanted.described}, {ended}"


def _drawn(logits: Float[Tensor, "d_vocab"], generator: torch.Generator) -> int:
    return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


def stop_ids(view: ModelView, stop: Sequence[str | int] | None) -> set[int]:
    """Tokens that end a text: those given, or those of the tokenizer and of the model's configuration for generation."""
    if stop is not None:
        if isinstance(stop, str) or not isinstance(stop, Sequence):
            raise InputError(
                f"stop is a list of tokens that end the continuation, ids or strings of one token; got {stop!r}."
            )
        return {to_id(view, token, view.d_vocab) for token in stop}
    config = getattr(getattr(view.model, "original_model", None), "generation_config", None)
    ids = (getattr(owner, "eos_token_id", None) for owner in (view.tokenizer, config))
    return {token for given in ids if given is not None for token in (given if isinstance(given, list) else [given])}
