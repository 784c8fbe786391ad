"""From lines to rows: prompts of similar length share passes, as many as memory allows. A prompt that fails has a row with its error."""

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Any

import torch

from jscope_tl.attribution.attribute import explain_target
from jscope_tl.attribution.batch import Numbered, can_run_together, explain_together
from jscope_tl.attribution.span import several_tokens
from jscope_tl.corpus.prompts import Line
from jscope_tl.corpus.questions import Question, explained, failed
from jscope_tl.engine.memory import LiveBytes, available_bytes, is_out_of_memory
from jscope_tl.errors import InputError
from jscope_tl.results.attribution import Attribution

READ_AHEAD = 256
"""The number of lines that are read at once and sorted by length."""
CPU_TOKENS = 512
"""The number of tokens of a batch on a CPU, where larger batches are not faster."""
SHARE = 0.5
"""The share of the free memory that a batch may use."""
GIVE_UP = 10
"""The number of consecutive unexpected errors after which the run stops, because the cause is probably not in the prompts."""


@dataclass
class Budget:
    """The number of tokens in one pass, including padding, as estimated from the passes so far.

    Attributes:
        tokens: the largest number; None: not known before the first prompt was measured.
        length: the length of the prompt that was measured. The memory of a pass grows at least linearly with the length, and at most
            with its square.
    """

    tokens: int | None
    length: int | None = None

    def size(self, longest: int) -> int:
        """The number of prompts of that length in one pass."""
        grown = max(1.0, longest / self.length) if self.length else 1.0
        return max(1, int((self.tokens or 1) / (longest * grown)))

    def less(self, batch: Sequence[Numbered]) -> None:
        """Halve the budget after a batch ran out of memory."""
        self.tokens = max(1, len(batch) * max(len(one.tokens) for one in batch) // 2)


Asked = list[tuple[Line, Numbered]]


@dataclass
class Explaining:
    """Explains lines. It keeps an estimate of the memory, and counts unexpected errors.

    Attributes:
        question: the settings of the run.
        budget: the number of tokens in a pass.
    """

    question: Question
    budget: Budget
    _unforeseen: int = 0

    def rows(self, lines: Iterable[Line]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The number of each line and its row, in the order in which they are explained."""
        lines, together = iter(lines), can_run_together(self.question.setup)
        while block := list(islice(lines, READ_AHEAD)):
            asked: Asked = []
            for line in block:
                try:
                    asked.append((line, self.question.of(line)))
                except InputError as error:
                    yield line.n, self._failed(line, error)
            asked.sort(key=lambda pair: -len(pair[1].tokens))  # the longest first, which need the most memory
            for batch in self._batches(asked) if together else ([one] for one in asked):
                yield from self._explained(batch)

    def _batches(self, asked: Asked) -> Iterator[Asked]:
        """Batches of prompts with one target token each; a prompt whose target has several tokens is a batch by itself."""
        alike = []
        for pair in asked:
            if several_tokens(pair[1].setup) is None:
                alike.append(pair)
            else:
                yield [pair]
        while alike:
            size = self.budget.size(len(alike[0][1].tokens)) if self.budget.tokens else 1
            yield alike[:size]
            alike = alike[size:]

    def _explained(self, batch: Asked) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of a batch. If it fails, each half is tried again, down to the prompt that causes the error."""
        try:
            found = self._run([asked for _, asked in batch])
        except (InputError, Exception) as error:
            failure = self._blamed(error, [asked for _, asked in batch])
        else:
            self._unforeseen = 0
            for (line, asked), result in zip(batch, found, strict=True):
                yield line.n, explained(line, result, asked.setup.scope)
            return
        if len(batch) == 1:
            yield batch[0][0].n, failed(batch[0][0], failure, self.question.setup.scope)
            return
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            yield from self._explained(half)

    def _run(self, batch: Sequence[Numbered]) -> list[Attribution]:
        if len(batch) > 1:
            return explain_together(batch)
        one = batch[0]
        if self.budget.tokens is None:
            return [self._measured(one)]
        return [explain_target(one.setup, one.tokens, one.position)]

    def _measured(self, one: Numbered) -> Attribution:
        """Explain the first prompt, and estimate from its memory how many tokens fit into a pass."""
        device, n = one.tokens.device, len(one.tokens)
        with LiveBytes() as meter:
            found = explain_target(one.setup, one.tokens, one.position)
        free = available_bytes(device)  # infinite where the system does not tell
        fits = SHARE * free / max(1, meter.peak) * n if meter.peak else CPU_TOKENS
        self.budget.tokens = int(min(fits, CPU_TOKENS) if device.type == "cpu" or free == inf else fits)
        self.budget.length = n
        return found

    def _blamed(self, error: Exception, batch: Sequence[Numbered]) -> str:
        """The error message for a row. An unexpected error is raised if there are too many in succession."""
        reason = str(error)
        if is_out_of_memory(error):
            self.budget.less(batch)
            reason = f"There is too little memory for this prompt of {len(batch[0].tokens)} tokens."
        elif not isinstance(error, InputError):
            self._unforeseen += len(batch) == 1
            if self._unforeseen >= GIVE_UP:
                raise error
            reason = f"{type(error).__name__}: {' '.join(reason.split())[:300]}"
        if torch.cuda.is_available():
            error.__traceback__ = None  # the traceback keeps tensors alive
            gc.collect()
            torch.cuda.empty_cache()
        return reason

    def _failed(self, line: Line, error: InputError) -> dict[str, Any]:
        return failed(line, str(error), self.question.setup.scope)
