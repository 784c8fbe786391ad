"""Number series as the paper's appendix A.2 defines them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import jscope_tl as js
from jscope_tl.pocket import series
from tests.models import ANY_KIND, tiny

KINDS = [series.lorenz, series.logistic_map, series.brownian, series.sine]


@pytest.mark.parametrize("kind", KINDS)
def test_integers_fill_the_papers_range(kind: object) -> None:
    values = kind(172, np.random.default_rng(0))  # type: ignore[operator]
    integers = series.to_integers(values)
    assert (integers.min(), integers.max()) == (14, 84)
    assert np.corrcoef(values, integers)[0, 1] > 0.999
    np.testing.assert_array_equal(values, kind(172, np.random.default_rng(0)))  # type: ignore[operator]


def test_a_constant_series_is_the_middle() -> None:
    assert set(series.to_integers(np.ones(5)).tolist()) == {49}


def test_lorenz_solves_the_equations() -> None:
    """Steps of a tenth of the size follow the same path for a while: the scheme is first-order, its error linear in dt."""
    x0 = series.lorenz(40, np.random.default_rng(3))
    fine = series.lorenz(400, np.random.default_rng(3), dt=0.002)[::10]
    finer = series.lorenz(4000, np.random.default_rng(3), dt=0.0002)[::100]
    coarse_error, fine_error = np.abs(x0 - finer).max(), np.abs(fine - finer).max()
    assert 5 < coarse_error / fine_error < 20
    assert np.allclose(series.lorenz(9, np.random.default_rng(3), drift=0.2), x0[:9] + 0.2 * np.arange(9))


def test_logistic_map_iterates() -> None:
    x = series.logistic_map(50, np.random.default_rng(0))
    np.testing.assert_allclose(x[1:], 3.8 * x[:-1] * (1 - x[:-1]))


def test_brownian_steps() -> None:
    steps = np.diff(series.brownian(20001, np.random.default_rng(0)))
    assert steps.std() == pytest.approx(0.1 * 0.1**0.5, rel=0.03)
    assert abs(np.corrcoef(steps[1:], steps[:-1])[0, 1]) < 0.03


def test_a_prompt_has_one_token_for_each_number(llama: Any) -> None:
    values = series.to_integers(series.lorenz(20, np.random.default_rng(0)))
    prompt = series.prompt(llama, values)
    said = [llama.tokenizer.decode([token]) for token in prompt.tokens.tolist()]
    assert [int(said[i]) for i in prompt.numbers] == values.tolist()
    assert said[-1].strip() == ","
    assert said[0] == llama.tokenizer.bos_token


def with_tokenizer(folder: Path, vocabulary: list[str], split: Any) -> Any:
    model = tiny(ANY_KIND, "llama").model
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = split
    special = dict(
        unk_token="<unk>", pad_token="<unk>", eos_token="<unk>"
    )  # with a BOS, TransformerLens looks for files
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    model.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return model


DIGITS = [str(n) for n in range(10)]


def test_numbers_without_spaces(tmp_path: Path) -> None:
    """As LLaMA 3 reads them."""
    model = with_tokenizer(tmp_path, ["<unk>", ",", *map(str, range(10, 100))], pre_tokenizers.Punctuation())
    prompt = series.prompt(model, [29, 30, 31])
    assert [model.tokenizer.decode([prompt.tokens[i]]) for i in prompt.numbers] == ["29", "30", "31"]


def test_split_numbers_are_refused(tmp_path: Path) -> None:
    """As Qwen and Gemma read them."""
    model = with_tokenizer(tmp_path, ["<unk>", ",", *DIGITS], pre_tokenizers.Split("", "isolated"))
    with pytest.raises(js.InputError, match="does not make one token of each two-digit number"):
        series.prompt(model, [29, 30, 31])


@pytest.mark.parametrize("values", [[], [3, 4], [100], [20.5], "29", [[20, 30]]])
def test_other_things_are_no_series(llama: Any, values: Any) -> None:
    with pytest.raises(js.InputError, match="integers from 10 to 99"):
        series.prompt(llama, values)


def test_drift() -> None:
    slopes = np.diff(series.drifting(2000, np.random.default_rng(0), 0.4))
    assert slopes.mean() == pytest.approx(0.4, rel=0.02)
