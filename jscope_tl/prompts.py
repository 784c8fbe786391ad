"""From what a user types (text, ids, a tensor, a target, a position) to ids that the model takes, or to a refusal."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.model import ModelView

Prompt = str | Sequence[int] | Int[Tensor, "*batch pos"]


def to_tokens(view: ModelView, prompt: Any, prepend_bos: bool | None = None) -> Int[Tensor, "pos"]:
    """The prompt as ids on the model's device; strings by the model's tokenizer and BOS default, ids as they are."""
    if isinstance(prompt, str):
        tokens = _tokenize(view, prompt, prepend_bos)
    else:
        if prepend_bos:
            raise InputError(
                "prepend_bos is for strings; token ids are taken as they are, put the BOS id there yourself."
            )
        tokens = _from_ids(view, prompt)
    if tokens.numel() == 0:
        raise InputError("The prompt is empty; there is no prediction to explain. Give at least one token.")
    if len(tokens) > view.n_ctx:
        raise InputError(f"The prompt has {len(tokens)} tokens, {view.name} takes at most {view.n_ctx}; shorten it.")
    return tokens.to(view.input_device)


def _tokenize(view: ModelView, prompt: str, prepend_bos: bool | None) -> Int[Tensor, "pos"]:
    if view.tokenizer is None:
        raise InputError(f"{view.name} has no tokenizer; give the prompt as token ids.")
    if not prompt:
        raise InputError("The prompt is an empty string; there is no prediction to explain. Give at least one word.")
    override = {} if prepend_bos is None else {"prepend_bos": prepend_bos}
    return view.model.to_tokens(prompt, truncate=False, **override)[0].clone()


def _from_ids(view: ModelView, prompt: Any) -> Int[Tensor, "pos"]:
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
        if prompt and all(isinstance(item, str) for item in prompt):
            raise InputError(f"One prompt at a time: got a list of {len(prompt)} strings. Call attribute for each.")
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
            raise InputError("A list prompt is a list of token ids (whole numbers); this one has other things in it.")
        prompt = torch.tensor(prompt, dtype=torch.long)
    if not isinstance(prompt, Tensor):
        raise InputError(f"A prompt is a string, a list of ids or an integer tensor, not {type(prompt).__name__}.")
    if prompt.is_floating_point() or prompt.is_complex() or prompt.dtype == torch.bool:
        raise InputError(
            f"Token ids are integers, this tensor is {prompt.dtype}. Embeddings cannot be given as a prompt."
        )
    if prompt.ndim == 2 and prompt.shape[0] == 1:
        prompt = prompt[0]
    if prompt.ndim != 1:
        raise InputError(
            f"A prompt tensor is [pos] or [1, pos], this one is {list(prompt.shape)}. One prompt at a time: call "
            "attribute for each row."
        )
    wrong = prompt[(prompt < 0) | (prompt >= view.d_vocab)]
    if len(wrong):
        raise InputError(f"Token id {int(wrong[0])} is out of range; {view.name} has ids 0 to {view.d_vocab - 1}.")
    return prompt.clone().long()


def to_position(position: Any, n_tokens: int) -> int:
    """The explained position as a number from the start."""
    if isinstance(position, bool) or not isinstance(position, int):
        raise InputError(f"position is a whole number (negative counts from the end), not {position!r}.")
    if not -n_tokens <= position < n_tokens:
        raise InputError(
            f"position {position} is outside the prompt of {n_tokens} tokens ({-n_tokens} to {n_tokens - 1})."
        )
    return position % n_tokens


def to_id(view: ModelView, target: Any, n_logits: int) -> int:
    """A target (a string of one token, or an id) as an id."""
    if (
        isinstance(target, Tensor)
        and target.ndim == 0
        and not target.is_floating_point()
        and target.dtype != torch.bool
    ):
        target = int(target)
    if isinstance(target, bool) or not isinstance(target, int | str):
        raise InputError(f"A target is a string that is one token, or a token id; got {target!r}.")
    if isinstance(target, int):
        if not 0 <= target < n_logits:
            raise InputError(f"Target id {target} is out of range; {view.name} predicts ids 0 to {n_logits - 1}.")
        return target
    return _single_token(view, target)


def _single_token(view: ModelView, target: str) -> int:
    if view.tokenizer is None:
        raise InputError(f"{view.name} has no tokenizer; give the target as a token id.")
    ids = view.tokenizer(target, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = ", ".join(repr(piece) for piece in to_str_tokens(view, torch.tensor(ids, dtype=torch.long)))
        hint = "" if target.startswith(" ") else f" Most tokenizers want the space before a word: try {' ' + target!r}."
        raise InputError(f"Target {target!r} is {len(ids)} tokens ({pieces}), it must be exactly one.{hint}")
    unknown = view.tokenizer.unk_token_id
    if unknown is not None and ids[0] == unknown and target.strip() != view.tokenizer.unk_token:
        raise InputError(f"Target {target!r} is not in the vocabulary of {view.name}.")
    return int(ids[0])


def to_str_tokens(view: ModelView, tokens: Int[Tensor, "pos"]) -> list[str]:
    """Each id as text by itself; its number in angle brackets where the model has no tokenizer."""
    ids = [int(token) for token in tokens]
    if view.tokenizer is None:
        return [f"<{token}>" for token in ids]
    return [view.tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]


def bos_positions(view: ModelView, tokens: Int[Tensor, "pos"]) -> tuple[int, ...]:
    """Positions of BOS tokens at the start of the prompt (where BOS doubles as EOS, later ones are text)."""
    bos = getattr(view.tokenizer, "bos_token_id", None)  # may be 0
    leading = 0
    while bos is not None and leading < len(tokens) and int(tokens[leading]) == bos:
        leading += 1
    return tuple(range(leading))


def prompt_warnings(view: ModelView, tokens: Int[Tensor, "pos"]) -> list[str]:
    """Doubts about the prompt itself: a second BOS, words that the tokenizer does not know."""
    warnings = []
    if len(bos_positions(view, tokens)) > 1:
        warnings.append(
            "The prompt starts with more than one BOS, which changes the map. TransformerLens prepends one to strings; "
            "leave it out of the text, or pass prepend_bos=False."
        )
    unknown = getattr(view.tokenizer, "unk_token_id", None)
    if unknown is not None and unknown not in (view.tokenizer.bos_token_id, view.tokenizer.eos_token_id):
        where = [i for i, token in enumerate(tokens.tolist()) if token == unknown]
        if where:
            warnings.append(
                f"Words at positions {where} are not in the model's vocabulary; it sees the unknown token there."
            )
    return warnings
