"""The first token as an attention sink: said where it is conspicuous, left out of colour scales, never out of the numbers."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import jscope_tl as js
from jscope_tl.views.scale import row_scales, scale_of

PROMPT = "the keys to the cabinet near the doors"


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, PROMPT, "semantic", prepend_bos=False)


def scored(result: js.Attribution, scores: list[float], **more: Any) -> js.Attribution:
    return dataclasses.replace(result, scores=torch.tensor(scores), warnings=[], **more)


OTHERS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]  # median 4


@pytest.mark.parametrize(
    ("first", "others", "size"),
    [(12.0, OTHERS, 3.0), (11.9, OTHERS, None), (40.0, OTHERS, 10.0), (12.0, [*OTHERS[:-1], 36.0], 3.0),
     (12.0, [*OTHERS[:-1], 36.1], None), (0.0, [0.0] * 7, None)],
)  # fmt: skip
def test_three_times_the_median_and_a_third_of_the_highest(
    result: js.Attribution, first: float, others: list[float], size: float | None
) -> None:
    found = scored(result, [first, *others])
    assert found.sinks() == [size]
    assert found.off_scale == (() if size is None else (0,))
    assert len(found.sink_doubts()) == (size is not None)
    squared = scored(result, [s**2 for s in (first, *others)], unit="2 nats (KL) per unit of x squared")
    assert squared.sinks() == [size if size is None else pytest.approx(size)]


def test_norms_are_held_against_the_median_and_squares_against_the_total(result: js.Attribution) -> None:
    norms = scored(result, [40.0, *OTHERS])
    assert "' the', scores 10.0 times the median" in norms.sink_doubts()[0]
    squares = scored(result, [400.0, *[10.0] * 6, 40.0], unit="nat (KL)")
    assert "' the', has 80.0% of the total" in squares.sink_doubts()[0]


def test_only_without_a_bos_and_where_there_are_enough_tokens(pocket: Any, result: js.Attribution) -> None:
    with_bos = js.attribute(pocket, PROMPT, "semantic")
    assert with_bos.sinks() == [None]
    assert with_bos.off_scale == with_bos.bos_positions == (0,)
    early = dataclasses.replace(scored(result, [40.0, *OTHERS]), position=3)
    assert early.sinks() == [None]  # three others are too few


def test_it_stays_in_the_numbers(result: js.Attribution) -> None:
    found = scored(result, [40.0, *OTHERS])
    assert found.top(1)[0].position == 0
    assert found.by_row(1)[0][0].position == 0
    assert found.to_dataframe()["score"].iloc[0] == 40
    assert scale_of([found]).high == 7
    assert scale_of([found])(40.0) == 1
    assert "the first token is left out of the scale" in found._repr_html_()
    assert "first token" not in scored(result, [4.0, *OTHERS])._repr_html_()


def test_a_pattern_needs_half_of_its_rows(pocket: Any) -> None:
    pattern = js.influence_pattern(pocket, PROMPT, "semantic", range(4, 8), prepend_bos=False)
    strong, weak = [40.0, *OTHERS], [1.0, *OTHERS]
    for rows, sinks in (([strong, weak, strong, weak], 2), ([strong, weak, weak, weak], 0)):
        found = dataclasses.replace(pattern, scores=torch.tensor(rows).tril(4))
        assert sum(size is not None for size in found.sinks()) == sinks


def test_rows_of_maps_and_patterns(pocket: Any, result: js.Attribution) -> None:
    layers = js.attribute(pocket, PROMPT, "semantic", prepend_bos=False, at="resid_pre")
    scores = torch.tensor([OTHERS[:1] * 8, [40.0, *OTHERS], [1.0, *OTHERS], [1.0, *OTHERS]])
    found = dataclasses.replace(layers, scores=scores, warnings=[])
    assert found.sinks() == [None, 10.0, None, None]
    assert [scale.high for scale in row_scales(found)] == [1, 7, 7, 7]
    assert "is conspicuous in 1 of 4" in found.sink_doubts()[0]
    title = js.views.heatmap(found).axes[0].get_title(loc="left")
    assert "the first token is left out" in " ".join(title.split())


@pytest.mark.parametrize("make", [js.attribute, js.influence_pattern, js.spectrum])
def test_every_kind_of_result_says_so(pocket: Any, tmp_path: Path, make: Any) -> None:
    prompt = (
        "since the victim , a retired senator , died from a fatal wound , the detective narrowed down three weapons : "
        "a scalpel , a needle and a cleaver . the second was bloody . the killer is the"
    )
    found = make(pocket, prompt, prepend_bos=False)
    assert found.sinks()[-1] is not None
    assert found.warnings == found.sink_doubts()
    again = type(found).load(found.save(tmp_path / "r"))
    assert again.warnings == found.warnings
    assert again.off_scale == (0,)
