"""Runs written with plain pyarrow, to be read: made of attributions, and made up."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import jscope_tl as js
from jscope_tl.corpus.schema import ROW, SETTINGS


def row_of(id: str, result: js.Attribution) -> dict[str, Any]:
    target = result.prediction.target
    return {
        "id": id, "position": result.position, "tokens": result.tokens.tolist(), "str_tokens": result.str_tokens,
        "scores": result.scores.tolist(), "stderr": None if result.stderr is None else result.stderr.tolist(),
        "off_scale": list(result.off_scale), "target": target.token, "target_str": target.str_token, "probability": target.probability,
        "rank": result.prediction.target_rank - 1, "entropy": None, "n_forward": 1, "n_backward": 1, "warnings": result.warnings,
        "error": None, "carried": None,
    }  # fmt: skip


def failed(id: str, error: str) -> dict[str, Any]:
    return {**dict.fromkeys(ROW.names), "id": id, "error": error, "carried": '{"source": "a"}'}


def written(folder: Path, rows: Sequence[dict[str, Any]], n_parts: int = 1, **settings: Any) -> Path:
    """The rows as a run's files."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"scope": "temperature", "model": "made up", "unit": "‖y‖ per unit of x", **settings}
    (folder / SETTINGS).write_text(json.dumps(told))
    for part, of_part in enumerate(np.array_split(np.arange(len(rows)), n_parts) if n_parts else []):
        table = pa.Table.from_pylist([rows[i] for i in of_part], ROW)
        pq.write_table(table, folder / f"part-0-{part:05d}.parquet", row_group_size=7)
    return folder


def attributed(
    folder: Path, model: Any, prompts: Iterable[str], scope: str = "temperature", n_parts: int = 1, **options: Any
) -> Path:
    """A run of real scores, with one row that has an error."""
    results = list(js.attribute_batch(model, list(prompts), scope, progress=False, **options))
    rows = [row_of(str(i), result) for i, result in enumerate(results)]
    return written(folder, [*rows, failed("bad", "the prompt is empty")], n_parts, scope=scope, unit=results[0].unit)


def made_up(n: int, seed: int = 0, vocabulary: int = 12, longest: int = 30) -> list[dict[str, Any]]:
    """Rows of random scores and lengths; the first token is off the scale in every second."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        length = int(rng.integers(3, longest))
        tokens = rng.integers(1, vocabulary, length).tolist()
        target = int(rng.integers(1, 4))
        rows.append({
            **dict.fromkeys(ROW.names), "id": str(i), "position": length - 1 - int(rng.integers(0, 2)), "tokens": tokens,
            "str_tokens": [f" w{token}" for token in tokens], "scores": rng.exponential(size=length).astype(np.float32).tolist(),
            "off_scale": [0] if i % 2 else [], "target": target, "target_str": f" w{target}", "probability": float(rng.uniform()),
            "rank": 0, "warnings": [], "n_forward": 1, "n_backward": 1, "entropy": 1.0,
        })  # fmt: skip
    return rows
