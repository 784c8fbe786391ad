# %% [markdown]
# # What the spectrum adds to the trace
#
# Fisher Scope adds up, over all directions in which a token's vector could move, how far each moves the next-token
# distribution: the trace of the pulled-back Fisher matrix `J_t^T F_u J_t`. One number for each token. Its spectrum says in
# how many ways the token moves the distribution, how far each way goes, and which words it trades for which.
#
# Runs offline on the pocket model in under a minute; `--model NAME` takes another.

# %%
from typing import NamedTuple

import torch
from common import claim, start

import jscope_tl as js

study = start()
model = study.model

# %% [markdown]
# ## One prompt
#
# *columbia* has almost all of its trace in one direction, which trades *conservative* for *liberal*. The final hidden state
# itself is moved in more ways (the Jacobian's effective rank is higher); most are of no consequence for the next word.

# %%
prompt = "tom loves korean food . he grew up in the south and goes to columbia . at school he is a"
fisher = js.spectrum(model, prompt, of="fisher", progress=False)
jacobian = js.spectrum(model, prompt, of="jacobian", progress=False)
print(fisher)
print(jacobian)
figure = js.views.spectrum(fisher)
study.keep(figure, "spectrum")

# %% [markdown]
# In a number series the first direction of the last number moves the next one up or down. In a curve whose rule is certain
# there is nothing else; in a random walk a second direction makes the prediction narrower or wider.

# %%
if study.is_pocket:
    for name, series in (
        ("logistic", js.pocket_prompts("series", 6)[5]),
        ("brownian", js.pocket_prompts("series", 6)[1]),
    ):
        print(f"{name}: ... {series.text[-40:]}")
        found = js.spectrum(model, series.text, of="fisher", k=2, progress=False)
        last = len(found.str_tokens) - 2  # the last number; after it a comma
        print(f"  effective rank of {found.str_tokens[last]!r}: {float(found.effective_rank[last]):.2f}")
        for i in range(2):
            ends = found.decode(last, i, k=4)
            rises, falls = (", ".join(token.strip() for token, _ in end) for end in (ends.rises, ends.falls))
            print(f"  direction {i} ({float(found.shares[last, i]):.0%} of the trace): {rises} against {falls}")

# %% [markdown]
# ## Testing the directions
#
# Every direction makes two predictions that plain forward passes can check. A small step of size `ε` along the input
# direction `v_i` moves the distribution by a KL divergence of `½ ε² σ_i²`; the trace knows the mean over random directions
# only, `½ ε² trace / d`. And the words whose probabilities rise and fall most are those of the decoding. A guess for
# comparison: the two most probable words, in either order. Steps are taken at the token with the largest trace, forwards and backwards, along three
# directions.

# %%
STEP = 2e-3
TASKS = ("agreement", "assistant", "politics", "detective", "translation", "repetition")


class Checked(NamedTuple):
    """One direction: measured over predicted KL, over what the trace expects of a random step, and which words moved."""

    task: str
    i: int
    measured: float
    random: float
    over_trace: float
    named: bool
    guessed: bool


def log_probs(tokens: torch.Tensor, position: int, step: torch.Tensor) -> torch.Tensor:
    """The next-token distribution with the token's vector moved."""

    def move(activation: torch.Tensor, hook: object) -> torch.Tensor:
        activation = activation.clone()
        activation[0, position] += step.to(activation)
        return activation

    with torch.no_grad():
        logits = model.run_with_hooks(tokens[None], fwd_hooks=[("hook_embed", move)], return_type="logits")
    return logits[0, -1].double().log_softmax(-1)


