"""Lines in, rows out: prompts of like length share passes, as many as memory allows, and one that fails is a row too."""

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
"""Lines among which prompts of like length are looked for."""
CPU_TOKENS = 512
"""Of a batch on a CPU, where more are not faster."""
SHARE = 0.5
"""Of the memory that is free."""
GIVE_UP = 10
"""Errors in a row that nobody foresaw, after which it is not the prompts that are wrong."""


@dataclass
class Budget:
    """How many tokens go into one pass, padding included; what was learnt from passes so far.

    Attributes:
        tokens: the most; None: not known before the first prompt was measured.
        length: of the prompt that was measured; a pass takes memory that grows with the length at least, and with its square at most.
    """

    tokens: int | None
    length: int | None = None

    def size(self, longest: int) -> int:
        """How many prompts of that length."""
        grown = max(1.0, longest / self.length) if self.length else 1.0
        return max(1, int((self.tokens or 1) / (longest * grown)))

    def less(self, batch: Sequence[Numbered]) -> None:
        """After memory ran out: half of what was tried."""
        self.tokens = max(1, len(batch) * max(len(one.tokens) for one in batch) // 2)


Asked = list[tuple[Line, Numbered]]


@dataclass
class Explaining:
    """Explains lines; keeps what it learns about memory, and counts what went wrong without a reason.

    Attributes:
        question: what is asked.
        budget: tokens of a pass.
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
        """Batches of prompts with one target token each; a target of several tokens has passes of its own."""
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
        """Rows of a batch; where it fails, those of its halves, down to the prompt that is to blame."""
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
        """The first prompt, and what it says about the memory of the others."""
        device, n = one.tokens.device, len(one.tokens)
        with LiveBytes() as meter:
            found = explain_target(one.setup, one.tokens, one.position)
        free = available_bytes(device)  # infinite where the system does not tell
        fits = SHARE * free / max(1, meter.peak) * n if meter.peak else CPU_TOKENS
        self.budget.tokens = int(min(fits, CPU_TOKENS) if device.type == "cpu" or free == inf else fits)
        self.budget.length = n
        return found

    def _blamed(self, error: Exception, batch: Sequence[Numbered]) -> str:
        """The reason for a row; an error that nobody foresaw is raised when there are many in a row."""
        said = str(error)
        if is_out_of_memory(error):
            self.budget.less(batch)
            said = f"There is too little memory for this prompt of {len(batch[0].tokens)} tokens."
        elif not isinstance(error, InputError):
            self._unforeseen += len(batch) == 1
            if self._unforeseen >= GIVE_UP:
                raise error
            said = f"{type(error).__name__}: {' '.join(said.split())[:300]}"
        if torch.cuda.is_available():
            error.__traceback__ = None  # which keeps what was allocated alive
            gc.collect()
            torch.cuda.empty_cache()
        return said

    def _failed(self, line: Line, error: InputError) -> dict[str, Any]:
        return failed(line, str(error), self.question.setup.scope)
