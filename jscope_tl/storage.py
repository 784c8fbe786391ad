"""Attributions as files: one safetensors file, tensors as tensors and the rest as JSON in the header."""

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from jscope_tl.errors import InputError
from jscope_tl.result import Attribution, PredictedToken, Prediction, Provenance
from jscope_tl.state import Basis

SCHEMA = 1
FORMAT = "jscope_tl.attribution"


def as_dict(result: Attribution) -> dict[str, Any]:
    """Everything but the tensors, in types that JSON has."""
    rest = {
        "str_tokens": result.str_tokens,
        "position": result.position,
        "scope": result.scope,
        "options": result.options,
        "unit": result.unit,
        "prediction": asdict(result.prediction),
        "basis": asdict(result.basis),
        "provenance": asdict(result.provenance),
        "warnings": result.warnings,
        "bos_positions": list(result.bos_positions),
    }
    return json.loads(json.dumps(rest, default=repr))


def save(result: Attribution, path: str | Path) -> Path:
    """Write ``result`` to ``path`` whole or not at all; a file that stood there is replaced only by a complete one."""
    path = Path(path)
    tensors = {"scores": result.scores, "tokens": result.tokens}
    if result.stderr is not None:
        tensors["stderr"] = result.stderr
    header = {"format": FORMAT, "schema": str(SCHEMA), "attribution": json.dumps(as_dict(result))}
    _write_whole(path, to_bytes({name: t.contiguous() for name, t in tensors.items()}, header))
    return path


def _write_whole(path: Path, content: bytes) -> None:
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {str(path.parent)!r} to save to; make it first.")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def load(path: str | Path) -> Attribution:
    """Read an attribution; see `Attribution.load`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise InputError(f"{str(path)!r} is not a safetensors file ({error}).") from error
    if header.get("format") != FORMAT:
        raise InputError(f"{str(path)!r} is a safetensors file, but not one that Attribution.save wrote.")
    if int(header["schema"]) > SCHEMA:
        raise InputError(
            f"{str(path)!r} has schema {header['schema']}; this version reads up to {SCHEMA}. Upgrade jscope_tl."
        )
    rest = json.loads(header["attribution"])
    candidates = rest.pop("prediction")
    prediction = Prediction(
        top=tuple(PredictedToken(**token) for token in candidates["top"]),
        target=PredictedToken(**candidates["target"]),
        target_rank=candidates["target_rank"],
    )
    return Attribution(
        scores=tensors["scores"],
        tokens=tensors["tokens"],
        stderr=tensors.get("stderr"),
        prediction=prediction,
        basis=Basis(**rest.pop("basis")),
        provenance=Provenance(**rest.pop("provenance")),
        bos_positions=tuple(rest.pop("bos_positions")),
        **rest,
    )
