# %% [markdown]
# # What in the past does a forecast rest on? (Figs. 4, 5, 8-11)
#
# A language model that is given a series of two-digit numbers, `29,30,31,33,`, goes on with it. **Temperature Scope** shows
# which of the numbers its confidence in the next one rests on. A chaotic series comes back to nearly the same states, so that
# one could look up what followed then; a random walk has nothing to look up.
#
# Runs offline on the pocket model in a minute. `python time_series.py --model meta-llama/Llama-3.2-1B --out FOLDER` does the
# same with a model of your choice (`--device`, `--dtype`). Where its tokenizer splits numbers (Qwen, Gemma, SmolLM2) the next number is
# explained as a span of its digits, and a bar is the score of the group of a number's digits.

# %%
from collections.abc import Callable

import common
import numpy as np
from common import claim, clearly_positive, mean_text, rank_correlation, to_compare

import jscope_tl as js

study = common.start()
SERIES, LENGTH = study.at_most(20), 179

# %% [markdown]
# ## The series
#
# Lorenz's system, cut at a peak of its first coordinate or where it goes over from one lobe to the other; the same with a
# uniform drift; the logistic map; Brownian motion. All are scaled to 14..84. The number after the cut is the target (a ring),
# commas are left out of the pictures. The first steps of a Lorenz orbit come back to nothing, and all orbits begin alike; so
# the pieces are taken from further on, where each is another one.
#
# The bars are logarithmic: the last few numbers before the cut dwarf the rest.


# %%
def lorenz(seed: int, at: Callable[[np.ndarray], np.ndarray], drift: float = 0.0) -> common.Case:
    """179 numbers of a Lorenz orbit, long after the paper's start, up to a place where ``at`` is true."""
    rng = np.random.default_rng(seed)
    begin = int(rng.integers(1000, 3000))
    x = js.series.lorenz(begin + 1000, rng)
    last = begin + int(np.flatnonzero(at(x)[begin:])[0])
    piece = x[last - LENGTH + 1 : last + 2]
    return case_of(piece + drift * np.arange(len(piece)))


def peak(x: np.ndarray) -> np.ndarray:
    """Where there is a positive peak."""
    before, after = np.roll(x, 1), np.roll(x, -1)
    return (x > 0) & (before < x) & (x >= after)


def lobe_switch(x: np.ndarray) -> np.ndarray:
    """Where the orbit has just crossed zero."""
    return np.roll(x, 1) * x < 0


def brownian(seed: int) -> common.Case:
    """A random walk."""
    return case_of(js.series.brownian(LENGTH + 1, np.random.default_rng(seed)))


def logistic(seed: int) -> common.Case:
    """Iterates of the logistic map at r = 3.8."""
    return case_of(js.series.logistic_map(LENGTH + 1, np.random.default_rng(seed)))


def case_of(values: np.ndarray) -> common.Case:
    """The series in integers; its last value is the target."""
    return study.series_case(js.series.to_integers(values))


def explained(case: common.Case) -> js.Attribution | js.TextAttribution:
    """Temperature Scope of the number after the cut."""
    return study.explain(case, "temperature")


# %% [markdown]
# Fig. 4: Lorenz, cut at a peak.

# %%
result = explained(lorenz(0, peak))
study.keep(js.views.series(result, log=True), "lorenz_peak")

# %% [markdown]
# Fig. 9: Lorenz, cut at a lobe switch.

# %%
result = explained(lorenz(1, lobe_switch))
study.keep(js.views.series(result, log=True), "lorenz_lobe_switch")

# %% [markdown]
# Fig. 10: the orbit of Fig. 4 again, with a uniform drift of 0.4 a step.

# %%
result = explained(lorenz(0, peak, drift=0.4))
study.keep(js.views.series(result, log=True), "lorenz_drift")

# %% [markdown]
# Fig. 8: the logistic map.

# %%
result = explained(logistic(0))
study.keep(js.views.series(result, log=True), "logistic_map")

# %% [markdown]
# Figs. 5 and 11: Brownian motion.

# %%
result = explained(brownian(0))
study.keep(js.views.series(result, log=True), "brownian")

