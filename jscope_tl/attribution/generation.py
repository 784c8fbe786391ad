"""Generation of a continuation, greedy or sampled with a seed."""

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
        max_new_tokens: the maximum number of tokens.
        temperature: logits are divided by it before a token is sampled; 0: the most probable token is taken (greedy).
        seed: the seed for sampling. The global random generator is not touched.
        stop: tokens that end the continuation, ids or strings of one token; None: the model's own end-of-text tokens.
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
            raise InputError(f"temperature must be 0 (greedy) or more; got {number!r}.")

    @property
    def described(self) -> str:
        """A description for results."""
        return f"sampled at temperature {self.temperature:g}, seed {self.seed}" if self.temperature else "greedy"


def generated(
    view: ModelView,
    tokens: Int[Tensor, "pos"],
    how: Generation,
    hooks: Sequence[Any],
    passes: Passes,
    progress: bool | None = None,
) -> tuple[list[int], str]:
    """Generate a continuation; returns its ids, without the end-of-text token, and the reason why it ended.

    Every token takes a forward pass over the whole text. With a key-value cache hooks would see a single position. Also, bridges of
    TransformerLens 3.9 and 4.3 do not fill the cache under transformers 5.24, where its name has changed: their ``generate`` then
    loses the prompt.

    Raises:
        InputError: the context is full, or the model ends the text at once.
    """
    stop, n = stop_ids(view, how.stop), min(how.max_new_tokens, view.n_ctx - len(tokens))
    if n < 1:
        raise InputError(
            f"The prompt has {len(tokens)} tokens, but {view.name} takes at most {view.n_ctx} with a continuation; shorten it."
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
            f"The model ends the text at once, with {ended!r}: there is no continuation to explain. Pass one as continuation."
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
    """The prompt with its continuation, and a description of the continuation's source: given (also by the chat), or generated."""
    given = tokenized(view, prompt, continuation, prepend_bos, template)
    if len(given.tokens) > given.text.n_prompt:
        return given, "given"
    ids, ended = generated(view, given.tokens, wanted, hooks, passes, progress)
    return continued(view, given, ids), f"{wanted.described}, {ended}"


def _drawn(logits: Float[Tensor, "d_vocab"], generator: torch.Generator) -> int:
    return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


def stop_ids(view: ModelView, stop: Sequence[str | int] | None) -> set[int]:
    """Ids of the tokens that end a text: ``stop``, or those of the tokenizer and of the model's generation config."""
    if stop is not None:
        if isinstance(stop, str) or not isinstance(stop, Sequence):
            raise InputError(
                f"stop is a list of tokens that end the continuation, ids or strings of one token; got {stop!r}."
            )
        return {to_id(view, token, view.d_vocab) for token in stop}
    config = getattr(getattr(view.model, "original_model", None), "generation_config", None)
    ids = (getattr(owner, "eos_token_id", None) for owner in (view.tokenizer, config))
    return {token for given in ids if given is not None for token in (given if isinstance(given, list) else [given])}
