"""On a real language model: what a pocket model cannot show."""

from typing import Any

import pytest
import torch

import jscope_tl as js

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPT = "When Mary and John went to the store, John gave a drink to"


def test_the_model_predicts_as_one_that_has_learned_english(smollm2: Any) -> None:
    result = js.attribute(smollm2, PROMPT, "contrastive", target=" Mary", baseline=" John")

    assert result.predictions[0].str_token == " Mary"
    assert torch.isfinite(result.scores).all()
