"""Results as files: one safetensors file with the tensors, and with the other fields as JSON in its header.

Any dataclass can be saved, from its fields and their types. Nothing in a file is executed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.results.restoring import TENSOR, escaped, restored

SCHEMA = "2"
Self = TypeVar("Self", bound="Saved")


class Shown:
    """Base of objects that a notebook shows as a figure or a table."""

    def _repr_html_(self) -> str:
        from jscope_tl.views.notebook import fragment  # imported here because views import results

        return fragment(self)


class Saved(Shown):
    """A dataclass that can be written to a file and read back."""

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file that `load` reads back; an existing file is replaced only by a complete one.

        Args:
            path: the file to write; its folder must exist.

        Raises:
            InputError: the path cannot be written to.
        """
        tensors: dict[str, Tensor] = {}

        def put_aside(tensor: Tensor) -> dict[str, str]:
            name = str(len(tensors))
            tensors[name] = tensor.detach().cpu().contiguous().clone()  # safetensors refuses tensors that share memory
            return {TENSOR: name}

        rest = json.dumps(plain(self, put_aside, escaped), default=repr)
        header = {"class": type(self).__name__, "schema": SCHEMA, "fields": rest, "sha256": _digest(rest, tensors)}
        return write_whole(path, to_bytes(tensors, header))

    @classmethod
    def load(cls: type[Self], path: str | Path) -> Self:
        """Read a file that `save` wrote.

        Args:
            path: the file.

        Raises:
            InputError: the file does not exist, contains something else, is damaged, or was written by an incompatible version.
        """
        header, tensors = _read(path)
        if header.get("class") != cls.__name__:
            raise InputError(
                f"{str(path)!r} contains {header.get('class', 'nothing that jscope_tl saved')}, not {cls.__name__}."
            )
        if header.get("schema") != SCHEMA:
            raise InputError(
                f"{str(path)!r} has schema {header.get('schema')}; this version reads {SCHEMA}. Use the version of jscope_tl that wrote it."
            )
        try:
            found = restored(cls, json.loads(header["fields"]), tensors)
        except Exception as error:  # any error that a field of the wrong type causes
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InputError(
                f"{str(path)!r} is damaged: its content is not a valid {cls.__name__} ({reason})."
            ) from error
        if header.get("sha256") != _digest(header["fields"], tensors):
            raise InputError(f"{str(path)!r} is damaged: its checksum does not match the one that was saved with it.")
        return found


def plain(value: Any, tensor: Callable[[Tensor], Any] = Tensor.tolist, key: Callable[[Any], str] = str) -> Any:
    """A value in JSON types, dataclasses as dictionaries; ``tensor`` and ``key`` convert tensors and dictionary keys."""
    if isinstance(value, Tensor):
        return tensor(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), tensor, key) for f in fields(value)}
    if isinstance(value, dict):
        return {key(name): plain(item, tensor, key) for name, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    return [plain(item, tensor, key) for item in value] if isinstance(value, list | tuple) else value


def listed(tensor: Tensor) -> Any:
    """A tensor in JSON types, for `plain`: lists of numbers, with None for NaN (an unknown value)."""
    if not tensor.is_floating_point() or not bool(tensor.isnan().any()):
        return tensor.tolist()
    return np.where(tensor.isnan().numpy(), None, tensor.numpy()).tolist()  # type: ignore[call-overload]


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not isinstance(path, str | Path) or not os.path.isfile(path):
        raise InputError(f"There is no file {str(path)!r}; pass the path of a file that save wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}.") from error
    except (SafetensorError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is not a safetensors file ({' '.join(str(error).split())[:200]}).") from error


def _digest(rest: str, tensors: dict[str, Tensor]) -> str:
    """A checksum of the fields and all tensors, to detect any changed byte."""
    found = hashlib.sha256(rest.encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        found.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_target(path: Any) -> Path:
    """The path, if a file can be written to it; else an error."""
    if not isinstance(path, str | Path):
        raise InputError(f"A path must be a string or a Path; got {path!r}.")
    target = Path(path)
    if not str(path) or target.is_dir():
        raise InputError(f"{str(path)!r} is not a path of a file; pass a file name.")
    if target.exists() and not target.is_file():
        raise InputError(f"{str(path)!r} is a device or a pipe, which a file cannot replace; pass another file name.")
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {str(target.parent)!r} to write {target.name} to; create it first.")
    return target


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write all of ``content`` or nothing; links are followed, and an existing file keeps its permissions."""
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
