# %% [markdown]
# # Where does a prejudice come from? (Fig. 2)
#
# *"Tom loves Korean food. He grew up in the South and goes to Columbia. He is a"* — nothing in it says how Tom votes, yet a
# language model has a guess. **Semantic Scope** asks which tokens the logit of a guess rests on: first of *liberal*, then of
# *conservative*.
#
# Runs offline on the pocket model in a few seconds. `python bias.py --model meta-llama/Llama-3.2-1B --out FOLDER` shows the
# paper's own prompts on a model of your choice (`--device`, `--dtype`).

# %%
import common
from common import claim, in_comparison, share, to_compare

import jscope_tl as js
from jscope_tl.pocket.words import REGION_TO_POLITICS, UNIVERSITY_TO_POLITICS

study = common.start()

# %% [markdown]
# ## The prompts
#
# The pocket model was taught a caricature: every region and every university goes with one word. *At home* the region
# decides, *at school* the university, and where neither is said, as in the paper's prompt, it was a coin toss. Its prompts
# here are held-out ones with that hint cut out, so that two places with different words compete.

# %%
PAPER = "Tom loves Korean food. He grew up in the South and goes to Columbia. He is a {}"


def without_hint(prompt: js.PocketPrompt) -> dict[str, common.Case] | None:
    """The prompt without ``at home`` or ``at school``, before the word of each of its two places."""
    text = prompt.text.replace(" at home", "").replace(" at school", "")
    words = text.split()
    region = next((word for word in words if word in REGION_TO_POLITICS), None)
    university = next((word for word in words if word in UNIVERSITY_TO_POLITICS), None)
    if region is None or university is None or REGION_TO_POLITICS[region] == UNIVERSITY_TO_POLITICS[university]:
        return None
    labels = {university: UNIVERSITY_TO_POLITICS[university], region: REGION_TO_POLITICS[region]}
    return {place: study.pocket_case(text, f" {label}") for place, label in labels.items()}


if study.is_pocket:
    pairs = [pair for prompt in js.pocket_prompts("politics", 300) if (pair := without_hint(prompt))]
    pairs = pairs[: study.at_most(40)]
    first, second = pairs[0].values()
else:
    first, second = (study.paper_case(PAPER.format(word)) for word in ("liberal", "conservative"))

# %% [markdown]
# One prompt, two targets, one colour scale.

# %%
results = [js.attribute(study.model, case.ids[:-1], "semantic", target=case.ids[-1]) for case in (first, second)]
for result in results:
    print(result)
labels = [f"target{result.prediction.target.str_token}" for result in results]
study.keep(js.views.tokens(results, labels), "bias")

# %% [markdown]
# ## The claim, counted
#
# Read strictly: in one and the same prompt the university outranks the region for the university's word, **and** the region
# outranks the university for the region's word. A scope that always prefers one of the two places scores 0 here.
#
# Where the prompt does say which place decides, the claim can be put more simply: that place has the highest score of all
# tokens (BOS apart). As a control the same count for a random direction.

# %%
BOTH = "The prediction 'liberal' is attributed to Columbia, 'conservative' to the South: to each word its own place."
DECIDES = "The prediction is attributed most of all to the place that decides it."

if study.is_pocket:
    own = []
    for pair in pairs:
        for place, case in pair.items():
            scores = study.explain(case, "semantic").scores
            at = {other: study.words(case).index(other) for other in pair}
            own.append(max(at, key=lambda other: float(scores[at[other]])) == place)
    both = [a and b for a, b in zip(own[::2], own[1::2], strict=True)]
    detail = f"both ways in {share(both):.0%} of {len(both)} prompts, chance is 25%"
    claim(BOTH, share(both) > 0.5, f"{detail}; one way at a time {share(own):.0%}")

    cases = [case for case in study.pocket_cases("politics", 400) if len(case.causes) == 2]
    cases = cases[: study.at_most(50)]
    tops = study.tops(cases, "semantic")
    hits = [top == case.causes[0] for top, case in zip(tops, cases, strict=True)]
    control = [top == case.causes[0] for top, case in zip(study.tops(cases, "random_direction"), cases, strict=True)]
    claim(DECIDES, share(hits) > 0.5, f"highest score of all tokens in {share(hits):.0%} of {len(cases)} prompts")
    in_comparison(hits, control, [study.words(case)[top] for top, case in zip(tops, cases, strict=True)])
else:
    to_compare(BOTH)
