# %% [markdown]
# # Scopes and activation patching
#
# Activation patching measures causal effects and takes one run for every (layer, position) cell where two runs differ. A scope predicts them to first
# order, with one forward and a few backward passes for all cells. This notebook compares the two on prompts
# whose cause is known.
#
# Runs offline on the pocket model in under a minute.

# %%
import argparse
import tempfile
from pathlib import Path

import jscope_tl as js
from jscope_tl.pocket.words import SINGULAR_TO_PLURAL

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=None, help="folder for the pictures (default: a temporary one)")
out = parser.parse_known_args()[0].out or Path(tempfile.mkdtemp())
out.mkdir(parents=True, exist_ok=True)
model = js.load_pocket_model()
other_number = SINGULAR_TO_PLURAL | {plural: singular for singular, plural in SINGULAR_TO_PLURAL.items()}


def corrupted(prompt: js.PocketPrompt) -> str:
    """The prompt with the word that decides it exchanged (positions count a BOS, words do not)."""
    words = prompt.text.split()
    cause = prompt.causes[-1] - 1
    if prompt.task == "agreement":
        words[cause] = other_number[words[cause]]
    else:
        words[cause] = next(noun for noun in SINGULAR_TO_PLURAL if noun not in words)
    return " ".join(words)


# %% [markdown]
# ## One prompt: the number of a noun
#
# The clean prompt is completed with `is`, the corrupted prompt with `are`. Corrupted activations are patched into the clean run, cell
# by cell; the effect is the change of the difference of the two logits.

# %%
prompt = js.pocket_prompts("agreement", 6)[5]
verbs = {"target": " is", "baseline": " are"}
print(prompt.text, "->", prompt.target, "| corrupted:", corrupted(prompt))
result = js.patching.compare(model, prompt.text, corrupted(prompt), "contrastive", **verbs)
print(result)

# %% [markdown]
# The picture has the measured effect, the effect that the scope predicts, and the scores. The scores don't depend on
# the corrupted prompt: they are high wherever some change would move the prediction. The predicted effect, the same row of the Jacobian
# times the difference of the two runs, says where this corruption moves it.

# %%
figure = js.views.comparison(result)
figure.savefig(out / "agreement.png", dpi=120)
figure

# %% [markdown]
# How much of the effect do we find if we patch only the two cells of each layer with the largest predicted effect?

# %%
few = js.patching.compare(
    model, prompt.text, corrupted(prompt), "contrastive", only_top=2, rank_by="predicted", **verbs
)
for hook_point, held in zip(few.scope.hook_points, few.held, strict=True):
    print(f"{hook_point}: two cells hold {float(held):.0%} of the total effect")
saved = result.costs["patching"].forward_equivalents / few.costs["patching"].forward_equivalents
print(f"{saved:.1f} times fewer patched runs")

# %% [markdown]
# ## A repeated sequence, the whole distribution
#
# Fisher Scope predicts the KL divergence between the clean and the patched distribution, to second order. A patch that replaces
# one confident prediction by another is not a small change: the predicted size is far too small, but the ranking is right.

# %%
prompt = js.pocket_prompts("repetition", 3)[0]
print(prompt.text, "->", prompt.target, "| corrupted:", corrupted(prompt))
result = js.patching.compare(model, prompt.text, corrupted(prompt), "fisher", method="exact")
print(result)
figure = js.views.comparison(result)
figure.savefig(out / "repetition.png", dpi=120)
figure

# %% [markdown]
# ## A scope under intervention
#
# We patch the clean activation at the last position and a middle layer into the corrupted run. Which tokens does the patched run
# depend on?

# %%
runs = js.patching.side_by_side(
    model, prompt.text, corrupted(prompt), "blocks.2.hook_resid_pre", [-1], "semantic", target=prompt.target
)
for name in ("clean", "corrupted", "patched"):
    run = getattr(runs, name)
    strongest = ", ".join(f"{token.str_token} ({token.score:.0f})" for token in run.top(3))
    print(f"{name}: p({prompt.target}) = {run.prediction.target.probability:.2f}; strongest: {strongest}")

# %% [markdown]
# ## Leaving out one token
#
# The same comparison for whole tokens: replace the embedding of each token in turn, and compare the effect on the distribution
# with the scores.

# %%
for replacement in ("zero", "mean"):
    print(js.patching.ablate(model, prompt.text, "fisher", replacement=replacement, method="exact"))

# %% [markdown]
# ## Agreement and cost
#
# Means over five prompts of each task: rank correlation with the absolute effect of patching, overlap of the five highest
# cells, and cost in forward passes (a backward row counts as one).

# %%
SCOPES = {"semantic": {}, "log_prob": {}, "temperature": None, "fisher": None}
print("task        scope        corr(score) corr(predicted) top5(score) top5(predicted)  cost: scope patching")
for task in ("agreement", "repetition"):
    prompts = js.pocket_prompts(task, 5)
    for scope, options in SCOPES.items():
        found = []
        for prompt in prompts:
            target = {} if options is None else {"target": prompt.target}
            found.append(js.patching.compare(model, prompt.text, corrupted(prompt), scope, progress=False, **target))
        rows = [comparison.agreement()[-1] for comparison in found]
        means = [
            sum(getattr(row, name) for row in rows) / len(rows)
            for name in ("score", "predicted", "top_score", "top_predicted")
        ]
        costs = [sum(c.costs[name].forward_equivalents for c in found) / len(found) for name in ("scope", "patching")]
        numbers = f"{means[0]:+.2f}       {means[1]:+.2f}           {means[2]:4.0%}        {means[3]:4.0%}"
        print(f"{task:<11} {scope:<12} {numbers}             {costs[0]:5.0f} {costs[1]:8.0f}")
