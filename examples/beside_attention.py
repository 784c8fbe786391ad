# %% [markdown]
# # Scopes beside attention patterns
#
# An attention pattern shows where a head looks; a scope shows which tokens the prediction depends on, through all heads
# and MLPs together. `js.influence_pattern` lays a scope out as a pattern is, `[dest, src]`, so that both can be looked at
# side by side, and `js.head_agreement` says which heads to look at.
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
# ## Induction: a random sequence, said twice
#
# In its second half every word is decided by the same word in the first half. A head that copies looks one place behind
# the earlier occurrence of the present word.

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
# How often is the word to be copied, which stands at `dest - period + 1`, the strongest source of the prediction?

# %%
scores = pattern.scores.clone()
scores[:, list(pattern.bos_positions)] = 0
hits = [int(row.argmax()) == dest - period + 1 for row, dest in zip(scores, pattern.positions, strict=True)]
print(f"the word to be copied is the strongest source of {sum(hits)} of {len(hits)} predictions")

# %% [markdown]
# Which heads attend most to the scope's strongest source, and how much attention do they give to the word to be copied?

# %%
dest = torch.tensor(repeated)
by_top = sorted(js.head_agreement(pattern, cache), key=lambda found: -found.same_top)
for found in by_top[:4]:
    attention = cache[f"blocks.{found.layer}.attn.hook_pattern"][0, found.head]
    copied = attention[dest, dest - period + 1].mean()
    print(f"{found.name}: same top {found.same_top:.0%}, attention to the word to be copied {copied:.2f}")

# %% [markdown]
# These are the induction heads. In the selector they lie beside the scope:

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
# One prediction by itself: the last word of the prompt, the scope in coloured tokens, and the same with a logarithmic scale.

# %%
result = js.attribute(model, prompt.text, "fisher")
causes = [result.str_tokens[i] for i in prompt.causes]
rank = [token.position for token in result.top(len(result.tokens))].index(prompt.causes[0]) + 1
print(f"the cause of {prompt.target!r} is {causes}, rank {rank} of {len(result.tokens) - 1} among the sources")
js.views.tokens(result, log=True)

# %%
js.views.prediction(result, k=5)

# %% [markdown]
# Everything on one page to keep or to send:

# %%
page = js.report([result, *patterns], out / "report.html", cache, title="Translation")
print(f"{page.name}: {page.stat().st_size / 1e6:.1f} MB")
