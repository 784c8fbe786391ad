# %% [markdown]
# # Which part of the prompt made the model say this
#
# A scope explains one next token. `js.attribute_text` explains an answer (each of its tokens, spans of tokens, or the whole answer) by the words,
# sentences or messages of the prompt. `js.patching.context` measures which words of the answer depend on which part of the prompt.
#
# Runs offline on the pocket model in a few seconds. With `--model` it takes a chat model and its own template:
# `python examples/continuation.py --model HuggingFaceTB/SmolLM2-135M-Instruct`.

# %%
import argparse
import tempfile
from pathlib import Path

import jscope_tl as js
from jscope_tl.model.loading import load_model

parser = argparse.ArgumentParser()
parser.add_argument(
    "--model", default=None, help="a HuggingFace name or folder of a chat model (default: the pocket model)"
)
parser.add_argument("--out", type=Path, default=None, help="folder for the pages (default: a temporary one)")
given = parser.parse_known_args()[0]
out = given.out or Path(tempfile.mkdtemp())
out.mkdir(parents=True, exist_ok=True)
how = {"at": "pattern", "gradient": "attnlrp", "progress": False}  # finds causes; see examples/guide/causes.md
if given.model is None:
    model = js.load_pocket_model()
    prompt = "tom grew up in the south and goes to columbia . at school he is a"
    answer, word, instead = " liberal .", " liberal", " conservative"
    parts = {"where he grew up": "grew up in the south", "where he studies": "goes to columbia"}
else:
    model = load_model(given.model)
    asked = "My sister Anna is a nurse in Rome. My brother Paul is a baker in Oslo. Where does Paul work?"
    prompt = [{"role": "user", "content": asked}, {"role": "assistant", "content": "Paul works as a baker in Oslo."}]
    answer, word, instead = None, " baker in Oslo", " nurse in Rome"
    parts = {
        "sister": "My sister Anna is a nurse in Rome.",
        "brother": "My brother Paul is a baker in Oslo.",
        "question": "Where does Paul work?",
    }

# %% [markdown]
# ## Every word of the answer
#
# One forward pass, and one backward row for each token of the answer. The tokens of a chat template have scores, too; the list leaves them out.

# %%
result = js.attribute_text(model, prompt, answer, by="word", **how)
print(result)
js.report(result, out / "answer.html")
result

# %% [markdown]
# ## By parts of the prompt
#
# The same answer by segments that we choose. With `at="pattern"` the scores of a segment's tokens are summed; otherwise its score is the norm of their rows together.

# %%
by_part = result.grouped(parts)
for i, row in enumerate(by_part.rows):
    best = {s.source.text: f"{s.score:.3g}" for s in by_part.top(9, i) if s.source.text in parts}
    print(f"{row.text!r:12} {best}")

# %% [markdown]
# ## A span is one number
#
# The log-probability of several tokens has one gradient: one row, not a sum of norms.

# %%
span = result.span(word)
print(f"{word!r}: probability {span.rows[0].probability:.3g}; strongest source {span.top(1)[0].source.text!r}")
span

# %% [markdown]
# ## Why this and not that
#
# The difference of the log-probabilities of two continuations of any length. In a chat they follow the words of the answer before the span.

# %%
start = result.find(word)[0] + result.text.n_prompt
contrast = js.attribute(model, result.tokens[:start], "contrastive", target=word, baseline=instead, **how)
print(contrast)

# %% [markdown]
# ## Which words depend on which part
#
# Remove each part from the text and measure the KL divergence of every prediction. Then ask: why this word, and not the word that the model predicts
# without the part?

# %%
effects = js.patching.context(model, prompt, answer, by=parts, progress=False)
print(effects)
js.views.context(effects).save(out / "context.html")
token = effects.top(1)[0]
print(
    f"{token.str_token!r} depends most on {token.source.text!r}: without it the model says {token.instead.str_token!r}"
)
print(effects.cues(token.out, token.part))
effects
