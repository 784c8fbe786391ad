"""`by_target`: the strongest source tokens of each explained target of a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from jscope_tl.corpus.dataset import CorpusRun
from jscope_tl.corpus.means import Means
from jscope_tl.corpus.passes import Counts, made, need_run, rows_of_means
from jscope_tl.corpus.summaries import LEAST, ids_of_tokens
from jscope_tl.corpus.summary import EVEN, Summary, SummaryRow, need_rows_left
from jscope_tl.corpus.tokens import COLUMNS
from jscope_tl.errors import InputError, count, whole


def by_target(
    run: CorpusRun,
    targets: int | Sequence[str] = 10,
    *,
    k: int = 5,
    least: int = LEAST,
    chance: str = EVEN,
    off_scale: bool = False,
) -> Summary:
    """The strongest sources of each target: tokens by their influence in the prompts in which this target is explained.

    Args:
        run: a run, from `jscope_tl.corpus.open`.
        targets: the number of targets, the most frequent ones, or the texts of the targets.
        k: the number of sources of each target that score above chance, ranked by the lower limit of the interval of ``ratio``.
        least: the fewest prompts of the target that must have a source, 2 or more.
        chance: the expected score that corresponds to a ``ratio`` of 1, as in `jscope_tl.corpus.by_token`.
        off_scale: whether BOS, and a first token that is an attention sink, are counted.

    Returns:
        A `Summary` whose rows have the target as their ``group``.

    Raises:
        InputError: a target is not in the run, ``chance`` is unknown, or no row has scores.
    """
    k, least = count("k", k, 1), count("least", least, 2)
    chosen = _targets(run, targets)
    texts: dict[int, str] = {}
    apart = {target: Means(4) for target in chosen}
    counts = Counts(run, off_scale, chance)
    for batch in run.batches(COLUMNS):
        tokens = counts.count(batch)
        ids, of_row = (
            ids_of_tokens(batch, tokens, texts),
            pc.fill_null(batch.column("target"), -1).to_numpy(zero_copy_only=False),
        )
        for target, means in apart.items():
            means.add_tokens(np.where(of_row[tokens.row] == target, ids, -1), tokens)
    need_rows_left(counts.n, counts.n_errors, repr(str(run.folder)))
    rows: list[SummaryRow] = []
    for target, text in chosen.items():
        listed = {i: repr(texts[i]) for i in np.flatnonzero(apart[target].n >= least).tolist()}
        rows += [row for row in rows_of_means(apart[target], listed, ranked=True, group=text) if row.ratio.mean > 1][:k]
    few = [text for text in chosen.values() if text not in {row.group for row in rows}]
    notes = [f"sources are listed if they are in {least} or more prompts of their target and score above chance"]
    notes += [f"{len(few)} targets have no such source: {', '.join(map(repr, few[:5]))}"] if few else []
    return made(run, "source", rows, counts, notes)


def _targets(run: Any, targets: int | Sequence[str]) -> dict[int, str]:
    """Ids and texts of the requested targets, the most frequent first."""
    need_run(run)
    counts: dict[int, int] = {}
    texts: dict[int, str] = {}
    for batch in run.batches(["target", "target_str"]):
        ids, n = np.unique(batch.column("target").drop_null().to_numpy(zero_copy_only=False), return_counts=True)
        for token, times in zip(ids.tolist(), n.tolist(), strict=True):
            counts[token] = counts.get(token, 0) + times
        texts |= dict(zip(batch.column("target").to_pylist(), batch.column("target_str").to_pylist(), strict=True))
    ordered = sorted(counts, key=lambda token: (-counts[token], token))
    if (n_asked := whole(targets)) is not None:
        return {token: texts[token] for token in ordered[: count("targets", n_asked, 1)]}
    asked = [targets] if isinstance(targets, str) else list(targets)  # type: ignore[arg-type]
    known = {texts[token] for token in ordered}
    if missing := [text for text in asked if text not in known]:
        raise InputError(f"No prompt of this run has the target {missing[0]!r}; the most frequent are "
                         f"{', '.join(repr(texts[token]) for token in ordered[:5])}.")  # fmt: skip
    return {token: texts[token] for token in ordered if texts[token] in asked}