def divergence(tokens: torch.Tensor, position: int, step: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Mean KL of a step forwards and backwards, and half the difference of the two distributions."""
    before, there, back = (log_probs(tokens, position, sign * step) for sign in (0, 1, -1))
    kl = sum(float((before.exp() * (before - after)).sum()) for after in (there, back)) / 2
    return kl, (there.exp() - back.exp()) / 2


def checks(task: str, text: str) -> list[Checked]:
    found = js.spectrum(model, text, of="fisher", k=3, progress=False)
    trace = found.energy.clone()
    trace[list(found.bos_positions)] = 0
    t, d = int(trace.argmax()), found.input_directions.shape[-1]
    tokens = found.tokens.to(next(model.parameters()).device)
    draws = torch.randn(16, d, generator=torch.Generator().manual_seed(0))
    steps = STEP * draws / draws.norm(dim=1, keepdim=True)
    expected = 0.5 * STEP**2 * float(trace[t]) / d
    random = sum(divergence(tokens, t, step)[0] for step in steps) / len(steps) / expected
    likely = set(log_probs(tokens, t, torch.zeros(d)).topk(2).indices.tolist())
    rows = []
    for i in range(3):
        kl, change = divergence(tokens, t, STEP * found.input_directions[t, i])
        predicted = 0.5 * STEP**2 * float(found.singular_values[t, i]) ** 2
        ends = found.decode(t, i, k=1)
        moved = [int(change.argmax()), int(change.argmin())]
        words = [model.tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in moved]
        named = words == [ends.rises[0][0], ends.falls[0][0]]
        rows.append(Checked(task, i, kl / predicted, random, kl / expected, named, set(moved) == likely))
    return rows


n_prompts = study.at_most(8) if study.is_pocket else 1
rows = [row for task in TASKS for prompt in js.pocket_prompts(task, n_prompts) for row in checks(task, prompt.text)]

print("task         direction  measured/predicted KL  KL over the trace's mean  words named  two most probable  n")
for task in TASKS:
    for i in range(3):
        of = [row for row in rows if row.task == task and row.i == i]
        ratio, over = (sorted(getattr(row, name) for row in of)[len(of) // 2] for name in ("measured", "over_trace"))
        named, guessed = sum(row.named for row in of), sum(row.guessed for row in of)
        print(f"{task:<12} {i:>9}  {ratio:>21.2f}  {over:>24.1f}  {named:>11}  {guessed:>17}  {len(of)}")

# %% [markdown]
# ## Copying: which word, and whether at all
#
# In a sequence that is repeated once, the model finds the last word's first occurrence and copies what came after it. Both words have a
# high trace. The word that is matched can mainly make the copy more or less sure; the word that is copied decides what is
# copied, and there are many words: its effective rank is higher.

# %%
if study.is_pocket:
    higher, ranks = 0, []
    for prompt in js.pocket_prompts("repetition", study.at_most(24)):
        found = js.spectrum(model, prompt.text, of="fisher", k=1, progress=False)
        copied = prompt.causes[0]
        ranks.append((float(found.effective_rank[copied - 1]), float(found.effective_rank[copied])))
        higher += ranks[-1][1] > ranks[-1][0]
    matched, copied = (sum(pair[i] for pair in ranks) / len(ranks) for i in range(2))
    print(
        f"effective rank: the matched word {matched:.2f}, the copied word {copied:.2f}; higher in {higher} of {len(ranks)}"
    )

# %% [markdown]
# ## What it adds

# %%
right_size = [abs(row.measured - 1) < 0.1 for row in rows]
random_size = [abs(row.random - 1) < 0.5 for row in rows if row.i == 0]
over = sorted(row.over_trace for row in rows if row.i == 0)
named, guessed = sum(row.named for row in rows), sum(row.guessed for row in rows)
holds = sum(right_size) > 0.9 * len(rows) and named > 0.9 * len(rows) and named > guessed and over[len(over) // 2] > 10
print(f"random steps within 50% of what the trace expects: {sum(random_size)} of {len(random_size)}")
claim(
    "The spectrum tells how far a step along each of its leading directions goes and which two words change most; the trace "
    "does not",
    holds,
    f"within 10% in {sum(right_size)} of {len(rows)}; {over[0]:.0f} to {over[-1]:.0f} times the trace's mean along the first; "
    f"words right in {named} of {len(rows)}, the two most probable ones: {guessed}",
)
