# %% [markdown]
# # Jacobian Scopes Demo
#
# [Jacobian Scopes](https://arxiv.org/abs/2601.16407) (Liu et al., 2026) attribute a next-token prediction to the tokens of the prompt: the score of a token is the
# norm of the gradient of a scalar function of the prediction (a logit, a difference of logits, the confidence `‖y‖`) with respect to the token's vector, or, for
# *Fisher Scope*, `tr(J_tᵀ F J_t)`, which measures how far the whole next-token distribution moves. The package `jscope_tl` computes them on any TransformerLens model.
#
# This is not the Jacobian lens of `transformer_lens.tools.analysis`: a lens is one matrix per layer, averaged over a corpus, that reads activations; a scope
# is about this prompt and this prediction, per token.

# %% [markdown]
# ## Setup

# %%
# NBVAL_IGNORE_OUTPUT
import torch
from transformer_lens.model_bridge import TransformerBridge

import jscope_tl as js

torch.set_grad_enabled(False)
model = TransformerBridge.boot_transformers("HuggingFaceTB/SmolLM2-135M-Instruct")
prompt = "When Mary and John went to the store, John gave a drink to"

# %% [markdown]
# ## One logit, the difference of two, the whole distribution
#
# A result has a score for each token, the unit of the scores, and warnings. `result.top()` leaves BOS out.

# %%
semantic = js.attribute(model, prompt, "semantic", target=" Mary")
[(token.position, token.str_token) for token in semantic.top(1)], semantic.unit

# %%
contrastive = js.attribute(model, prompt, "contrastive", target=" Mary", baseline=" John")
[(token.position, token.str_token) for token in contrastive.top(1)]

# %%
fisher = js.attribute(model, prompt, "fisher", progress=False)
[(token.position, token.str_token) for token in fisher.top(1)], fisher.unit

# %% [markdown]
# Fisher Scope is estimated: every score has a standard error, by default at most 5 % of the score or 1 % of the largest score.

# %%
bool((fisher.stderr <= torch.maximum(0.05 * fisher.scores, 0.01 * fisher.scores.max())).all())

# %%
# NBVAL_IGNORE_OUTPUT
fisher

# %% [markdown]
# ## Beside attention
#
# The scores for the predictions at all positions form a matrix `[dest, src]`, like an attention pattern. Which heads attend to the tokens with the highest scores?

# %%
_, cache = model.run_with_cache(prompt)
pattern = js.influence_pattern(model, prompt, "log_prob", progress=False)
best = js.head_agreement(pattern, cache)[0]
pattern.scores.shape, best.correlation > 0.5

# %%
# NBVAL_IGNORE_OUTPUT
js.views.attention(pattern, cache, layers=[best.layer])

# %% [markdown]
# ## Beside activation patching
#
# Patch the residual stream of a prompt about *Anna* into the run about *Mary*, and compare the measured effect with the first-order prediction of the scope.

# %%
# NBVAL_IGNORE_OUTPUT
layers = [f"blocks.{layer}.hook_resid_pre" for layer in range(0, 30, 6)]
both = js.patching.compare(
    model,
    prompt,
    prompt.replace("Mary", "Anna"),
    "contrastive",
    target=" Mary",
    baseline=" John",
    at=layers,
    progress=False,
)
both