# %% [markdown]
# ## The claims, counted
#
# *Like the cut-off* is measured in delayed coordinates: how far the last few numbers before an earlier place are from the last
# few before the cut. Three numbers for Lorenz, whose state has three coordinates, one for the logistic map, whose number is its
# state. The check: does the rank correlation of score and likeness have a mean clearly above zero (two standard errors)? The
# first five numbers (an attention sink, as the paper says) and the last ten (like the cut-off only because they are next to
# it) are left out. Beside it stand the same for the number that follows each place (what one would copy), and as a control
# likeness to other places of the series in place of the cut-off: where that is far from zero, bars follow the size of a number,
# whatever the cut-off is like.
#
# *Drift*: how much of the sum of all bars stands on the earlier half, the first five numbers left out; less with drift than
# without, for the mean of the drifts 0.2, 0.4 and 0.6. The pocket model never saw a drifting series.
#
# *Later parts*: the rank correlation of score and place, the first five numbers left out.

# %%
PEAK = "Lorenz, cut at a peak: the model attends to regions of the history with patterns like those near the cut-off."
SWITCH = "Lorenz, cut at a lobe switch: here too it attends to patterns like those around the cut-off."
DRIFT = "With a uniform drift the earlier regions of the context have less influence than without."
LOGISTIC = "The logistic map is extrapolated by attending to similar motifs in the history."
BROWNIAN = "In Brownian motion the early context has less influence, the later parts more."
SINK, NEAR = 5, 10


def bars(case: common.Case) -> np.ndarray:
    """The score of each number before the cut."""
    return explained(case).scores[list(case.numbers)].double().numpy()


def likeness(case: common.Case, delay: int) -> tuple[float, float, float]:
    """Rank correlation of score and likeness to the cut-off; the same for the numbers after; the mean of other places."""
    values = np.array([int(study.words(case)[i]) for i in case.numbers])
    states = np.stack([values[i : len(values) - delay + 1 + i] for i in range(delay)], axis=1)
    scores, start = bars(case)[delay - 1 :], SINK - delay + 1

    def to(place: int, others: np.ndarray, after: int = 0) -> float:
        return rank_correlation(scores[others + after], -np.linalg.norm(states[others] - states[place], axis=1))

    kept = np.arange(start, len(states) - NEAR)
    elsewhere = [to(place, kept[abs(kept - place) >= NEAR]) for place in kept[::5]]
    return to(len(states) - 1, kept), to(len(states) - 1, kept, after=1), float(np.mean(elsewhere))


def check_likeness(sentence: str, cases: list[common.Case], delay: int) -> None:
    """The claim that numbers like the cut-off have the higher bars."""
    found, after, control = zip(*(likeness(case, delay) for case in cases), strict=True)
    claim(sentence, clearly_positive(found), f"rank correlation {mean_text(found)} over {len(found)} series")
    more = [one - other for one, other in zip(found, control, strict=True)]
    print(f"  the number that follows each such place: {mean_text(after)}")
    print(f"  likeness to other places: {mean_text(control)}; to the cut-off more than that by {mean_text(more)}")


def early_half(case: common.Case) -> float:
    """How much of the sum of all bars stands on the earlier half of the series."""
    heights = bars(case)[SINK:]
    return float(heights[: len(heights) // 2].sum() / heights.sum())


if study.is_pocket:
    check_likeness(PEAK, [lorenz(seed, peak) for seed in range(SERIES)], delay=3)
    check_likeness(SWITCH, [lorenz(seed, lobe_switch) for seed in range(SERIES)], delay=3)

    plain = [early_half(lorenz(seed, peak)) for seed in range(SERIES)]
    drifting = [np.mean([early_half(lorenz(seed, peak, drift)) for drift in (0.2, 0.4, 0.6)]) for seed in range(SERIES)]
    less = [before - after for before, after in zip(plain, drifting, strict=True)]
    detail = f"on the earlier half {np.mean(plain):.0%} without drift, {np.mean(drifting):.0%} with it"
    claim(DRIFT, clearly_positive(less), f"{detail}; difference {mean_text(less)} over {len(less)} series")

    maps = [logistic(seed) for seed in range(SERIES)]
    check_likeness(LOGISTIC, maps, delay=1)
    print(f"  likeness of the last three numbers instead: {mean_text([likeness(case, 3)[0] for case in maps])}")

    walks = [bars(brownian(seed))[SINK:] for seed in range(SERIES)]
    recency = [rank_correlation(heights, np.arange(len(heights))) for heights in walks]
    detail = f"rank correlation with the place in the series {mean_text(recency)} over {len(recency)} walks"
    claim(BROWNIAN, clearly_positive(recency), detail)
else:
    for sentence in (PEAK, SWITCH, DRIFT, LOGISTIC, BROWNIAN):
        to_compare(sentence)
