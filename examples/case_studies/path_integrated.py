# %% [markdown]
# # Does integrating along a path help? (Figs. 14, 15)
#
# Integrated gradients follow the straight line from an origin, here a prompt of zero vectors, to the prompt, and average the
# gradient on the way. That smooths kinks away; but a prompt at 1 % of its size is nothing that a language model has ever
# seen. **Path-integrated Semantic Scope** is held against Semantic Scope on prompts like the paper's: *grew up in the South
# and goes to Columbia. He is a* → *liberal*.
#
# Runs offline on the pocket model in under a minute. `python path_integrated.py --model meta-llama/Llama-3.2-1B --out FOLDER`
# shows the paper's own prompt on a model of your choice (`--device`, `--dtype`).

# %%
import common
import numpy as np
from common import claim, clearly_positive, mean_text, outside_bos, share, to_compare
from matplotlib import pyplot as plt

import jscope_tl as js
from jscope_tl.pocket.words import DETERMINERS, PREPOSITIONS, PUNCTUATION

study = common.start()
ALPHAS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

# %% [markdown]
# ## One prompt
#
# The paper's score is the norm of the integrated gradient, each number multiplied by the input's (`reduction="elementwise"`):
# in logits, not in logits per unit of x, hence a picture of its own.

# %%
PAPER = "Tom loves Korean food. He grew up in the South and goes to Columbia. He is a liberal"


def semantic(case: common.Case) -> js.Attribution:
    """Semantic Scope."""
    return study.explain(case, "semantic")


def integrated(case: common.Case) -> js.Attribution:
    """Its path-integrated variant, with the paper's 100 steps."""
    return study.explain(case, "semantic", path=js.Line(steps=100), reduction="elementwise")


def integrand(case: common.Case, alpha: float) -> js.Attribution:
    """The norm of the gradient at one point of the path."""
    return study.explain(case, "semantic", path=js.Line(alphas=[alpha]))


if study.is_pocket:
    cases = [case for case in study.pocket_cases("politics", 400) if len(case.causes) == 2]
    cases = cases[: study.at_most(40)]
    case = cases[0]
else:
    case = study.paper_case(PAPER)
plain, along = semantic(case), integrated(case)
print(plain)
print(along)
print(f"backward passes: {plain.provenance.n_backward} and {along.provenance.n_backward}")

# %%
study.keep(js.views.tokens(plain), "path_semantic")

# %%
study.keep(js.views.tokens(along), "path_integrated")

# %% [markdown]
# The integrand along the path, from the null prompt (top) to the prompt itself (bottom).

# %%
path = [integrand(case, alpha) for alpha in ALPHAS]
figure, axis = plt.subplots(figsize=(11, 4.2), layout="constrained")
plt.close(figure)
js.views.heatmap(path, scale="log", ax=axis)
axis.set_yticks(range(len(ALPHAS)), [f"α = {alpha}" for alpha in ALPHAS])
study.keep(figure, "path_integrand")

# %% [markdown]
# ## The claims, counted
#
# *Early tokens* are the first quarter of the prompt after BOS; what is counted is how much of the sum of all scores stands on
# them, for *overwhelmingly* more than half of it. The token that decides is the place (*at school* the university, *at home*
# the region). *Function words* are articles, prepositions, punctuation and `and`. A mean counts as more where it is so by two
# standard errors.

# %%
EARLY = "Integration along the path gives early tokens disproportionately large influence, relative to Semantic Scope."
OBSCURE = "It obscures the token that decides the prediction."
LIMIT = "At the end of the path the integrand is Semantic Scope itself."
SINK = "At α = 0.01 the influence is overwhelmingly concentrated on early positions."
LARGE = "Gradients are large there: larger than at the prompt itself."
FUNCTION = "Half way function words are often the highest: more often than at the prompt itself."
FUNCTION_WORDS = {*DETERMINERS, *PREPOSITIONS, *PUNCTUATION, "and", "in", "at"}


def early(result: js.Attribution) -> float:
    """How much of the sum of all scores stands on the first quarter of the prompt."""
    scores = outside_bos(result)
    return float(scores[: len(scores) // 4].sum() / scores.sum())


def is_function_word(result: js.Attribution) -> bool:
    """Whether the token with the highest score is a function word."""
    return result.top(1)[0].str_token.strip() in FUNCTION_WORDS


if study.is_pocket:
    plain, along = [semantic(case) for case in cases], [integrated(case) for case in cases]
    starts, middles, ends = ([integrand(case, alpha) for case in cases] for alpha in (0.01, 0.5, 1.0))

    more = [early(ig) - early(point) for ig, point in zip(along, plain, strict=True)]
    of_all = np.mean([early(r) for r in along]), np.mean([early(r) for r in plain])
    even = np.mean([len(outside_bos(r)) // 4 / len(outside_bos(r)) for r in plain])
    detail = f"{of_all[0]:.0%} against {of_all[1]:.0%} of the score; shared out evenly {even:.0%}"
    claim(EARLY, clearly_positive(more), f"{detail}; difference {mean_text(more)} over {len(more)} prompts")

    hits = [[r.top(1)[0].position == c.causes[0] for r, c in zip(rs, cases, strict=True)] for rs in (along, plain)]
    lost = [float(b) - float(a) for a, b in zip(*hits, strict=True)]
    detail = f"the place that decides is on top in {share(hits[0]):.0%} of the prompts, of Semantic Scope's in {share(hits[1]):.0%}"
    claim(OBSCURE, clearly_positive(lost), f"{detail}; difference {mean_text(lost)}")

    off = max(float((e.scores - p.scores).abs().max() / p.scores.max()) for e, p in zip(ends, plain, strict=True))
    claim(LIMIT, off < 1e-3, f"largest difference {off:.1g} of the highest score")

    at_start = np.mean([early(r) for r in starts])
    claim(SINK, at_start > 0.5, f"{at_start:.0%} of the score is on the first quarter, at α = 1 {of_all[1]:.0%}")

    sizes = [outside_bos(s).sum() / outside_bos(e).sum() for s, e in zip(starts, ends, strict=True)]
    detail = f"the sum of all scores is {np.median(sizes):.2g} times that at the prompt (median)"
    claim(LARGE, float(np.median(sizes)) > 1, detail)

    words = [[is_function_word(r) for r in results] for results in (middles, ends)]
    gained = [float(a) - float(b) for a, b in zip(*words, strict=True)]
    detail = f"{share(words[0]):.0%} of the prompts, at the prompt itself {share(words[1]):.0%}; difference {mean_text(gained)}"
    claim(FUNCTION, clearly_positive(gained), detail)
else:
    for sentence in (EARLY, OBSCURE, LIMIT, SINK, LARGE, FUNCTION):
        to_compare(sentence)
