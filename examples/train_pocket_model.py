# %% [markdown]
# # Training the pocket model
#
# A Llama of 1.2 million parameters learns documents whose predictions have known causes (`jscope_tl.pocket.tasks`).
# `python examples/train_pocket_model.py --out FOLDER` repeats the training of the model that comes with the package;
# `--steps 20` shows in a minute that it runs.

# %%
import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from jscope_tl.pocket.corpus import Document
from jscope_tl.pocket.tasks import TASKS, documents
from jscope_tl.pocket.tokenizer import BOS, EOS, PAD, SPECIAL, UNK, build_tokenizer

FRAME_WEIGHT = 0.1  # loss weight of words that nothing decides, relative to answers and numbers
SHORT = {"agreement": 14, "assistant": 14, "politics": 14, "detective": 20, "translation": 28, "repetition": 30}
SERIES_TOKENS = 2048


# %% [markdown]
# ## Batches
# Documents of like length share a micro-batch, so that little is spent on padding.


# %%
def encode(docs: list[Document], ids: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids ``[batch, pos]`` with BOS and EOS, and the loss weight of each token as a target."""
    width = max(len(doc.words) for doc in docs) + 2
    tokens = torch.full((len(docs), width), ids[PAD])
    weights = torch.zeros(len(docs), width)
    for row, doc in enumerate(docs):
        n = len(doc.words)
        tokens[row, : n + 2] = torch.tensor([ids[BOS], *(ids[f" {word}"] for word in doc.words), ids[EOS]])
        weights[row, 1 : n + 2] = 1.0 if doc.task == "series" else FRAME_WEIGHT
        weights[row, [i + 1 for i in doc.answers]] = 1.0
    return tokens, weights


def batches(ids: dict[str, int], seed: int) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The micro-batches of each step: short documents in four groups by length, and number series of one length."""
    streams = {task: documents(task, "train", seed) for task in TASKS}
    while True:
        short = [doc for task, n in SHORT.items() for doc in islice(streams[task], n)]
        short.sort(key=lambda doc: len(doc.words))
        quarter = len(short) // 4
        groups = [short[i : i + quarter] for i in range(0, len(short), quarter)]
        first = next(streams["series"])
        same = (doc for doc in streams["series"] if len(doc.words) == len(first.words))
        groups.append([first, *islice(same, SERIES_TOKENS // len(first.words) - 1)])
        yield [encode(group, ids) for group in groups if group]


# %% [markdown]
# ## The model


# %%
def new_model(n_vocab: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=n_vocab, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False,
        bos_token_id=SPECIAL.index(BOS), eos_token_id=SPECIAL.index(EOS), pad_token_id=SPECIAL.index(PAD),
    )  # fmt: skip
    return LlamaForCausalLM(config)


def loss_of(model: LlamaForCausalLM, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    logits = model(tokens[:, :-1]).logits
    losses = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum()


def train(model: LlamaForCausalLM, ids: dict[str, int], steps: int, seed: int, peak_lr: float = 2e-3) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=steps, pct_start=0.05)
    progress = tqdm(islice(batches(ids, seed), steps), total=steps, desc="training", unit="step", mininterval=20)
    for micro_batches in progress:
        total = sum(float(weights[:, 1:].sum()) for _, weights in micro_batches)
        step_loss = 0.0
        for tokens, weights in micro_batches:
            loss = loss_of(model, tokens, weights) / total
            loss.backward()
            step_loss += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{step_loss:.3f}", refresh=False)


# %% [markdown]
# ## How well it does on documents that it never saw


# %%
@torch.no_grad()
def accuracy(model: LlamaForCausalLM, ids: dict[str, int], task: str, n: int, seed: int = 1) -> float:
    """Share of answers of held-out documents that the model ranks first."""
    hits, answers = 0, 0
    for doc in islice(documents(task, "held_out", seed), n):
        tokens, _ = encode([doc], ids)
        best = model(tokens).logits[0].argmax(-1)
        hits += sum(int(best[i]) == int(tokens[0, i + 1]) for i in doc.answers)
        answers += len(doc.answers)
    return hits / answers


@torch.no_grad()
def series_errors(model: LlamaForCausalLM, ids: dict[str, int], n: int, seed: int = 1) -> dict[str, dict[str, float]]:
    """Mean absolute error of the predicted number (arg-max) and of repeating the last one, per kind of series."""
    words = {i: word for word, i in ids.items()}
    errors: dict[str, list[tuple[float, float]]] = {}
    for doc in islice(documents("series", "held_out", seed), n):
        tokens, _ = encode([doc], ids)
        best = model(tokens).logits[0].argmax(-1).tolist()
        values = [int(word) for word in doc.words[::2]]
        for k in range(len(values) // 2, len(values)):
            word = words[best[2 * k]].strip()
            guess = int(word) if word.isdigit() else values[k - 1]
            errors.setdefault(str(doc.frame[0]), []).append((abs(guess - values[k]), abs(values[k - 1] - values[k])))
    means = {kind: [sum(column) / len(rows) for column in zip(*rows, strict=True)] for kind, rows in errors.items()}
    return {kind: {"model": m, "last_value": last} for kind, (m, last) in sorted(means.items())}


# %%
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("pocket-model"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-documents", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(), bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNK,
        model_max_length=512, clean_up_tokenization_spaces=False, add_bos_token=True,
    )  # fmt: skip
    ids = tokenizer.get_vocab()
    model = new_model(len(ids))
    start = time.time()
    train(model, ids, args.steps, args.seed)
    minutes = (time.time() - start) / 60
    model.eval()
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": args.steps,
        "seed": args.seed,
        "minutes": round(minutes, 1),
        "accuracy": {t: round(accuracy(model, ids, t, args.eval_documents), 4) for t in TASKS if t != "series"},
        "series_mean_absolute_error": series_errors(model, ids, args.eval_documents),
    }
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    settings = json.loads((args.out / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 5 writes a name that 4 does not know
    settings.pop("backend", None)
    (args.out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (args.out / "card.json").write_text(json.dumps(card, indent=1))
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
