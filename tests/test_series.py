"""Number series as the paper's appendix A.2 defines them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
    assert prompt.spans == tuple((i, i + 1) for i in prompt.numbers)
    assert not prompt.split


@pytest.fixture
def by_digits(tmp_path: Path) -> Any:
    """As Qwen, Gemma and SmolLM2 read them."""
    return with_tokenizer(tmp_path, ["<unk>", ",", *DIGITS], pre_tokenizers.Split("", "isolated"))


def test_split_numbers_are_spans(by_digits: Any) -> None:
    prompt = series.prompt(by_digits, [29, 30, 33])
    said = [by_digits.tokenizer.decode([token]) for token in prompt.tokens.tolist()]
    assert ["".join(said[start:stop]) for start, stop in prompt.spans] == ["29", "30", "33"]
    assert prompt.numbers == tuple(stop - 1 for _, stop in prompt.spans)
    assert prompt.split
    assert prompt.text == "29,30,33,"


def test_numbers_in_one_token_are_preferred(tmp_path: Path) -> None:
    """Of the two ways of writing: here those between blanks are words of their own."""
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("29,30,", "isolated")])
    split = pre_tokenizers.Sequence([split, pre_tokenizers.Split(",", "isolated")])
    vocabulary = ["<unk>", ",", *DIGITS, "29", "30"]
    prompt = series.prompt(with_tokenizer(tmp_path, vocabulary, split), [29, 30])
    assert [stop - start for start, stop in prompt.spans] == [1, 1]


def test_merged_numbers_are_refused(tmp_path: Path) -> None:
    model = with_tokenizer(
        tmp_path, ["<unk>", "29,", "30,", "29", "30", " , "], pre_tokenizers.Split("30 ", "isolated")
    )
    with pytest.raises(js.InputError, match="does not separate the numbers of a series from the commas"):
        series.prompt(model, [29, 30])


def test_scores_of_numbers(by_digits: Any) -> None:
    """The norm of both digits' block, in all three ways to it; a sum of norms would be larger."""
    prompt = series.prompt(by_digits, [29, 30, 33])
    result = js.attribute(by_digits, prompt.tokens, "log_prob", target="35")
    expected = torch.stack([result.scores[start:stop].norm() for start, stop in prompt.spans])
    found, errors = result.together(prompt.spans)
    torch.testing.assert_close(found, expected)
    assert errors is None
    text = js.attribute_text(by_digits, prompt.text, "35", spans="message", by="word")
    places = [text.sources.index(next(s for s in text.sources if span[0] in s.positions)) for span in prompt.spans]
    torch.testing.assert_close(text.scores[0, places], expected, rtol=1e-4, atol=1e-6)
    heights = [patch.get_height() for patch in js.views.series(text).axes[1].patches]
    assert heights == pytest.approx(expected.tolist(), rel=1e-4)
    assert (expected < torch.stack([result.scores[start:stop].sum() for start, stop in prompt.spans])).all()


def test_squared_scores_add_up(by_digits: Any) -> None:
    prompt = series.prompt(by_digits, [29, 30, 33])
    result = js.attribute(by_digits, prompt.tokens, "fisher", method="sampled", rank=1, probes=4)
    found, errors = result.together(prompt.spans)
    torch.testing.assert_close(found, torch.stack([result.scores[a:b].sum() for a, b in prompt.spans]))
    assert result.stderr is not None
    torch.testing.assert_close(errors, torch.stack([result.stderr[a:b].sum() for a, b in prompt.spans]))


def test_errors_of_norms_are_bounds(by_digits: Any) -> None:
    """First order: moving every score by its error moves the norm by no more than the error of the norm."""
    result = js.attribute(by_digits, series.prompt(by_digits, [29, 30, 33]).tokens, "log_prob")
    result = replace(result, stderr=1e-4 * result.scores.flip(0))
    (norm,), errors = result.together([(0, 4)])
    (moved,), _ = replace(result, scores=result.scores + result.stderr).together([(0, 4)])
    assert errors is not None
    assert float(errors) == pytest.approx(float(moved - norm), rel=2e-2)


@pytest.mark.parametrize(
    ("how", "spans", "says"),
    [
        ({"scope": "log_prob"}, [(0, 99)], "outside the prompt of"),
        ({"scope": "log_prob"}, [], "There are no spans"),
        ({"scope": "log_prob", "reduction": "dot"}, [(0, 2)], "the sum of C J_t x_t with its sign"),
        ({"scope": "fisher_input", "method": "exact"}, [(0, 2)], "the sum of C J_t x_t with its sign"),
        ({"scope": "spectral"}, [(0, 2)], "the largest gain of their concatenated rows"),
    ],
)
def test_what_is_not_taken_together(by_digits: Any, how: dict[str, Any], spans: Any, says: str) -> None:
    result = js.attribute(by_digits, series.prompt(by_digits, [29, 30, 33]).tokens, **how)
    with pytest.raises(js.InputError, match=says):
        result.together(spans)
    torch.testing.assert_close(result.together([(0, 1), (3, 4)])[0], result.scores[[0, 3]])


def test_a_ring_is_a_whole_number(by_digits: Any) -> None:
    """Not the first digit of one."""
    prompt = series.prompt(by_digits, [29, 30, 33])
    first = js.attribute(by_digits, prompt.tokens, "log_prob", target="3")
    whole = js.attribute(by_digits, prompt.tokens, "log_prob", target="35")
    assert js.views.series(first).axes[0].get_legend() is None
    (ring,) = [line for line in js.views.series(whole).axes[0].lines if line.get_marker() == "o"]
    assert (ring.get_xdata(), ring.get_ydata()) == ([3], [35])


@pytest.mark.parametrize("values", [[], [3, 4], [100], [20.5], "29", [[20, 30]]])
def test_other_things_are_no_series(llama: Any, values: Any) -> None:
    with pytest.raises(js.InputError, match="integers from 10 to 99"):
        series.prompt(llama, values)


def test_drift() -> None:
    slopes = np.diff(series.drifting(2000, np.random.default_rng(0), 0.4))
    assert slopes.mean() == pytest.approx(0.4, rel=0.02)
