"""Figures: what is drawn is what the result holds."""

import dataclasses
import inspect
import warnings
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

import jscope_tl as js
from tests.views.results import PROMPT, pattern_of, with_tokens

matplotlib.use("Agg")
from matplotlib import pyplot as plt

pytestmark = pytest.mark.newest_line

NUMBERS = [29, 35, 41, 47, 53, 59, 53, 47]


@pytest.fixture(scope="module")
def numbers(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, " , ".join(map(str, NUMBERS)) + " ,", "temperature")


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, PROMPT, "semantic", target=" liberal")


def test_series_draws_numbers_and_scores(numbers: js.Attribution) -> None:
    figure = js.views.series(numbers)
    values, bars = figure.axes
    assert values.lines[0].get_ydata().tolist() == NUMBERS
    heights = [patch.get_height() for patch in bars.patches]
    assert heights == pytest.approx(numbers.scores[1::2].tolist())  # BOS and commas are left out
    assert bars.get_ylabel() == numbers.unit
    assert "temperature" in values.get_title(loc="left")
    assert str(int(numbers.prediction.target.str_token)) in values.get_legend().get_texts()[0].get_text()


def test_series_marks_place_and_target(pocket: Any, numbers: js.Attribution) -> None:
    earlier = js.attribute(pocket, numbers.tokens, "temperature", position=8)  # after the fourth number and its comma
    values = js.views.series(earlier).axes[0]
    line, ring = values.lines[1], values.lines[2]
    assert line.get_xdata()[0] == 3.5
    assert ring.get_xdata() == [4]
    assert ring.get_ydata() == [NUMBERS[4]]
    with pytest.raises(js.InputError, match="no number up to"):
        js.views.series(js.attribute(pocket, numbers.tokens, "semantic", position=0), log=True)


def test_series_of_a_stack_and_log(pocket: Any, numbers: js.Attribution) -> None:
    earlier = js.attribute(pocket, numbers.tokens, "temperature", position=8)
    figure = js.views.series([numbers, earlier], log=True)
    assert len(figure.axes) == 4
    assert [axis.get_yscale() for axis in figure.axes] == ["linear", "linear", "log", "log"]
    assert len(figure.axes[3].patches) == 4


def test_series_shows_errors_of_estimates(numbers: js.Attribution) -> None:
    estimated = dataclasses.replace(numbers, stderr=0.1 * numbers.scores)
    drawn = js.views.series(estimated).axes[1].containers[-1]
    spans = [segment[1, 1] - segment[0, 1] for segment in drawn.lines[2][0].get_segments()]
    assert spans == pytest.approx((0.2 * numbers.scores[1::2]).tolist())


@pytest.mark.parametrize(
    ("texts", "cure"),
    [
        (["<bos>", "a", " b"], "not a number series: it has 0 whole numbers in 3"),
        (["<bos>", "2", "9", ",", "3", "0"], "2 whole numbers in 6"),
        (["3", ".", "5", ",", "4"], "One delimiter"),
        (["3", ",", " -", "5", ",", "4"], "One delimiter"),
        (["-", "3", ",", " -", "5", ",", " -", "4"], "One delimiter"),
        (["-", "3", ",", "5", ",", "4"], "'-' is before"),
        ([".", "3", ",", ".", "5", ",", ".", "4"], "One delimiter"),
        (["1", " -", " 2", " -", " 3"], "One delimiter"),
        (["in", " 1990", " he", " was", " 25", " he", " was", " 26"], "One delimiter"),
        (["2", " ,", " 3"], "2 whole numbers in 3"),
    ],
)
def test_what_is_no_series(result: js.Attribution, texts: list[str], cure: str) -> None:
    with pytest.raises(js.InputError, match=cure):
        js.views.series(with_tokens(result, texts))


def test_digits_of_a_series_are_numbers(result: js.Attribution) -> None:
    """Blanks part numbers, nothing else does; the bar of two digits is the norm of both."""
    values, bars = js.views.series(with_tokens(result, ["<bos>", "2", "9", " 3", "0", " ", "4", "100"])).axes
    assert values.lines[0].get_ydata().tolist() == [29, 30, 4100]
    expected = [(2**2 + 3**2) ** 0.5, (4**2 + 5**2) ** 0.5, (7**2 + 8**2) ** 0.5]
    assert [patch.get_height() for patch in bars.patches] == pytest.approx(expected)


def test_prediction_shows_the_distribution_and_the_target(result: js.Attribution) -> None:
    figure = js.views.prediction(result, k=4)
    axis = figure.axes[0]
    assert [patch.get_width() for patch in axis.patches] == [t.probability for t in result.prediction.top[:4]]
    assert "(target)" in axis.get_yticklabels()[0].get_text()
    rare = dataclasses.replace(
        result, prediction=dataclasses.replace(result.prediction, target=js_token(result, 499), target_rank=400)
    )
    labels = [label.get_text() for label in js.views.prediction(rare, k=2).axes[0].get_yticklabels()]
    assert len(labels) == 3
    assert labels[2].endswith("(target)")


