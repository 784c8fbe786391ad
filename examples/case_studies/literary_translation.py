# %% [markdown]
# # Translating a poet (Fig. 6)
#
# A translator of Dante sometimes has a word for a word (*mondo*, world) and sometimes must recast a whole phrase (*priegoti
# ch'a la mente altrui mi rechi*). Then many next words are possible at once, and a picture of what one of them rests on would
# tell only a part. **Temperature Scope** asks instead what makes the model more or less sure, whatever it says; beside it
# stands what it would say.
#
# Runs offline on the pocket model in a few seconds. `python literary_translation.py --model meta-llama/Llama-3.2-3B
# --out FOLDER` shows the paper's own prompts (there on the 3B model) on a model of your choice (`--device`, `--dtype`).

# %%
import common
import numpy as np
from common import claim, share, to_compare
from scipy.stats import entropy, spearmanr

import jscope_tl as js

study = common.start()

# %% [markdown]
# ## The prompts
#
# The paper cuts one translation at several words. Here: at *world*, which has a counterpart, and at *bring*, in the middle of
# the phrase that has none. Of the pocket model's held-out prompts those two that it is most and least sure of are shown. It
# translates word for word and is sure of nearly everything; nothing in its language is as ambiguous as Dante.

# %%
ITALIAN = "Italiano: Ma quando tu sarai nel dolce mondo, priegoti ch'a la mente altrui mi rechi: English: "
PAPER = [
    ITALIAN + "But when you have returned to the sweet world",
    ITALIAN + "But when you have returned to the sweet world, I pray you bring",
]
if study.is_pocket:
    cases = study.pocket_cases("translation", study.at_most(200))
else:
    cases = [study.paper_case(text) for text in PAPER]
results = [study.explain(case, "temperature") for case in cases]


def highest(result: js.Attribution) -> float:
    """The probability of the word that the model finds most probable."""
    return result.prediction.top[0].probability


surest, least_sure = (results[0], results[1])
if study.is_pocket:
    surest, least_sure = max(results, key=highest), min(results, key=highest)

# %%
print(surest)
study.keep(js.views.tokens(surest), "literary_translation_sure")

# %%
study.keep(js.views.prediction(surest, k=7), "literary_translation_sure_prediction")

# %%
print(least_sure)
study.keep(js.views.tokens(least_sure), "literary_translation_unsure")

# %%
study.keep(js.views.prediction(least_sure, k=7), "literary_translation_unsure_prediction")

# %% [markdown]
# ## The claims, counted
#
# *Exactly attributed to its counterpart* means: where the model is sure of a word (over 90 %), the highest of all scores (BOS
# apart) is that of the word translated.
#
# *On the level of phrases*: the less sure the prediction, the more source words share the score. How many share it is the
# exponential of the entropy of their scores (1 if one has all, n if n have the same); the check is its rank correlation with
# the entropy of the prediction, which must be positive and no accident (p < 0.05).

# %%
WORD = "Where there is a counterpart, each translated word is attributed exactly to it."
PHRASE = "Where there is none, the prediction is uncertain and many tokens of the source share the influence."


def spread(result: js.Attribution, case: common.Case) -> float:
    """How many words of the source sentence share the score."""
    return float(np.exp(entropy(result.scores[3 : study.words(case).index(".")].double().numpy())))


def uncertainty(result: js.Attribution) -> float:
    """The entropy of the most probable words' probabilities, the rest as one more."""
    known = [token.probability for token in result.prediction.top]
    return float(entropy([*known, max(0.0, 1 - sum(known))]))


if study.is_pocket:
    both = list(zip(results, cases, strict=True))
    hits = [result.top(1)[0].position in case.causes for result, case in both if highest(result) > 0.9]
    claim(WORD, share(hits) > 0.5, f"so in {share(hits):.0%} of {len(hits)} sure predictions")

    found = spearmanr([uncertainty(r) for r in results], [spread(r, case) for r, case in both])
    unsure = sum(highest(result) <= 0.9 for result in results)
    detail = (
        f"rank correlation {found.statistic:+.2f}, p = {found.pvalue:.2g}, {len(results)} predictions, {unsure} unsure"
    )
    claim(PHRASE, found.statistic > 0 and found.pvalue < 0.05, detail)
else:
    to_compare(WORD)
    to_compare(PHRASE)
