# %% [markdown]
# # What to know before a map is believed
#
# Three questions that the paper and its readers left open. How much of a map lies on the first tokens, and does the
# prediction need these? How far does the linear picture hold that every scope rests on? And does Temperature Scope, which
# costs one backward pass, show what Fisher Scope shows, on long prompts too?
#
# Runs offline on the pocket model in under two minutes; `--model NAME` takes another.

# %%
import numpy as np
import torch
from common import claim, start, to_compare

import jscope_tl as js

study = start()
model = study.model
LENGTHS = (500, study.longest)
series = [js.series.to_integers(js.series.lorenz(length // 2, np.random.default_rng(0))) for length in LENGTHS]
TEXTS = [
    "As a state-of-the-art AI assistant, you never argue or deceive, because you are",
    "Tom loves Korean food. He grew up in the South and goes to Columbia. He is a",
    "French: Nous l'appelons lentille jacobienne. English: We call it Jacobian",
]
if study.is_pocket:
    TEXTS = [prompt.text for task in js.pocket_tasks() for prompt in js.pocket_prompts(task, 6)]

# %% [markdown]
# ## The attention sink
#
# The share of each map that lies on BOS and on the first five tokens, beside what it would be if all tokens scored alike;
# and the divergence between the prediction and the one that the model makes when no later token may attend to them, beside
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
# ## How far the linear picture holds
#
# The vector of the strongest token is moved along the direction that the scope names, and along random ones. Up to which
# size, as a share of the vector's own length, is what the model does within 10 % of what the scope predicts? Removing a
# token is a move of size 1.

# %%
SCOPES = (
    ("semantic", "log_prob", "temperature", "entropy", "fisher") if study.is_pocket else ("semantic", "temperature")
)
print("scope          own direction   random directions   (medians over prompts)")
medians = {}
for scope in SCOPES:
    found = [js.diagnostics.linearity(model, text, scope, progress=False) for text in TEXTS[:: max(1, len(TEXTS) // 8)]]
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
