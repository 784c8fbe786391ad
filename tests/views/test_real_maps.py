"""What a pocket model cannot show of maps: thirty layers, a BOS that changes the ranking, a first word that is a sink."""

from typing import Any

import numpy as np
import pytest

import jscope_tl as js

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.newest_line]

PROMPT = "Tom loves Korean food. He grew up in the South and goes to Columbia. He is a"
PAIR = "When Mary and John went to the store, John gave a drink to"


def tinted(figure: Any) -> int:
    """Rows of a map with three cells or more that can be told from white."""
    image = figure.axes[0].images[0]
    return int((np.ma.filled(image.norm(image.get_array()), 0) > 0.1).sum(1).__ge__(3).sum())


def test_rows_of_a_map_are_not_blank(smollm2: Any) -> None:
    layers = js.attribute(smollm2, PROMPT, "semantic", target=" liberal", at="resid_pre")
    assert tinted(js.views.heatmap(layers, scale="linear")) == 1
    assert tinted(js.views.heatmap(layers)) >= 20
    assert tinted(js.views.heatmap(layers, scale="row_log")) == 30
    assert repr(layers).count("hook_resid_pre: ") == 12
    assert "(12 of 30 layers; by_row() has all)" in repr(layers)


def test_a_bos_that_was_prepended_is_named(smollm2: Any) -> None:
    """It swaps the two strongest tokens of this prompt."""
    contrast = {"target": " Mary", "baseline": " John"}
    without, with_bos = (js.attribute(smollm2, PAIR, "semantic", target=" Mary", prepend_bos=b) for b in (False, True))
    assert with_bos.headline().endswith("; '<|im_start|>' was prepended")
    assert "prepended" not in without.headline()
    assert [token.str_token for token in without.top(2)] == [token.str_token for token in with_bos.top(2)][::-1]
    headline = js.attribute(smollm2, PAIR, "contrastive", **contrast).headline()
    assert "target ' Mary' against ' John'" in headline


def test_a_first_word_is_a_sink_whatever_is_asked(smollm2: Any) -> None:
    for scope in ("semantic", "random_direction"):
        result = js.attribute(smollm2, PROMPT, scope, prepend_bos=False)
        assert "'Tom', scores" in result.warnings[-1]
        assert js.attribute(smollm2, PROMPT, scope, prepend_bos=True).sink_doubts() == []
