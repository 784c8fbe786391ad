# %% [markdown]
# # Start here: why did the model say that?
#
# Five minutes with a real model, SmolLM2-135M. We ask which tokens of a prompt drove a prediction, against what, through which heads, and test
# the answers. `pip install jscope-tl` comes first; a CPU is enough.

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
# one unit in the direction that matters most. Darker is higher. BOS is scored, and left out of the colours.

# %%
result = js.attribute(model, prompt, "contrastive", target=" Mary", baseline=" John")
result

# %% [markdown]
# Is that about *Mary*, or would any question look like this? A random direction of the final hidden state is the control. It looks alike: sensitivity
# says which tokens the model reads at all.

# %%
js.attribute(model, prompt, "random_direction")

# %% [markdown]
# ## Which token caused it?
#
# `js.explain` combines gradient and attention under backward rules that see through saturated layers. On prompts whose cause was validated by swapping
# words it is on the cause in 200 of 200 for this model; a random direction in 55 %.

# %%
js.explain(model, prompt, " Mary", " John")

# %% [markdown]
# ## Test it
#
# Take each token away (its embedding set to 0) and measure what happens to the prediction. `kl` is the KL divergence from the whole prediction.

# %%
ablation = js.patching.ablate(model, prompt, "log_prob", target=" Mary", progress=False)
{text: round(float(kl), 2) for text, kl in zip(ablation.scope.str_tokens, ablation.kl, strict=True)}

# %% [markdown]
# Without *Mary* the prediction is another one; without the last *to* the sentence is. Leave-one-out measures both. Patching asks more precisely: what if the
# prompt had said *Anna*?

# %%
other = prompt.replace("Mary", "Anna")
layers = [f"blocks.{layer}.hook_resid_pre" for layer in range(0, 30, 4)]
both = js.patching.compare(
    model, prompt, other, "contrastive", target=" Mary", baseline=" John", at=layers, progress=False
)
js.views.comparison(both)

# %% [markdown]
# Measured (top): the effect is at *Mary* in the early layers and at the last position in the late ones; on the way it was carried by heads. Predicted to first
# order (middle): right in the late layers, of the wrong sign in the early ones. To put another name in is no small change; that is why things are measured.

# %% [markdown]
# ## Through which heads?

# %%
heads = js.patching.components(model, prompt, "fisher", progress=False).measure(only_top=5, progress=False)
heads

# %% [markdown]
# ## A page to send
#
# One file, which needs no network: columns side by side, tokens to click, everything as tables below. `jscope app --model HuggingFaceTB/SmolLM2-135M-Instruct` opens the
# same page with the model behind it; `js.app(model)` does so in a notebook.

# %%
page = js.report(
    [result, js.attribute(model, prompt, "random_direction")], Path(tempfile.mkdtemp()) / "mary.html", title="Why Mary?"
)
page.name
