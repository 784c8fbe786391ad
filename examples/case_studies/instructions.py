# %% [markdown]
# # Which instruction does the answer rest on? (Fig. 1)
#
# *"As a state-of-the-art AI assistant, you never argue or deceive, because you are"* — a language model goes on with a
# virtue, and each virtue goes with one of the vices that were denied. **Semantic Scope** asks how strongly every token of
# the prompt can move the logit of one chosen word. Choose *truthful*, then *nice*: does the picture move from one vice to
# the other?
#
# Runs offline on the pocket model in a few seconds. `python instructions.py --model meta-llama/Llama-3.2-1B --out FOLDER`
# shows the paper's own prompts on a model of your choice (`--device`, `--dtype`).

# %%
import common
from common import claim, in_comparison, share, to_compare

import jscope_tl as js
from jscope_tl.pocket.words import VICE_TO_VIRTUE

study = common.start()

# %% [markdown]
# ## The prompts
#
# As in the paper, a prompt's last token is the target, and the prediction just before it is explained. With a model of your
# own two BOS tokens are put in front, as the paper has it; they are left out of the colour scale, and the warning about the
# second one can be ignored here. The pocket model gets held-out sentences in which two vices are denied, once with the virtue
# that goes with the first of them as the target, once with that of the second.

# %%
PAPER = "As a state-of-the-art AI assistant, you never argue or deceive, because you are {}"


def two_targets(prompt: js.PocketPrompt) -> dict[str, common.Case] | None:
    """The same prompt before each of two virtues, under the vice that it goes with; None where one vice is denied."""
    words = prompt.text.split()
    vices = [word for word in words if word in VICE_TO_VIRTUE]
    if "or" not in words or words[-1] == "and":
        return None
    return {vice: study.pocket_case(prompt.text, f" {VICE_TO_VIRTUE[vice]}") for vice in vices}


if study.is_pocket:
    pairs = [pair for prompt in js.pocket_prompts("assistant", 400) if (pair := two_targets(prompt))]
    pairs = pairs[: study.at_most(40)]
    first, second = pairs[0].values()
else:
    first, second = (study.paper_case(PAPER.format(virtue)) for virtue in ("truthful", "nice"))

# %% [markdown]
# One prompt, two targets, one colour scale.

# %%
results = [js.attribute(study.model, case.ids[:-1], "semantic", target=case.ids[-1]) for case in (first, second)]
for result in results:
    print(result)
labels = [f"target{result.prediction.target.str_token}" for result in results]
study.keep(js.views.tokens(results, labels), "instructions")

# %% [markdown]
# ## The claim, counted
#
# Two readings of the figure, over held-out prompts of the pocket model. That a logit is attributed *most prominently* to
# the vice means that no other token of the prompt (BOS apart) has a higher score. As a control: the same count for a random
# direction in place of the logit's, which asks about nothing.
#
# The pocket model can be sterner than the paper's prompt: in its small world the virtue of the vice denied first always
# comes first, so that the second target is a word that it rules out.

# %%
MOST = "The logit of the virtue is attributed most prominently to the vice whose denial it follows from."
OWN = "Of two vices denied in one prompt, a virtue is attributed more to its own: truthful to deceive, nice to argue."

if study.is_pocket:
    cases = study.pocket_cases("assistant", study.at_most(50))
    tops = study.tops(cases, "semantic")
    hits = [top in case.causes for top, case in zip(tops, cases, strict=True)]
    control = [top in case.causes for top, case in zip(study.tops(cases, "random_direction"), cases, strict=True)]
    claim(MOST, share(hits) > 0.5, f"the vice has the highest score in {share(hits):.0%} of {len(cases)} prompts")
    in_comparison(hits, control, [study.words(case)[top] for top, case in zip(tops, cases, strict=True)])

    own = []
    for pair in pairs:
        for vice, case in pair.items():
            scores = study.explain(case, "semantic").scores
            at = {other: study.words(case).index(other) for other in pair}
            own.append(max(at, key=lambda other: float(scores[at[other]])) == vice)
    claim(OWN, share(own) > 0.5, f"so for {share(own):.0%} of the two targets of {len(pairs)} prompts; chance is 50%")
else:
    to_compare(MOST)
    to_compare(OWN)
