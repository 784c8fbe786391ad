# %% [markdown]
# # Which word was translated? Fisher and Temperature side by side (Figs. 3, 13)
#
# In *"German: Dies ist ein Aufsatz über kausale Zuschreibung. English: This is a paper on causal"* the next word is to be
# *attribution*. Two scopes ask about the whole next-token distribution. **Fisher Scope**: how far does it move (as KL
# divergence) when a token's vector is nudged? It takes up to as many backward passes as the model is wide. **Temperature
# Scope**: how much more or less certain does the model get? One backward pass.
#
# Runs offline on the pocket model in under a minute. `python translation.py --model meta-llama/Llama-3.2-1B --out FOLDER`
# shows the paper's own prompts on a model of your choice (`--device`, `--dtype`).

# %%
import common
import numpy as np
from common import claim, clearly_positive, mean_text, outside_bos, rank_correlation, share, to_compare

import jscope_tl as js

study = common.start()

# %% [markdown]
# ## The prompts
#
# The paper's have three languages; a subword of the source should light up. The pocket model translates word for word, with
# other word orders in other languages, and one token to a word.

# %%
PAPER = [
    "Italian: Buon pomeriggio, cari colleghi ricercatori. English: Good afternoon, dear fellow researchers",
    "German: Dies ist ein Aufsatz über kausale Zuschreibung. English: This is a paper on causal attribution",
    "French: Nous l'appelons lentille jacobienne. English: We call it Jacobian Scope",
]
cases = (
    study.pocket_cases("translation", study.at_most(40))
    if study.is_pocket
    else [study.paper_case(text) for text in PAPER]
)

# %% [markdown]
# On the pocket model all backward passes of Fisher Scope are taken (`method="exact"`, as in the paper's first version); on a
# large one its estimate, with a standard error. The two scopes have different units and so a picture each.

# %%
options = {"method": "exact"} if study.is_pocket else {}
fisher = [study.explain(case, "fisher", **options) for case in cases]
temperature = [study.explain(case, "temperature") for case in cases]
passes = [results[0].provenance.n_backward for results in (fisher, temperature)]
print(f"backward passes: Fisher Scope {passes[0]}, Temperature Scope {passes[1]}")
print(fisher[0])
print(temperature[0])

# %%
study.keep(js.views.tokens(fisher[0]), "translation_0_fisher")

# %%
study.keep(js.views.tokens(temperature[0]), "translation_0_temperature")

# %%
study.keep(js.views.tokens(fisher[1]), "translation_1_fisher")

# %%
study.keep(js.views.tokens(temperature[1]), "translation_1_temperature")

# %%
study.keep(js.views.tokens(fisher[2]), "translation_2_fisher")

# %%
study.keep(js.views.tokens(temperature[2]), "translation_2_temperature")

# %% [markdown]
# ## The claims, counted
#
# *Primarily influenced* means that the word translated has the highest score of all tokens (BOS apart); beside it, how often
# it is at least the highest among the words of the source sentence.
#
# *More precise* means that more of the height of all bars stands on the word translated. But Fisher's score is a sum of
# squares (KL per unit of x squared), and squaring makes any picture look more concentrated. So the same is counted once more
# with the square root of Fisher's score, which is per unit of x as Temperature's is.
#
# That Temperature Scope is a cheaper *alternative* means that the two rank tokens alike: a rank correlation closer to 1 than
# to 0.

# %%
SOURCE = "Fisher Scope: a translated word is primarily influenced by its counterpart in the source language."
PRECISE = "Fisher Scope is more precise, Temperature Scope puts more of its score on other tokens."
ROOTED = "The same with the square root of Fisher's score."
ALIKE = "Temperature Scope is an alternative to Fisher Scope: both rank the tokens alike."


def sure(result: js.Attribution, case: common.Case, power: float = 1.0) -> float:
    """How much of the sum of all scores stands on the word that is translated."""
    scores = outside_bos(result) ** power
    return float(scores[case.causes[0] - len(result.bos_positions)] / scores.sum())


def in_source(result: js.Attribution, case: common.Case) -> bool:
    """Whether the word translated is the highest of the source sentence, which ends with the first full stop."""
    return int(result.scores[3 : study.words(case).index(".")].argmax()) + 3 == case.causes[0]


if study.is_pocket:
    found = {"Fisher": fisher, "Temperature": temperature}
    top, of_source = {}, {}
    for name, results in found.items():
        both = list(zip(results, cases, strict=True))
        top[name] = [result.top(1)[0].position == case.causes[0] for result, case in both]
        of_source[name] = [in_source(result, case) for result, case in both]
    said = "; ".join(
        f"{name}: highest of all tokens in {share(top[name]):.0%}, of the source sentence in {share(of_source[name]):.0%}"
        for name in found
    )
    claim(SOURCE, share(top["Fisher"]) > 0.5, f"{said} of {len(cases)} prompts")

    for sentence, power in ((PRECISE, 1.0), (ROOTED, 0.5)):
        of_fisher = [sure(result, case, power) for result, case in zip(fisher, cases, strict=True)]
        of_temperature = [sure(result, case) for result, case in zip(temperature, cases, strict=True)]
        gained = [f - t for f, t in zip(of_fisher, of_temperature, strict=True)]
        detail = f"on the word translated: {np.mean(of_fisher):.0%} against {np.mean(of_temperature):.0%}"
        claim(sentence, clearly_positive(gained), f"{detail}; difference {mean_text(gained)}")

    alike = [rank_correlation(outside_bos(f), outside_bos(t)) for f, t in zip(fisher, temperature, strict=True)]
    claim(ALIKE, float(np.mean(alike)) > 0.5, f"rank correlation {mean_text(alike)} over {len(cases)} prompts")
else:
    to_compare(SOURCE)
    to_compare(PRECISE)
    to_compare(ALIKE)