def js_token(result: js.Attribution, token: int) -> Any:
    return dataclasses.replace(result.prediction.target, token=token, str_token=" rare", probability=1e-9)


@pytest.mark.parametrize("k", [0, 11, True, "3", 2.5])
def test_bad_k(result: js.Attribution, k: Any) -> None:
    with pytest.raises(js.InputError, match="1 to 10"):
        inspect.unwrap(js.views.prediction)(result, k)


def test_heatmap_of_layers(pocket: Any) -> None:
    points = [f"blocks.{i}.hook_resid_pre" for i in range(4)]
    results = [js.attribute(pocket, PROMPT, "semantic", at=at) for at in points]
    axis, colours = js.views.heatmap(results).axes
    scores = torch.stack([r.scores for r in results])
    highest = scores[:, 1:].amax(1, keepdim=True)
    assert np.allclose(axis.images[0].get_array(), scores / highest)
    assert [label.get_text() for label in axis.get_yticklabels()] == points
    assert axis.images[0].norm.vmax == 1
    assert colours.get_ylabel() == "share of the highest"
    assert results[0].unit in said(axis.get_xlabel())
    assert [label.get_text() for label in axis.child_axes[0].get_yticklabels()] == [
        f"{top:.3g}" for top in highest[:, 0]
    ]
    assert "BOS is left out" in said(axis.get_title(loc="left"))


def said(text: str) -> str:
    """Text without its line breaks."""
    return " ".join(text.split())


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_heatmap_on_one_scale(pocket: Any, scale: str) -> None:
    layers = js.attribute(pocket, PROMPT, "semantic", at="resid_pre")
    axis, colours = js.views.heatmap(layers, scale=scale).axes
    assert np.allclose(axis.images[0].get_array(), layers.scores)
    assert axis.images[0].norm.vmax == pytest.approx(float(layers.scores[:, 1:].max()))
    assert colours.get_ylabel() == layers.unit + (", logarithmic" if scale == "log" else "")


@pytest.mark.slow
def test_heatmap_of_rows_on_logarithms(pocket: Any) -> None:
    layers = js.attribute(pocket, PROMPT, "semantic", at="resid_pre")
    image = js.views.heatmap(layers, scale="row_log").axes[0].images[0]
    shares = layers.scores / layers.scores[:, 1:].amax(1, keepdim=True)
    assert np.allclose(np.ma.filled(image.get_array(), 0), shares)
    assert (image.norm.vmin, image.norm.vmax) == (pytest.approx(1e-3, rel=1e-3), 1)
    with pytest.raises(js.InputError, match=r"scale is one of row, .*Did you mean 'linear'"):
        js.views.heatmap(layers, scale="linearly")


@pytest.mark.parametrize("words", [2, 6, 40])
def test_titles_and_labels_are_not_cut_off(pocket: Any, words: int) -> None:
    """All text lies inside the figure, and the title above its axes."""
    prompt = " ".join(["the"] * words)
    contrast = {"target": " liberal", "baseline": " conservative"}
    figure = js.views.heatmap(js.attribute(pocket, prompt, "contrastive", at="resid_pre", **contrast))
    figure.draw_without_rendering()
    axis = figure.axes[0]
    title = axis._left_title
    assert "target ' liberal' against ' conservative'" in said(title.get_text())
    assert "'<bos>' was prepended" in said(title.get_text())
    assert not any(
        line.endswith("'") and line.count("'") % 2 for line in title.get_text().split("\n")
    )  # no token is torn
    for text in (title, axis.xaxis.label, figure.axes[1].yaxis.label, *axis.get_xticklabels(), *axis.get_yticklabels()):
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    assert title.get_window_extent().x1 <= axis.bbox.x1
    assert title.get_window_extent().y0 >= axis.bbox.y1


def test_heatmap_names_what_differs(pocket: Any) -> None:
    results = [js.attribute(pocket, PROMPT, "semantic", position=p, target=" a") for p in (4, 9)]
    axis, _ = js.views.heatmap(results).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["position 4", "position 9"]
    targets = [js.attribute(pocket, PROMPT, "semantic", target=target) for target in (" liberal", " conservative")]
    axis, _ = js.views.heatmap(targets).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["target ' liberal'", "target ' conservative'"]
    with pytest.raises(js.InputError, match="one scope; these are entropy, log_prob"):
        js.views.heatmap([js.attribute(pocket, PROMPT, scope) for scope in ("log_prob", "entropy")])


