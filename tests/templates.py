"""A byte-level tokenizer with chat templates of several families, and what each of these writes, told in Python."""

import functools
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.models import ANY_KIND, tiny

CORPUS = [
    "the user said hello to the assistant in the capital of france and thought about the system\n<think>\nnow\n</think>\n\nhi 🙂 Qz0xJ7 "
    * 9
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|eot|>", "[INST]", "[/INST]"]
Parts = list[tuple[str, str, int]]
"""Text, role and number of message, one after the other."""


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """The tokenizer as files, which TransformerLens looks for."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=430, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    folder = tempfile.TemporaryDirectory()
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>").save_pretrained(
        folder.name
    )
    return folder


def byte_level(template: Any = None) -> Any:
    """A tiny Llama that reads by bytes, with a chat template; of its own."""
    model = tiny(ANY_KIND, "llama").model
    model.tokenizer = PreTrainedTokenizerFast.from_pretrained(_folder().name)
    model.tokenizer.chat_template = template
    return model


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m['role'] + '\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}"
    "{% endfor %}"
)
QWEN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{{ m['content'].split('</think>')[-1].lstrip('\n') }}{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
BARE = "{% for m in messages %}{{ m['content'].split('</think>')[-1] }}{% endfor %}"
TWICE = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}{{ messages[0]['content'] }}"
UPPER = "{% for m in messages %}{{ m['content'] | upper + '\n' }}{% endfor %}"
DEPENDS = "{% for m in messages %}{{ 'long: ' if m['content'] | length > 20 else 'short: ' }}{{ m['content'] + '\n' }}{% endfor %}"


def _chatml(messages: Sequence[dict[str, str]], think: bool = False) -> Parts:
    parts: Parts = []
    for i, m in enumerate(messages):
        content = m["content"]
        if think and m["role"] == "assistant":
            content = content.split("</think>")[-1].lstrip("\n")
        parts += [
            ("<|im_start|>" + m["role"] + "\n", "template", -1),
            (content, m["role"], i),
            ("<|im_end|>\n", "template", -1),
        ]
    return [*parts, ("<|im_start|>assistant\n" + ("<think>\n" if think else ""), "template", -1)]


def _llama(messages: Sequence[dict[str, str]]) -> Parts:
    parts: Parts = [("<s>", "template", -1)]
    for i, m in enumerate(messages):
        parts += [
            ("<|head|>" + m["role"] + "\n\n", "template", -1), (m["content"].strip(), m["role"], i), ("<|eot|>", "template", -1)
        ]  # fmt: skip
    return [*parts, ("<|head|>assistant\n\n", "template", -1)]


def _mistral(messages: Sequence[dict[str, str]]) -> Parts:
    parts: Parts = [("<s>", "template", -1)]
    for i, m in enumerate(messages):
        user = m["role"] == "user"
        before, content, after = ("[INST] ", m["content"].strip(), " [/INST]") if user else (" ", m["content"], "</s>")
        parts += [(before, "template", -1), (content, m["role"], i), (after, "template", -1)]
    return parts


def _bare(messages: Sequence[dict[str, str]]) -> Parts:
    return [(m["content"].split("</think>")[-1], m["role"], i) for i, m in enumerate(messages)]


FAMILIES: dict[str, tuple[str, Callable[[Sequence[dict[str, str]]], Parts]]] = {
    "chatml": (CHATML, _chatml),
    "llama": (LLAMA, _llama),
    "mistral": (MISTRAL, _mistral),
    "qwen": (QWEN, functools.partial(_chatml, think=True)),
    "bare": (BARE, _bare),
}
"""A template, and what it writes."""


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages of a user and an assistant in turn."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]
