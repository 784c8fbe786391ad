"""Attributions as files: one safetensors file, tensors as tensors and the rest as JSON in the header."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.results.attribution import Attribution, PredictedToken, Prediction, Provenance
from jscope_tl.engine.state import Basis

SCHEMA = 2
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
        "hook_points": list(result.hook_points),
    }
    return json.loads(json.dumps(rest, default=repr))


def save(result: Attribution, path: str | Path) -> Path:
    """Write ``result`` to ``path`` whole or not at all; a file that stood there is replaced only by a complete one."""
    tensors = {"scores": result.scores, "tokens": result.tokens}
    if result.stderr is not None:
        tensors["stderr"] = result.stderr
    header = {"format": FORMAT, "schema": str(SCHEMA), "attribution": json.dumps(as_dict(result))}
    return write_whole(path, to_bytes({name: t.contiguous() for name, t in tensors.items()}, header))


def check_target(path: Any) -> Path:
    """A path that a file can be written to, or a refusal."""
    if not isinstance(path, str | Path):
        raise InputError(f"A path is a string or a Path; got {path!r}.")
    target = Path(path)
    if not str(path) or target.is_dir():
        raise InputError(f"{str(path)!r} is no file to write to; give a file name.")
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {str(target.parent)!r} to write {target.name} to; make it first.")
    return target


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write all of ``content`` or nothing; a link is followed, and a file that stood there keeps its permissions."""
    target = check_target(path).resolve()
    part = target.with_name(f".{target.name}.{uuid4().hex}.part")
    try:
        part.write_bytes(content)
        if target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return Path(path)


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
    try:
        return _restored(path, header, tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r} is damaged: what it holds is no attribution ({error!r}).") from error


def _restored(path: Path, header: dict[str, str], tensors: dict[str, Tensor]) -> Attribution:
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
    if not tensors["scores"].shape[-1] == len(tensors["tokens"]) == len(rest["str_tokens"]) > rest["position"]:
        raise ValueError("scores and tokens differ in number")
    if list(tensors["scores"].shape[:-1]) != ([len(rest["hook_points"])] if rest.get("hook_points") else []):
        raise ValueError("scores and hook points differ in number")
    return Attribution(
        scores=tensors["scores"],
        tokens=tensors["tokens"],
        stderr=tensors.get("stderr"),
        prediction=prediction,
        basis=Basis(**rest.pop("basis")),
        provenance=Provenance(**rest.pop("provenance")),
        bos_positions=tuple(rest.pop("bos_positions")),
        hook_points=tuple(rest.pop("hook_points", ())),  # schema 1 had no layer maps
        **rest,
    )
