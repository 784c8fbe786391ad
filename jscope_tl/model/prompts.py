"""Conversion of user input (text, ids, a tensor, a target, a position) to ids of the model, or an error."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from jscope_tl.errors import InputError, whole
from jscope_tl.model.chats import is_chat
from jscope_tl.model.pieces import BROKEN, by_bytes, texts_of
from jscope_tl.model.view import ModelView

Ids = Sequence[int] | Sequence[Sequence[int]] | Int[Tensor, "*batch pos"] | Int[np.ndarray, "*batch pos"]
Prompt = str | Ids | Mapping[str, Any]


def to_tokens(view: ModelView, prompt: Any, prepend_bos: Any = None) -> Int[Tensor, "pos"]:
    """The prompt as ids on the model's device; strings are tokenized with the model's BOS default, ids are used unchanged."""
    if prepend_bos not in (None, True, False):
        raise InputError(f"prepend_bos must be True, False or None (the model's default); got {prepend_bos!r}.")
    if isinstance(prompt, str):
        tokens = _tokenize(view, prompt, prepend_bos)
    elif prepend_bos:
        raise InputError(
            "prepend_bos is for strings; ids are used unchanged. Put the BOS id in front of them yourself."
        )
    else:
        tokens = _from_ids(prompt)
    if len(tokens) == 0:
        raise InputError("The prompt is empty; there is no prediction to explain. Give at least one token.")
    if len(tokens) > view.n_ctx:
        raise InputError(f"The prompt has {len(tokens)} tokens, {view.name} takes at most {view.n_ctx}; shorten it.")
    for token in tokens:
        if not 0 <= token < view.d_vocab:
            raise InputError(f"Token id {token} is out of range; {view.name} has ids 0 to {view.d_vocab - 1}.")
    return torch.tensor(tokens, dtype=torch.long, device=view.input_device)


def _tokenize(view: ModelView, prompt: str, prepend_bos: bool | None) -> list[int]:
    if view.tokenizer is None:
        raise InputError(f"{view.name} has no tokenizer; give the prompt as token ids.")
    if not prompt:
        raise InputError("The prompt is an empty string; there is no prediction to explain. Give at least one word.")
    refuse_undecodable("prompt", prompt)
    override = {} if prepend_bos is None else {"prepend_bos": prepend_bos}
    tokens = view.model.to_tokens(prompt, truncate=False, **override)[0].tolist()
    if not prompt.strip() and set(tokens) <= {view.tokenizer.bos_token_id}:
        raise InputError("The prompt is blank, and this tokenizer has no tokens for blanks. Give at least one word.")
    return tokens


def refuse_undecodable(what: str, text: str) -> None:
    """Refuse strings that are not valid Unicode text, for which tokenizers raise unrelated errors."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"The {what} has characters that are not text (broken UTF-8 at {error.start}); correct it."
        ) from error


def _from_ids(prompt: Any) -> list[int]:
    if isinstance(prompt, Mapping):
        return _from_encoding(prompt)
    if isinstance(prompt, np.ndarray):
        prompt = prompt.tolist()
    if isinstance(prompt, Tensor):
        return _from_tensor(prompt)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise InputError(f"A prompt must be a string, a list of ids or an integer tensor, not {type(prompt).__name__}.")
    if prompt and all(isinstance(item, str) for item in prompt):
        raise InputError(f"One prompt at a time: got a list of {len(prompt)} strings. Call attribute for each.")
    if is_chat(prompt) and all({"role", "content"} & {*message} for message in prompt):
        raise InputError(
            "This prompt is a chat. js.attribute_text(model, chat) explains its answer; for other functions pass the ids that the "
            "tokenizer's apply_chat_template returns."
        )
    if prompt and all(isinstance(item, Sequence) for item in prompt):
        return _from_ids(_only(prompt))
    ids = [whole(item) for item in prompt]
    if None in ids:
        raise InputError("A list prompt must be a list of token ids (whole numbers); this one has other elements.")
    return [token for token in ids if token is not None]


def _from_encoding(encoding: Mapping[str, Any]) -> list[int]:
    """Ids from the output of a tokenizer or chat template: one sequence, and nothing masked, because scopes ignore masks."""
    if "input_ids" not in encoding:
        raise InputError(
            f"A mapping as prompt must have 'input_ids', like a tokenizer's output; this one has {[*encoding]}. A chat is a list of messages, "
            "[{'role': 'user', 'content': ...}], for js.attribute_text."
        )
    ids, mask = _from_ids(encoding["input_ids"]), encoding.get("attention_mask")
    seen = [1] * len(ids) if mask is None else _from_ids(mask)
    if seen != [1] * len(ids):
        raise InputError(
            f"A prompt cannot have masked tokens, but this attention_mask has {seen.count(0)} zeros among {len(seen)} "
            f"entries for {len(ids)} tokens. Pass the ids without padding."
        )
    return ids


def _only(sequences: Sequence[Any]) -> Any:
    if len(sequences) > 1:
        raise InputError(f"One prompt at a time: got {len(sequences)} sequences of ids. Call attribute for each.")
    return sequences[0]


def _from_tensor(prompt: Tensor) -> list[int]:
    if prompt.is_floating_point() or prompt.is_complex() or prompt.dtype == torch.bool:
        raise InputError(
            f"Token ids must be integers, but this tensor is {prompt.dtype}. Embeddings cannot be used as a prompt."
        )
    if prompt.is_sparse or prompt.is_meta:
        raise InputError("A prompt tensor must be a dense tensor with data; this one is sparse or on 'meta'.")
    if prompt.ndim == 2 and prompt.shape[0] == 1:
        prompt = prompt[0]
    if prompt.ndim != 1:
        raise InputError(
            f"A prompt tensor must be [pos] or [1, pos], this one is {list(prompt.shape)}. One prompt at a time: call "
            "attribute for each row."
        )
    return prompt.tolist()


