# %% [markdown]
# # A crime mystery (Fig. 7)
#
# Three weapons were found: a cleaver, a shovel and a screwdriver. Is the killer the butcher, the gardener or the mechanic?
# The story does not say; but each trade goes with one of the weapons. **Semantic Scope** asks for each suspect in turn which
# tokens the logit of that word rests on. If the model reasons as a reader does, the picture moves from weapon to weapon.
#
# Runs offline on the pocket model in a few seconds. `python detective.py --model meta-llama/Llama-3.2-3B --out FOLDER` shows
# the paper's own prompt (there on the 3B model) on a model of your choice (`--device`, `--dtype`).

# %%
import common
from common import claim, in_comparison, share, to_compare

import jscope_tl as js
from jscope_tl.pocket.words import WEAPON_TO_TRADE

study = common.start()

# %% [markdown]
# ## The prompts
#
# The pocket model's stories have a clue that points at one weapon, which makes one suspect certain. The other two suspects
# are asked about all the same, as in the paper's figure.

# %%
PAPER = (
    "Since the victim, a wealthy aristocrat living in the English countryside, died from a fatal wound, the detective "
    "narrowed down to three murder weapons: a cleaver, a shovel, and a screwdriver. He further deduced that the killer is "
    "the {}"
)


def three_suspects(prompt: js.PocketPrompt) -> dict[str, common.Case]:
    """The prompt before each of its three suspects, under the suspect's weapon; the guilty one's first."""
    weapons = dict.fromkeys(word for word in prompt.text.split() if word in WEAPON_TO_TRADE)
    ranked = sorted(weapons, key=lambda weapon: f" {WEAPON_TO_TRADE[weapon]}" != prompt.target)
    return {weapon: study.pocket_case(prompt.text, f" {WEAPON_TO_TRADE[weapon]}") for weapon in ranked}


if study.is_pocket:
    stories = [three_suspects(prompt) for prompt in js.pocket_prompts("detective", study.at_most(40))]
    suspects = list(stories[0].values())
else:
    suspects = [study.paper_case(PAPER.format(trade)) for trade in ("mechanic", "gardener", "butcher")]

# %% [markdown]
# One prompt, three targets, one colour scale.

# %%
results = [js.attribute(study.model, case.ids[:-1], "semantic", target=case.ids[-1]) for case in suspects]
for result in results:
    print(result)
labels = [f"target{result.prediction.target.str_token}" for result in results]
study.keep(js.views.tokens(results, labels), "detective")

# %% [markdown]
# ## The claim, counted
#
# For each suspect: which of the three weapons has the highest score (a weapon that the story names twice counts with the
# higher one)? By chance it is the suspect's own one time in three.
#
# For the guilty one, whose weapon is known to decide, the stern version: that weapon has the highest score of all tokens
# (BOS apart). As a control the same count for a random direction.

# %%
OWN = "Each suspect is linked with the evidence: mechanic with screwdriver, gardener with shovel, butcher with cleaver."
GUILTY = "The guilty suspect is attributed most of all to the weapon that convicts."

if study.is_pocket:
    own, guilty = [], []
    for story in stories:
        for i, (weapon, case) in enumerate(story.items()):
            scores, words = study.explain(case, "semantic").scores, study.words(case)
            best = max((k for k, word in enumerate(words) if word in story), key=lambda k: float(scores[k]))
            own.append(words[best] == weapon)
            guilty += [own[-1]] if i == 0 else []
    detail = f"{share(own):.0%} of the three suspects of {len(stories)} stories, chance is 33%"
    claim(OWN, share(own) > 0.5, f"{detail}; of the guilty ones {share(guilty):.0%}")

    cases = [next(iter(story.values())) for story in stories]
    weapons = [next(iter(story)) for story in stories]
    tops = [study.words(case)[top] for case, top in zip(cases, study.tops(cases, "semantic"), strict=True)]
    drawn = [study.words(case)[top] for case, top in zip(cases, study.tops(cases, "random_direction"), strict=True)]
    hits, control = ([top == weapon for top, weapon in zip(found, weapons, strict=True)] for found in (tops, drawn))
    claim(GUILTY, share(hits) > 0.5, f"highest score of all tokens in {share(hits):.0%} of {len(hits)} stories")
    in_comparison(hits, control, tops)
else:
    to_compare(OWN)
