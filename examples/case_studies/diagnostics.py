# %% [markdown]
# # Checks before you trust the scores
#
# Three questions that the paper and its readers left open. What share of the scores is on the first tokens, and does the
# prediction need these tokens? How large may a change be for the linear approximation to hold? And does Temperature Scope, which
# takes one backward pass, agree with Fisher Scope, on long prompts, too?
#
# Runs offline on the pocket model in under two minutes; `--model NAME` takes another.

# %%
import numpy as np
import torch
from common import claim, start, to_compare

import jscope_tl as js

study = start()
model = study.model
LENGTHS = (study.longest // 4, study.longest)
series = [js.series.to_integers(js.series.lorenz(length // 2, np.random.default_rng(0))) for length in LENGTHS]
TEXTS = [
    "As a state-of-the-art AI assistant, you never argue or deceive, because you are",
    "Tom loves Korean food. He grew up in the South and goes to Columbia. He is a",
    "French: Nous l'appelons lentille jacobienne. English: We call it Jacobian",
]
if study.is_pocket:
    TEXTS = [prompt.text for task in js.pocket_tasks() for prompt in js.pocket_prompts(task, study.at_most(6))]

# %% [markdown]
# ## The attention sink
#
# The share of the scores on BOS and on the first five tokens, beside the share if all tokens scored alike;
# and the KL divergence between the prediction and the one without attention from later tokens to them, beside
# the same for five other tokens.

# %%
results = [
    result
    for scope in ("semantic", "temperature", "entropy")
    for result in js.attribute_batch(model, TEXTS, scope, progress=False)
]
sink = js.diagnostics.sink(results, model)
print(sink)
sink.summary()

# %%
row = sink.summary().loc["temperature"]
SENTENCE = "Temperature Scope puts elevated scores on the first tokens, as attention sinks do"
shares = f"{row.first_share:.0%} on the first five, {row.even_share:.0%} if all scored alike"
if study.is_pocket:
    claim(SENTENCE, row.first_share > row.even_share, shares)
    hidden = f"hiding them: {row.first_kl:.1f} nat, as many others: {row.first_control_kl:.1f} nat"
    claim(
        "The prediction needs the first five tokens more than five others", row.first_kl > row.first_control_kl, hidden
    )
else:
    to_compare(f"{SENTENCE} ({shares})")

# %% [markdown]
# ## How far the linear approximation holds
#
# The vector of the highest token is moved along the direction of the scope's gradient, and along random directions. Up to which
# step, relative to the norm of the vector, is the change of the model's output within 10 % of the scope's prediction? Removing a
# token is a step of size 1.

# %%
SCOPES = (
    ("semantic", "log_prob", "temperature", "entropy", "fisher") if study.is_pocket else ("semantic", "temperature")
)
step = max(1, len(TEXTS) // study.at_most(8))
print("scope          own direction   random directions   (medians over prompts)")
medians = {}
for scope in SCOPES:
    found = [js.diagnostics.linearity(model, text, scope, progress=False) for text in TEXTS[::step]]
    medians[scope] = [
        float(np.median([getattr(f, radius) for f in found])) for radius in ("own_radius", "random_radius")
    ]
    print(f"{scope:<14} {medians[scope][0]:10.3f} {medians[scope][1]:18.3f}")

# %%
one = js.diagnostics.linearity(model, TEXTS[0], "log_prob")
study.keep(js.views.linearity(one), "linearity")

# %%
SENTENCE = "A scope's first-order picture reaches as far as the removal of a token"
widest = max(own for own, _ in medians.values())
if study.is_pocket:
    claim(SENTENCE, widest >= 1, f"at most {widest:.1%} of the vector's length along a scope's own direction")

# %% [markdown]
# ## Temperature against Fisher on long prompts
#
# A number series of 500 and of 2,000 tokens (`--longest`). The pocket model was trained on 512; at 2,000 only costs and the
# agreement of the two maps mean something, not the prediction.

# %%
longer = js.load_pocket_model(n_ctx=2048) if study.is_pocket else model
prompts = [js.series.prompt(longer, integers).tokens for integers in series]
with torch.no_grad():
    side_by_side = js.diagnostics.compare_scopes(longer, prompts, progress=False)
print(side_by_side)
side_by_side.to_dataframe()

# %%
SENTENCE = "Temperature Scope, at a fraction of the cost, shows what Fisher Scope shows"
detail = "; ".join(
    f"{r['n_tokens']} tokens: rank correlation {r['spearman']:.2f}, {r['time_ratio']:.0f} times the time"
    for r in side_by_side.rows
)
if study.is_pocket:
    claim(SENTENCE, all(r["spearman"] > 0.9 and r["time_ratio"] > 5 for r in side_by_side.rows), detail)
else:
    to_compare(f"{SENTENCE} ({detail})")
