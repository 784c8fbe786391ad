# %% [markdown]
# # Through which heads
#
# A scope says which tokens a prediction depends on. `js.patching.components` uses the same backward rows to predict the effect of
# changing each head. `js.patching.agreement` compares these predictions with measured ablations and patches, and
# `js.patching.flow` follows one token from head to head.
#
# Runs offline on the pocket model in a few seconds (does a verb agree with its subject?). With `--model` it takes a language model and an
# indirect-object prompt, the one that Wang et al. (2022) found name movers with: `python examples/components.py --model FOLDER`.

# %%
import argparse
import tempfile
from pathlib import Path

import torch
from matplotlib import pyplot as plt

import jscope_tl as js
from jscope_tl.model.loading import load_model

parser = argparse.ArgumentParser()
parser.add_argument("--model", default=None, help="a HuggingFace name or folder (default: the pocket model)")
parser.add_argument("--out", type=Path, default=None, help="folder for the pictures (default: a temporary one)")
given = parser.parse_known_args()[0]
out = given.out or Path(tempfile.mkdtemp())
out.mkdir(parents=True, exist_ok=True)
if given.model is None:
    model = js.load_pocket_model()
    prompt, corrupted = "the keys to the cabinet near the doors", "the key to the cabinet near the doors"
    followed, answer = [" keys", " doors"], {"target": " are", "baseline": " is"}
else:
    model = load_model(given.model)
    prompt = "When Edward and Ruth went to the bank to buy a phone, Ruth gave the lamp to"
    corrupted = prompt.replace(", Ruth", ", Edward")
    followed, answer = [" Edward", " Ruth"], {"target": " Edward", "baseline": " Ruth"}
print(prompt, "->", answer["target"])

# %% [markdown]
# ## Heads that carry the prediction
#
# Fisher Scope predicts for every head the KL divergence between the model's prediction and that of the model without the head. The
# strongest effects are then measured.

# %%
effects = js.patching.components(model, prompt, "fisher", progress=False).measure(20, progress=False)
effects

# %% [markdown]
# ## What the logit difference misses
#
# Name movers were found by the difference of two logits. A head that raises both names against all other words has a large effect on the prediction
# and a small one on the difference. All heads, measured both ways:

# %%
n_heads = effects.predicted.numel()
whole = effects.measure(n_heads, progress=False).measured
difference = (
    js.patching.components(model, prompt, "contrastive", progress=False, **answer)
    .measure(n_heads, progress=False)
    .measured
)


def places(values: torch.Tensor) -> torch.Tensor:
    """1 for the strongest, 2 for the next, ..."""
    return values.abs().flatten().argsort(descending=True).argsort().view_as(values) + 1


by_kl, by_difference = places(whole), places(difference)
strongest = [divmod(i, whole.shape[1]) for i in whole.flatten().argsort(descending=True).tolist()[:12]]
print("head     KL (nat)  place   logit difference  place")
for layer, head in strongest:
    row = f"{float(whole[layer, head]):9.3f} {int(by_kl[layer, head]):6}   {float(difference[layer, head]):+16.3f} {int(by_difference[layer, head]):6}"
    print(f"L{layer}H{head:<4} {row}")
unseen = max(strongest, key=lambda at: int(by_difference[at]))
print(f"the difference of the logits sees L{unseen[0]}H{unseen[1]} as number {int(by_difference[unseen])} of {n_heads}")

# %% [markdown]
# What does this head do? The prediction with the head and without it:

# %%


def without(z: torch.Tensor, hook: object) -> torch.Tensor:
    """The head's output at zero."""
    z = z.clone()
    z.view(*z.shape[:2], whole.shape[1], -1)[:, :, unseen[1]] = 0
    return z


with torch.no_grad():
    before = model(prompt, return_type="logits")[0, -1].softmax(-1)
    hooks = [(f"blocks.{unseen[0]}.attn.hook_z", without)]
    after = model.run_with_hooks(prompt, fwd_hooks=hooks, return_type="logits")[0, -1].softmax(-1)
moved = (after - before).abs().argsort(descending=True)[:6].tolist()
for token in moved:
    text = model.tokenizer.decode([token])
    print(f"{text!r:>12}: p = {float(before[token]):.3f} with it, {float(after[token]):.3f} without it")

# %%
figure = plt.figure(figsize=(10, 2 + 0.2 * len(whole)), layout="constrained")
titles = {"root of the KL divergence": whole.sqrt(), "|change of the logit difference|": difference.abs()}
for axis, (title, values) in zip(figure.subplots(1, 2), titles.items(), strict=True):
    image = axis.imshow(values.numpy(), cmap="Oranges", aspect="auto", origin="lower")
    axis.set(title=f"{title},\nwithout each head", xlabel="head", ylabel="layer", xticks=range(whole.shape[1]))
    figure.colorbar(image, ax=axis)
figure.savefig(out / "components.png", dpi=120)
plt.close(figure)
figure

# %% [markdown]
# ## The path of a token through the heads
#
# We follow both nouns (names) through the layers, with attention patterns and norms held constant: which heads carry
# them to the last position, and does this raise or lower the answer against the alternative?

# %%
tokens = model.to_str_tokens(prompt)
flows = []
for token in followed:
    for source in [t for t, text in enumerate(tokens) if text == token]:
        flow = js.patching.flow(model, prompt, source, "contrastive", progress=False, **answer)
        flows.append(flow)
        print(flow, end="\n\n")
js.report(flows, out / "flow.html", title="Flow of single tokens")
js.views.flow(flows[0])

# %% [markdown]
# Heads that read the answer and bring it to the last position, raising it, are name movers; they attend to it:

# %%
_, cache = model.run_with_cache(prompt)
last = len(tokens) - 1
movers = [
    edge for edge in flows[0].edges if edge.dest == last and edge.src == flows[0].source_position and edge.influence > 0
][:5]
for edge in movers:
    pattern = cache[f"blocks.{edge.layer}.attn.hook_pattern"][0, edge.head]
    said = f"attention to it {float(pattern[last, edge.src]):.2f}"
    print(
        f"{edge.name}: carries {edge.influence:+.2f} of {flows[0].total:+.2f} {flows[0].unit} to the last position, {said}"
    )

# %% [markdown]
# ## Agreement and cost
#
# Measured ablations of all heads, beside the predictions: Fisher's with and without refining the strongest heads, and attribution patching of the
# log-probability. A backward row counts as a forward pass: with 16 heads it is cheaper to measure all of them, with 270 heads this costs
# four to seven times as much as the prediction.

# %%
found = js.patching.agreement(model, prompt, "fisher", progress=False)
found

# %% [markdown]
# The same comparison for patching clean activations into the corrupted run, for which TransformerLens has its own attribution patching.

# %%
patched = js.patching.agreement(model, prompt, "fisher", source=corrupted, direction="denoising", progress=False)
patched

# %%
for name, result in (("ablated", found), ("patched", patched)):
    for row in result.rows():
        print(
            f"{name}, {row.method}: rank correlation {row.spearman:.3f}, ten strongest among twenty {row.top10_in_20:.0%}, "
            f"{row.cost.forward_equivalents:.0f} passes of {result.costs['measuring'].forward_equivalents:.0f}"
        )
