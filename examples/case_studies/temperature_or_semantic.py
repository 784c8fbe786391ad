# %% [markdown]
# # One number, or the whole forecast? (Fig. 12)
#
# The forecast of a number series is no single token: twenty neighbouring numbers may share it, in the shape of a bell.
# **Semantic Scope** asks about the logit of one of them, the true one say. **Temperature Scope** asks about the distribution
# as a whole. Which of the two tells what the forecast rests on?
#
# Runs offline on the pocket model in under a minute. `python temperature_or_semantic.py --model meta-llama/Llama-3.2-1B
# --out FOLDER` does the same with a model of your choice (`--device`, `--dtype`) whose tokenizer has one token for each
# two-digit number.

# %%
import common
import numpy as np
import torch
from common import claim, clearly_positive, mean_text, rank_correlation, share, to_compare
from matplotlib import pyplot as plt

import jscope_tl as js

study = common.start()
SERIES = study.at_most(20)
IDS = {number: common.target_of(study.series_case([10, number])) for number in range(10, 100)}
"""The tokens of each number."""

# %% [markdown]
# ## One series
#
# The paper's example is a Lorenz series. The pocket model knows Lorenz series too well, its forecasts of them are narrow; its
# forecasts of Brownian motion are bells. So a Lorenz series is shown on a model of your own, Brownian motion on the pocket model.


# %%
def brownian(seed: int) -> common.Case:
    """A random walk of 64 numbers; the last is the target."""
    return study.series_case(js.series.to_integers(js.series.brownian(64, np.random.default_rng(seed))))


def forecast(case: common.Case) -> dict[int, float]:
    """The probability of each two-digit number, in the order of the numbers: of several tokens the product of theirs."""
    beginnings = {ids[:i] for ids in IDS.values() for i in range(len(ids))}
    after = {beginning: next_token([*case.ids[: -case.n_target], *beginning]) for beginning in beginnings}
    return {
        number: float(np.prod([float(after[ids[:i]][token]) for i, token in enumerate(ids)]))
        for number, ids in IDS.items()
    }


def next_token(ids: list[int]) -> torch.Tensor:
    """The probabilities of what follows."""
    with torch.no_grad():
        tokens = torch.tensor([ids], device=next(study.model.parameters()).device)
        return study.model(tokens)[0, -1].float().softmax(-1).cpu()


def bell(case: common.Case, axis: plt.Axes) -> None:
    """The forecast around the target; the target in blue."""
    found, truth = forecast(case), int("".join(study.words(case)[-case.n_target :]))
    best = sorted(sorted(found, key=lambda number: -found[number])[:20])
    axis.bar(best, [found[n] for n in best], color=["#0550ae" if n == truth else "#d95f0e" for n in best])
    axis.set_xlabel("next number (the target in blue)")
    axis.set_ylabel("probability")
    axis.set_title("20 most probable numbers", fontsize="medium", loc="left")


if study.is_pocket:
    case = brownian(0)
else:
    case = study.series_case(js.series.to_integers(js.series.lorenz(180, np.random.default_rng(0))))

# %%
figure, axes = plt.subplot_mosaic(
    [["temperature", "bell"], ["semantic", "bell"]], figsize=(13, 5.2), width_ratios=[2.6, 1], layout="constrained"
)
plt.close(figure)
for scope in ("temperature", "semantic"):
    js.views.series(study.explain(case, scope), ax=axes[scope])
bell(case, axes["bell"])
study.keep(figure, "temperature_or_semantic")

# %% [markdown]
# ## The claims, counted
#
# *Bell-shaped*: over the 20 most probable numbers the probability falls with the distance from the most probable one, with a
# rank correlation below -0.9.
#
# *One of them only*: ask for the lowest and for the highest of the numbers with 1 % or more. Does another number of the history
# have the highest score? (Temperature Scope has no target to choose.)
#
# *The forecast as a whole*: what does it depend on, by a measure that is independent of both scopes? We take two, both for the whole
# distribution: Fisher Scope, and leaving numbers out (each one's vector set to zero; the KL divergence
# of the forecast). Does Temperature Scope rank the numbers more like them than Semantic Scope of the true number does?

# %%
BELL = "The predicted distribution of the next number is bell-shaped over about 20 numbers."
ONE = "Semantic Scope of one number attributes that number only: of another one in the bell it gives another picture."
FISHER = (
    "Temperature Scope captures the distribution better than Semantic Scope of the truth does (held against Fisher)."
)
LEFT_OUT = "The same, held against leaving numbers out."


def is_bell(found: dict[int, float]) -> bool:
    """Whether the 20 most probable numbers fall off from the most probable one."""
    best = sorted(found, key=lambda number: -found[number])[:20]
    return rank_correlation([found[n] for n in best], [abs(n - best[0]) for n in best]) < -0.9


def heights(case: common.Case, target: int) -> np.ndarray:
    """Semantic Scope's score of each number for the logit of one of the possible next ones."""
    return study.explain(case, "semantic", target=IDS[target][0]).scores[list(case.numbers)].numpy()


def against(measure: np.ndarray, case: common.Case) -> list[float]:
    """Rank correlation over the numbers of Temperature and of Semantic Scope with a measure of the whole distribution."""
    scores = [study.explain(case, scope).scores for scope in ("temperature", "semantic")]
    return [rank_correlation(one[list(case.numbers)].numpy(), measure[list(case.numbers)]) for one in scores]


def compare(sentence: str, pairs: list[list[float]]) -> None:
    """The claim that the first of two agreements is the higher one."""
    gained = [temperature - semantic for temperature, semantic in pairs]
    means = np.mean(pairs, axis=0)
    detail = (
        f"rank correlation {means[0]:.2f} for Temperature, {means[1]:.2f} for Semantic; difference {mean_text(gained)}"
    )
    claim(sentence, clearly_positive(gained), f"{detail} over {len(pairs)} series")


if study.is_pocket:
    cases = [brownian(seed) for seed in range(SERIES)]
    forecasts = [forecast(case) for case in cases]
    bells = [is_bell(found) for found in forecasts]
    plausible = [[number for number, p in found.items() if p >= 0.01] for found in forecasts]
    detail = f"so in {share(bells):.0%} of {SERIES} series; on average {np.mean([len(p) for p in plausible]):.0f} have 1% or more"
    claim(BELL, share(bells) > 0.5, detail)

    ends = [
        (heights(case, min(numbers)), heights(case, max(numbers)))
        for case, numbers in zip(cases, plausible, strict=True)
    ]
    moved = [low.argmax() != high.argmax() for low, high in ends]
    alike = mean_text([rank_correlation(low, high) for low, high in ends])
    detail = f"the highest number is another one in {share(moved):.0%} of {SERIES} series; rank correlation {alike}"
    claim(ONE, share(moved) > 0.5, detail)

    fisher = [study.explain(case, "fisher").scores.numpy() for case in cases]
    compare(FISHER, [against(measure, case) for measure, case in zip(fisher, cases, strict=True)])
    left_out = [
        js.patching.ablate(study.model, case.ids, "temperature", position=-2, progress=False).kl.numpy()
        for case in cases[: SERIES // 2]
    ]
    compare(LEFT_OUT, [against(measure, case) for measure, case in zip(left_out, cases, strict=False)])
else:
    for sentence in (BELL, ONE, FISHER):
        to_compare(sentence)
