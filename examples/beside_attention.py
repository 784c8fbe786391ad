# %% [markdown]
# # Scopes beside attention patterns
#
# An attention pattern shows where a head attends; a scope shows which tokens the prediction depends on, through all heads
# and MLPs together. `js.influence_pattern` returns a scope in the shape of a pattern, `[dest, src]`, so that you can view both
# side by side, and `js.head_agreement` ranks the heads by their agreement with it.
#
# Runs offline on the pocket model in a few seconds. Open it as a notebook (VS Code, or Jupyter with jupytext), or run it:
# `python examples/beside_attention.py --out FOLDER` writes the pages into a folder.

# %%
import argparse
import tempfile
from pathlib import Path

import torch

import jscope_tl as js

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=None, help="folder for the pages (default: a temporary one)")
out = parser.parse_known_args()[0].out or Path(tempfile.mkdtemp())
out.mkdir(parents=True, exist_ok=True)
model = js.load_pocket_model()

# %% [markdown]
# ## Induction: a random sequence, repeated once
#
# In the second half, every word is determined by the same word in the first half. A head that copies attends to the token after
# the earlier occurrence of the current word.

# %%
prompt = js.pocket_prompts("repetition", 3)[2]
words = prompt.text.split()
period = words.index(words[0], 1)
repeated = list(range(period + 1, len(words) + 1))  # positions of the second half; BOS is position 0
print(prompt.text, "->", prompt.target)

_, cache = model.run_with_cache(prompt.text)
pattern = js.influence_pattern(model, prompt.text, "fisher", repeated)
pattern

# %% [markdown]
# How often does the word to be copied, at position `dest - period + 1`, have the highest score?

# %%
scores = pattern.scores.clone()
scores[:, list(pattern.bos_positions)] = 0
hits = [int(row.argmax()) == dest - period + 1 for row, dest in zip(scores, pattern.positions, strict=True)]
print(f"the word to be copied is the strongest source of {sum(hits)} of {len(hits)} predictions")

# %% [markdown]
# Which heads attend most to the token with the highest score, and how much attention do they pay to the word to be copied?

# %%
dest = torch.tensor(repeated)
by_top = sorted(js.head_agreement(pattern, cache), key=lambda found: -found.same_top)
for found in by_top[:4]:
    attention = cache[f"blocks.{found.layer}.attn.hook_pattern"][0, found.head]
    copied = attention[dest, dest - period + 1].mean()
    print(f"{found.name}: same top {found.same_top:.0%}, attention to the word to be copied {copied:.2f}")

# %% [markdown]
# These are the induction heads. The selector shows them beside the scope:

# %%
induction = js.views.attention(pattern, cache)
induction.save(out / "induction.html")
induction

# %% [markdown]
# ## Translation: word for word, with reordering

# %%
prompt = js.pocket_prompts("translation", 1)[0]
print(prompt.text, "->", prompt.target)

_, cache = model.run_with_cache(prompt.text)
patterns = [js.influence_pattern(model, prompt.text, scope) for scope in ("fisher", "temperature")]
for found in js.head_agreement(patterns[0], cache)[:5]:
    print(f"{found.name}: rank correlation {found.correlation:+.2f}, same top {found.same_top:.0%}")

# %% [markdown]
# The model's own patterns, Fisher and Temperature Scope in one selector. Hover over a cell to see its score.

# %%
translation = js.views.attention(patterns, cache)
translation.save(out / "translation.html")
translation

# %% [markdown]
# One prediction: the scores for the word after the prompt as coloured tokens, with a linear and a logarithmic scale.

# %%
result = js.attribute(model, prompt.text, "fisher")
causes = [result.str_tokens[i] for i in prompt.causes]
rank = [token.position for token in result.top(len(result.tokens))].index(prompt.causes[0]) + 1
print(f"the cause of {prompt.target!r} is {causes}, rank {rank} of {len(result.tokens) - 1} among the sources")
js.views.tokens(result, log=True)

# %%
js.views.prediction(result, k=5)

# %% [markdown]
# All of this on one page:

# %%
page = js.report([result, *patterns], out / "report.html", cache, title="Translation")
print(f"{page.name}: {page.stat().st_size / 1e6:.1f} MB")
