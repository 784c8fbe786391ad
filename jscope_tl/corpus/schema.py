"""The columns of a run, which has one row for each explained prediction."""

import pyarrow as pa

PARTS = "part-*.parquet"
"""The files of a run, in its folder."""
SETTINGS = "run.json"
"""The file with everything that determines the numbers."""

ROW = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("position", pa.int32()),
        pa.field("tokens", pa.list_(pa.int32())),
        pa.field("str_tokens", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float32())),
        pa.field("stderr", pa.list_(pa.float32())),
        pa.field("off_scale", pa.list_(pa.int32())),
        pa.field("target", pa.int32()),
        pa.field("target_str", pa.string()),
        pa.field("probability", pa.float64()),
        pa.field("rank", pa.int32()),
        pa.field("entropy", pa.float64()),
        pa.field("n_forward", pa.int32()),
        pa.field("n_backward", pa.int32()),
        pa.field("warnings", pa.list_(pa.string())),
        pa.field("error", pa.string()),
        pa.field("carried", pa.string()),
    ]
)
"""Columns of a row.

- ``id``: the id of the prompt, unique in a run.
- ``position``: the position whose next-token prediction is explained, counted from 0.
- ``tokens``, ``str_tokens``: the tokens of the whole prompt, including BOS.
- ``scores``, ``stderr``: the scores of the tokens, in the run's unit, and their standard errors, which are null if scores are exact.
- ``off_scale``: positions that colour scales and summaries leave out (BOS; a first token that is an attention sink).
- ``target``, ``target_str``: the explained token, or the most probable one if the scope has no target; with its ``probability`` and
  ``rank`` (0 for the most probable).
- ``entropy``: the entropy of the predicted distribution, in nats.
- ``n_forward``, ``n_backward``: the number of passes.
- ``warnings``: sentences about the limits of these numbers.
- ``error``: why there is no explanation; then all columns but ``id`` and ``carried`` may be null.
- ``carried``: the other values of the prompt's line, as JSON.
"""
