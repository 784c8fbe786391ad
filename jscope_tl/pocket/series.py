"""Number series of the paper (section 3.3, appendix A.2) and their form as two-digit integers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError, whole
from jscope_tl.model.prompts import to_str_tokens, to_tokens
from jscope_tl.model.view import ModelView

Series = Float[np.ndarray, "time"]
SEPARATORS = (",", " , ")


def lorenz(n: int, rng: np.random.Generator, dt: float = 0.02, drift: float = 0.0) -> Series:
    r"""First coordinate of the Lorenz system, σ = 10, ρ = 28, β = 8/3, by a first-order explicit scheme.

    The orbit starts at ``(U(0, 0.3), 2.01, 23.02)`` as in the paper.

    Args:
        n: the number of values.
        rng: the random generator.
        dt: the time step.
        drift: a constant that is added at every step.
    """
    x, y, z = rng.uniform(0.0, 0.3), 2.01, 23.02
    values = np.empty(n)
    for i in range(n):
        values[i] = x + drift * i
        x, y, z = x + dt * 10 * (y - x), y + dt * (x * (28 - z) - y), z + dt * (x * y - 8 / 3 * z)
    return values


def logistic_map(n: int, rng: np.random.Generator, r: float = 3.8) -> Series:
    """Iterates of ``x -> r x (1 - x)`` from a uniform start.

    Args:
        n: the number of values.
        rng: the random generator.
        r: the parameter of the map, which is chaotic at the paper's value 3.8.
    """
    values = np.empty(n)
    x = rng.uniform(0.05, 0.95)
    for i in range(n):
        values[i] = x
        x = r * x * (1 - x)
    return values


def brownian(n: int, rng: np.random.Generator, dt: float = 0.1, sigma: float = 0.1) -> Series:
    """Standard Brownian motion: the sum of normal steps of size ``sigma * sqrt(dt)``.

    Args:
        n: the number of values.
        rng: the random generator.
        dt: the time step.
        sigma: the standard deviation of the motion after time 1.
    """
    return np.cumsum(rng.normal(0.0, sigma * np.sqrt(dt), n))


def sine(n: int, rng: np.random.Generator) -> Series:
    """A sine of random period (6 to 30 steps) and phase; in half of the cases, a second one of smaller amplitude is added.

    Args:
        n: the number of values.
        rng: the random generator.
    """
    t = np.arange(n)
    values = np.sin(2 * np.pi * (t / rng.uniform(6, 30) + rng.uniform()))
    if rng.uniform() < 0.5:
        values += rng.uniform(0.2, 0.6) * np.sin(2 * np.pi * (t / rng.uniform(6, 30) + rng.uniform()))
    return values


def to_integers(values: Any) -> Int[np.ndarray, "time"]:
    """Scale a series to the integers 14..84 of the paper's prompts: ``100 ((x - min) / (max - min) 0.7 + 0.15) - 1``.

    Args:
        values: one or more finite numbers.

    Raises:
        InputError: ``values`` is not a series of finite numbers.

    Example:
        >>> to_integers(np.array([0.0, 1.0, 2.0])).tolist()
        [14, 49, 84]
    """
    try:
        values = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"A series must be one or more numbers; got {values!r}.") from error
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(f"A series must be a flat list of one or more finite numbers; got {values!r}.")
    low, high = values.min(), values.max()
    unit = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    return np.rint(100 * (unit * 0.7 + 0.15)).astype(int) - 1


@dataclass(frozen=True, eq=False)
class SeriesPrompt:
    """A number series as the prompt of a model.

    A tokenizer has one token for a two-digit number (LLaMA 3, GPT-2), or one token for each digit (Qwen, Gemma, SmolLM2).

    Attributes:
        tokens: the ids, with BOS if the model prepends one, and with a comma after every number; the model predicts the first token
            of the next number at the last position.
        numbers: the position of the last token of each number, which is its only token if numbers are not split.
        spans: for each number, the first position and the position after the last, for `Attribution.together`.
        text: the prompt as a string, for `jscope_tl.attribute_text`; its words (``by="word"``) are numbers and commas.
    """

    tokens: Int[Tensor, "pos"]
    numbers: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    text: str

    @property
    def split(self) -> bool:
        """Whether at least one number has several tokens."""
        return any(stop - start > 1 for start, stop in self.spans)


def prompt(model: Any, integers: Any) -> SeriesPrompt:
    """The paper's prompt of a series: two-digit integers and commas, with a comma at the end.

    The format is ``29,30,31,`` or ``29 , 30 , 31 ,`` (for tokenizers that need spaces between words): the one in which every number is
    one token, else the first one in which tokens do not cross numbers. If numbers have several tokens, the score of a number is the norm
    of its concatenated rows, not a sum of norms, and the next number is explained as a span:
    ``js.attribute(model, prompt.tokens, "log_prob", target="35")`` or, for any scope,
    ``js.attribute_text(model, prompt.text, "35", scope="temperature", spans="message", by="word")``.

    Args:
        model: the model whose tokenizer is used.
        integers: integers from 10 to 99, such as those of `to_integers`.

    Raises:
        InputError: the numbers are not two-digit integers, or the tokenizer merges a number with its neighbours into one token.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = js.series.prompt(model, [29, 30, 31])
        >>> prompt.numbers, prompt.spans[0], prompt.text
        ((1, 3, 5), (1, 2), '29,30,31,')
        >>> js.attribute(model, prompt.tokens, "temperature").together(prompt.spans)[0].shape
        torch.Size([3])
    """
    given = [whole(item) for item in integers] if isinstance(integers, Iterable) else []
    values = [number for number in given if number is not None and 10 <= number <= 99]
    if not values or len(values) < len(given):
        raise InputError(
            f"A series must be one or more integers from 10 to 99, such as those of series.to_integers; got {integers!r}."
        )
    view = ModelView(model)
    tried, read = [], []
    for separator in SEPARATORS:
        text = separator.join(map(str, values)) + separator.rstrip()
        tokens = to_tokens(view, text)
        said = to_str_tokens(view, tokens.tolist())
        spans = _spans(said, values)
        if spans:
            read.append(SeriesPrompt(tokens.cpu(), tuple(stop - 1 for _, stop in spans), spans, text))
        tried.append(said)
    if not read:
        raise InputError(
            f"The tokenizer of {view.name} does not separate the numbers of a series from the commas: {values[0]} and the following "
            f"text become {tried[0][:8]}. Use a model in which no token contains more than one number or a part of it."
        )
    return next((found for found in read if not found.split), read[0])


def _spans(said: Sequence[str], values: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The span of each number, found from the end because BOS may come first; empty if a token contains more than one part."""
    spans, stop = [], len(said)
    for value in reversed(values):
        stop = _beginning(said, ",", stop)
        start = _beginning(said, str(value), stop)
        if start == stop:
            return ()
        spans.append((start, stop))
        stop = start
    return tuple(reversed(spans))


def _beginning(said: Sequence[str], part: str, stop: int) -> int:
    """The first of the tokens before ``stop`` that together are ``part``; ``stop`` itself if there are none."""
    for start in range(stop - 1, -1, -1):
        text = "".join(said[start:stop]).strip()
        if text == part:
            return start
        if not part.endswith(text):
            break
    return stop


def drifting(n: int, rng: np.random.Generator, step: float = 0.2) -> Series:
    """A uniform drift with small noise: the paper's straight lines of slope 0.2, 0.4, 0.6.

    Args:
        n: the number of values.
        rng: the random generator.
        step: the slope; the noise is a tenth of it.
    """
    return step * np.arange(n) + rng.normal(0.0, 0.1 * step, n)