def to_position(position: Any, n_tokens: int) -> int:
    """The explained position, counted from the start."""
    number = whole(position)
    if number is None:
        raise InputError(f"position is a whole number (negative numbers count from the end), not {position!r}.")
    if not -n_tokens <= number < n_tokens:
        raise InputError(
            f"position {number} is outside the prompt of {n_tokens} tokens ({-n_tokens} to {n_tokens - 1})."
        )
    return number % n_tokens


def to_id(view: ModelView, target: Any, n_logits: int) -> int:
    """A target (a string of one token, or an id) as an id."""
    number = _single_token(view, target) if isinstance(target, str) else whole(target)
    if number is None:
        raise InputError(f"A target must be a string that is one token, or a token id; got {target!r}.")
    if not 0 <= number < n_logits:
        raise InputError(
            f"Target {target!r} (id {number}) is out of range; {view.name} predicts ids 0 to {n_logits - 1}."
        )
    return number


def _single_token(view: ModelView, target: str) -> int:
    _need_tokenizer(view, "target")
    refuse_undecodable("target", target)
    ids = _ids(view, target)
    if len(ids) != 1:
        pieces = ", ".join(repr(piece) for piece in prompt_texts(view, ids))
        others = [other for other in (" " + target, target.strip()) if target.strip() and len(_ids(view, other)) == 1]
        hint = f" Try {others[0]!r}." if others else ""
        raise InputError(f"Target {target!r} is {len(ids)} tokens ({pieces}), it must be exactly one.{hint}")
    if ids[0] == view.tokenizer.unk_token_id and target.strip() != view.tokenizer.unk_token:
        raise InputError(f"Target {target!r} is not in the vocabulary of {view.name}.")
    return ids[0]


def ids_of(view: ModelView, what: str, target: Any) -> list[int]:
    """The ids of a target of any number of tokens (a string, an id, or a list of both); an empty list if it has another type.

    Raises:
        InputError: the target is empty or not in the vocabulary.
    """
    if isinstance(target, list | tuple):
        if not target:
            raise InputError(f"The {what} is an empty list; pass one token or more.")
        return [to_id(view, token, view.d_vocab) for token in target]
    if not isinstance(target, str):
        return [] if whole(target) is None else [to_id(view, target, view.d_vocab)]
    _need_tokenizer(view, what)
    refuse_undecodable(what, target)
    ids = _ids(view, target)
    if len(ids) < 2:
        return [_single_token(view, target)]
    if view.tokenizer.unk_token_id in ids and view.tokenizer.unk_token not in target:
        raise InputError(f"The {what} {target!r} has words that are not in the vocabulary of {view.name}.")
    return ids


def _need_tokenizer(view: ModelView, what: str) -> None:
    if view.tokenizer is None:
        raise InputError(f"{view.name} has no tokenizer; give the {what} as a token id.")


def _ids(view: ModelView, text: str) -> list[int]:
    return list(view.tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_texts(view: ModelView, ids: Sequence[int]) -> list[str]:
    """The text of each token of a prompt; tokens that together form one character have it with their number (`texts_of`)."""
    if view.tokenizer is None:
        return to_str_tokens(view, ids)
    texts = texts_of(ids, lambda some: view.tokenizer.decode(some, clean_up_tokenization_spaces=False))
    return [to_str_tokens(view, [token])[0] if BROKEN in text else text for token, text in zip(ids, texts, strict=True)]


def to_str_tokens(view: ModelView, ids: Sequence[int]) -> list[str]:
    """The text of each id by itself; its bytes if they are not text; without a tokenizer, the id in angle brackets."""
    if view.tokenizer is None:
        return [f"<{token}>" for token in ids]
    texts = {token: view.tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids}
    return [
        by_bytes(view.tokenizer.convert_ids_to_tokens(token)) if BROKEN in texts[token] else texts[token]
        for token in ids
    ]


def bos_positions(view: ModelView, tokens: Int[Tensor, "pos"]) -> tuple[int, ...]:
    """Positions of BOS tokens at the start of the prompt (if BOS is also EOS, later ones are text)."""
    bos = getattr(view.tokenizer, "bos_token_id", None)  # may be 0
    leading = 0
    while bos is not None and leading < len(tokens) and int(tokens[leading]) == bos:
        leading += 1
    return tuple(range(leading))


def prompt_warnings(view: ModelView, tokens: Int[Tensor, "pos"]) -> list[str]:
    """Warnings about the prompt: a second BOS, or words that the tokenizer does not know."""
    warnings = []
    if len(bos_positions(view, tokens)) > 1:
        warnings.append(
            "The prompt starts with more than one BOS, which changes the scores. TransformerLens prepends one to strings; "
            "leave it out of the text, or pass prepend_bos=False."
        )
    unknown = getattr(view.tokenizer, "unk_token_id", None)
    if unknown is not None and unknown not in (view.tokenizer.bos_token_id, view.tokenizer.eos_token_id):
        where = [i for i, token in enumerate(tokens.tolist()) if token == unknown]
        if where:
            warnings.append(
                f"Words at positions {where} are not in the model's vocabulary; the model sees the unknown token there."
            )
    return warnings
