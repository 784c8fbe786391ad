# %% [markdown]
# # Start here: why did the model say that?
#
# Five minutes with a real model, SmolLM2-135M. We ask which tokens a prediction depends on, which token caused it, and through which heads, and we test
# the answers. Install the package first (`pip install jscope-tl`); a CPU is enough.

# %%
import tempfile
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

import jscope_tl as js

torch.set_grad_enabled(False)  # scopes switch gradients on where they need them
model = TransformerBridge.boot_transformers("HuggingFaceTB/SmolLM2-135M-Instruct")
prompt = "When Mary and John went to the store, John gave a drink to"

# %% [markdown]
# ## Which tokens is the prediction sensitive to?
#
# The score of a token is `‖(w_Mary - w_John)ᵀ J_t‖`: how far the difference of the two logits moves, to first order, when the token's embedding moves by
# one unit in the direction with the largest effect. Darker is higher. BOS has a score, too, but is left out of the colour scale.

# %%
result = js.attribute(model, prompt, "contrastive", target=" Mary", baseline=" John")
result

# %% [markdown]
# Is this specific to *Mary* and *John*? The control is a random direction of the final hidden state. Its scores look similar: most of the sensitivity
# says which tokens the model reads at all.

# %%
js.attribute(model, prompt, "random_direction")

# %% [markdown]
# ## Which token caused it?
#
# `js.explain` combines gradients and attention patterns under modified backward rules (AttnLRP). On prompts whose cause was validated by swapping
# words, its highest score is on the cause in 200 of 200 prompts for this model; that of a random direction in 55 %.

# %%
js.explain(model, prompt, " Mary", " John")

# %% [markdown]
# ## Test it
#
# Remove each token (set its embedding to 0) and measure how the prediction changes. `kl` is the KL divergence from the original next-token distribution.

# %%
ablation = js.patching.ablate(model, prompt, "log_prob", target=" Mary", progress=False)
ablation.to_dataframe()[["str_token", "kl"]].round(2)

# %% [markdown]
# Without *Mary* the model predicts another name. Without the last *to* the KL divergence is also large, but because the sentence is broken: the model predicts another kind of word.
# A more precise question is: what if the prompt said *Anna* instead of *Mary*? Patching measures this at every layer and position.

# %%
other = prompt.replace("Mary", "Anna")
layers = [f"blocks.{layer}.hook_resid_pre" for layer in range(0, 30, 4)]
both = js.patching.compare(
    model, prompt, other, "contrastive", target=" Mary", baseline=" John", at=layers, progress=False
)
js.views.comparison(both)

# %% [markdown]
# Measured (top): the effect is at *Mary* in the early layers and at the last position in the late layers; heads carry it from one to the other. Predicted to first
# order (middle): correct in the late layers, with the wrong sign in the early layers. Another name is not a small change, so predictions need to be tested by measurements.

# %% [markdown]
# ## Through which heads?

# %%
heads = js.patching.components(model, prompt, "fisher", progress=False).measure(only_top=5, progress=False)
heads

# %% [markdown]
# ## A page to send
#
# `js.report` writes one HTML file that needs no network: results side by side with tokens to click, followed by tables. `jscope app --model HuggingFaceTB/SmolLM2-135M-Instruct` opens the
# same page with the model; in a notebook, `js.app(model)` does.

# %%
page = js.report(
    [result, js.attribute(model, prompt, "random_direction")], Path(tempfile.mkdtemp()) / "mary.html", title="Why Mary?"
)
page.name