def test_heatmap_of_predictions(result: js.Attribution) -> None:
    pattern = pattern_of(result)
    axis = js.views.heatmap(pattern, scale="log").axes[0]
    drawn = np.ma.filled(axis.images[0].get_array(), 0)
    assert np.allclose(np.nan_to_num(drawn), pattern.scores)
    with pytest.raises(js.InputError, match="in its own axes"):
        js.views.heatmap([pattern, result])
    assert "the predictions at 17 positions" in said(axis.get_title(loc="left"))
    one = dataclasses.replace(pattern, scores=pattern.scores[-1:], positions=(16,), targets=pattern.targets[-1:])
    assert "scope of the prediction at position 16" in said(js.views.heatmap(one).axes[0].get_title(loc="left"))


@pytest.mark.slow
def test_own_axes(numbers: js.Attribution, result: js.Attribution) -> None:
    figure, axes = plt.subplots(3)
    assert js.views.series(numbers, ax=axes[0]) is figure
    assert js.views.prediction(result, ax=axes[1]) is figure
    assert js.views.heatmap(result, ax=axes[2]) is figure
    plt.close(figure)
    for bad in (7, axes[:2], []):
        with pytest.raises(js.InputError, match="one matplotlib axes for each"):
            js.views.series(numbers, ax=bad)


def test_pyplot_keeps_no_figure(result: js.Attribution) -> None:
    before = plt.get_fignums()
    js.views.prediction(result)
    assert plt.get_fignums() == before


def test_dollars_are_no_mathematics(result: js.Attribution) -> None:
    nasty = with_tokens(result, ["<bos>", " $a", "b$ \\frac", " $\\foo$"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        js.views.heatmap(nasty).canvas.draw()


def test_zero_scores_can_be_drawn(result: js.Attribution) -> None:
    zero = dataclasses.replace(result, scores=torch.zeros_like(result.scores))
    for scale in ("row", "row_log", "linear", "log"):
        js.views.heatmap(zero, scale=scale).canvas.draw()


def test_linearity_draws_changes_and_errors(pocket: Any) -> None:
    found = js.diagnostics.linearity(pocket, "the keys to the cabinet", "log_prob", n_random=3, sizes=[0.01, 0.1, 1.0])
    changes, errors = js.views.linearity(found).axes
    drawn = {line.get_label(): line.get_ydata() for line in changes.lines}
    for part, kept in (("its own direction", slice(0, 1)), ("random directions", slice(1, 4))):
        for name in ("predicted", "actual"):
            expected = getattr(found, name)[kept].square().mean((0, 1)).sqrt()
            assert np.allclose(drawn[f"{name}, {part}"], expected)
    own, random = (line.get_ydata() for line in errors.lines[:2])
    assert np.allclose(own, found.own_error)
    assert np.allclose(random, found.random_error)
    assert found.unit in changes.get_ylabel()
    with pytest.raises(js.InputError, match=r"diagnostics.linearity returns; got a str"):
        inspect.unwrap(js.views.linearity)("text")


def test_faithfulness_draws_means_and_intervals(pocket: Any) -> None:
    prompts = js.pocket_prompts("assistant", 4)
    found = js.faithfulness.evaluate(pocket, prompts, ["random", "log_prob"], "known_cause")["known_cause"]
    figure = js.views.faithfulness(found)
    assert len(figure.axes) == len(found.columns)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == sorted(found.methods, key=lambda method: found.mean(method).mean)  # the best on top
    for axis, column in zip(figure.axes, found.columns, strict=True):
        for interval, point, name in zip(axis.lines[::2], axis.lines[1::2], names, strict=True):
            mean = found.mean(name, column.name)
            assert list(interval.get_xdata()) == [mean.low, mean.high]
            assert list(point.get_xdata()) == [mean.mean]
    with pytest.raises(js.InputError, match=r"js.faithfulness.evaluate returns for each measure; got a dict"):
        inspect.unwrap(js.views.faithfulness)({"known_cause": found})


def test_comparison_draws_effects_predictions_and_scores(pocket: Any) -> None:
    clean = "the small basket under the cups"
    result = js.patching.compare(
        pocket, clean, clean.replace("basket", "baskets"), "semantic", target=" is", only_top=2
    )
    figure = js.views.comparison(result)
    effect, predicted, score = figure.axes[:3]
    drawn = np.ma.filled(np.ma.masked_invalid(effect.images[0].get_array()), 7e7)
    assert np.allclose(drawn, result.effects.nan_to_num(7e7))
    assert np.allclose(predicted.images[0].get_array(), result.predicted)
    assert np.allclose(
        score.images[0].get_array(), result.scope.scores / result.scope.scores[:, 1:].amax(1, keepdim=True)
    )
    assert effect.images[0].norm.vmin == -effect.images[0].norm.vmax
    assert "basket < baskets 3" in [label.get_text() for label in score.get_xticklabels()]
    labels = [axis.get_ylabel() for axis in figure.axes[3:]]
    assert sorted(labels) == sorted([result.effect_unit, result.effect_unit, "share of the highest"])
    assert result.scope.unit in said(score.get_xlabel())
    with pytest.raises(js.InputError, match="takes the Comparison"):
        inspect.unwrap(js.views.comparison)(result.scope)
