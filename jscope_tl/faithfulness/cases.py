"""Cases, on which methods are measured: the tokens of a prompt, the token that follows, and its cause if it is known."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from jscope_tl.errors import InputError, whole
from jscope_tl.faithfulness.validation import ValidatedPrompt
from jscope_tl.model.prompts import bos_positions, to_id, to_str_tokens, to_tokens
from jscope_tl.model.running import Passes, logits_of, undisturbed
from jscope_tl.model.view import ModelView
from jscope_tl.pocket import PocketPrompt


@dataclass(frozen=True, eq=False)
class Case:
    """One prediction.

    Attributes:
        tokens: ``[pos]``, up to and including the explained position.
        target: the id of the token that follows.
        causes: the positions that determine the target, if they are known.
        bos: the positions of BOS.
        task: the task of the prompt.
        alternative: the id of the answer with which the target is contrasted, if there is one.
        swaps: the positions whose words were swapped for others, each with the mean of ``KL(p ‖ p_swapped)``.
    """

    tokens: Int[Tensor, "pos"]
    target: int
    causes: tuple[int, ...] = ()
    bos: tuple[int, ...] = ()
    task: str = ""
    alternative: int | None = None
    swaps: tuple[tuple[int, float], ...] = ()

    @property
    def position(self) -> int:
        """The explained position, which is the last one."""
        return len(self.tokens) - 1

    def candidates(self, with_bos: bool) -> list[int]:
        """The positions that are ranked."""
        kept = [t for t in range(len(self.tokens)) if with_bos or t not in self.bos]
        return kept or [self.position]


def to_cases(view: ModelView, prompts: Any, prepend_bos: bool | None = None, with_causes: bool = True) -> list[Case]:
    """The cases for the prompts that `jscope_tl.faithfulness.evaluate` accepts.

    Raises:
        InputError: no prompts, or a prompt without a token to predict; the message says which.
    """
    if isinstance(prompts, str | PocketPrompt | ValidatedPrompt | Tensor | Mapping) or not isinstance(
        prompts, Iterable
    ):
        raise InputError(
            "prompts are a list of prompts (strings, lists of ids, dictionaries or PocketPrompts) or a GroundTruth; got "
            f"{prompts!r}."
        )
    cases = []
    for n, prompt in enumerate(prompts):
        try:
            cases.append(_case(view, prompt, prepend_bos, with_causes))
        except InputError as error:
            raise InputError(f"Prompt {n}: {error}") from error
    if not cases:
        raise InputError("There are no prompts to measure on; give at least one.")
    return cases


def _case(view: ModelView, prompt: Any, prepend_bos: bool | None, with_causes: bool = False) -> Case:
    if isinstance(prompt, PocketPrompt):
        tokens = to_tokens(view, prompt.text, prepend_bos)
        if not with_causes:
            return _made(view, tokens, to_id(view, prompt.target, view.d_vocab), (), prompt.task)
        shift = len(bos_positions(view, tokens)) - 1  # causes of a PocketPrompt count one BOS
        causes = tuple(t + shift for t in prompt.causes)
        words = prompt.text.split()
        str_tokens = [text.strip() for text in to_str_tokens(view, tokens.tolist())]
        if [str_tokens[t] for t in causes if t < len(str_tokens)] != [words[t - 1] for t in prompt.causes]:
            raise InputError(
                f"the causes of a PocketPrompt are tokens of the pocket model's tokenizer, and {view.name} has other tokens. "
                "Give your own prompts and causes (jscope faithfulness --prompts FILE)."
            )
        return _made(view, tokens, to_id(view, prompt.target, view.d_vocab), causes, prompt.task)
    if isinstance(prompt, ValidatedPrompt):
        return _validated(view, prompt, prepend_bos)
    if isinstance(prompt, dict):
        return _from_dict(view, prompt, prepend_bos)
    tokens = to_tokens(view, prompt, prepend_bos if isinstance(prompt, str) else None)
    if len(tokens) < 3:
        raise InputError(
            "its last token is the one to predict, so it needs three tokens or more. Or give {'prompt': ..., 'target': ...}."
        )
    return _made(view, tokens[:-1], int(tokens[-1]))


def _validated(view: ModelView, prompt: ValidatedPrompt, prepend_bos: bool | None) -> Case:
    tokens, saved = to_tokens(view, prompt.text, prepend_bos), torch.tensor(prompt.tokens)
    (bos, own), (saved_bos, saved_own) = (
        (len(leading), found.tolist()[len(leading) :])
        for found in (tokens, saved)
        for leading in [bos_positions(view, found)]
    )
    if own != saved_own or to_str_tokens(view, [prompt.target]) != [prompt.answer]:
        raise InputError(
            f"it was validated with tokens that differ from those of {view.name}: make the ground truth with this model "
            "(js.ground_truth), or load one that was made with it."
        )
    shift = bos - saved_bos
    causes = tuple(t + shift for t in prompt.causes)
    swaps = tuple((slot.position + shift, slot.kl) for slot in prompt.slots)
    return Case(tokens, prompt.target, causes, bos_positions(view, tokens), prompt.family, prompt.baseline, swaps)


def _from_dict(view: ModelView, prompt: dict[str, Any], prepend_bos: bool | None) -> Case:
    known = {"prompt", "target", "causes", "task"}
    if "prompt" not in prompt or not set(prompt) <= known:
        raise InputError(f"has the keys {sorted(map(str, prompt))}; known are 'prompt', 'target', 'causes' and 'task'.")
    text, task = prompt["prompt"], str(prompt.get("task") or "")
    if isinstance(text, dict | PocketPrompt):
        raise InputError(
            f"its 'prompt' must be a string or token ids, not a {type(text).__name__}; give the {type(text).__name__} itself."
        )
    if prompt.get("target") is None:
        plain = _case(view, text, prepend_bos)
        return _made(view, plain.tokens, plain.target, _positions(prompt.get("causes"), plain.tokens), task)
    tokens = to_tokens(view, text, prepend_bos if isinstance(text, str) else None)
    return _made(
        view, tokens, to_id(view, prompt["target"], view.d_vocab), _positions(prompt.get("causes"), tokens), task
    )


def _positions(causes: Any, tokens: Int[Tensor, "pos"]) -> tuple[int, ...]:
    single = whole(causes) is not None or not isinstance(causes, Iterable)
    given = [] if causes is None else [causes] if single else list(causes)
    found = tuple(number for cause in given if (number := whole(cause)) is not None and 0 <= number < len(tokens))
    if len(found) < len(given):
        raise InputError(f"causes are positions among the {len(tokens)} tokens before the target; got {causes!r}.")
    return found


def _made(
    view: ModelView, tokens: Int[Tensor, "pos"], target: int, causes: tuple[int, ...] = (), task: str = ""
) -> Case:
    return Case(tokens, target, causes, bos_positions(view, tokens), task)


def predicted(view: ModelView, case: Case) -> int:
    """The model's most probable next token."""
    with undisturbed(view, []):
        return int(logits_of(view, rearrange(case.tokens, "pos -> 1 pos"), Passes())[0, -1].argmax())
