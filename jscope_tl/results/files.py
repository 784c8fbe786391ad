"""Results as files: one safetensors file, tensors as tensors and the rest as JSON in the header.

Any dataclass can be saved: what is in it is read off its fields and their types. Nothing in a file is executed.
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
    """Something that a notebook shows as a picture or a table."""

    def _repr_html_(self) -> str:
        from jscope_tl.views.notebook import fragment  # against the direction of the data: notebooks ask here

        return fragment(self)


class Saved(Shown):
    """A dataclass that can be written to a file and read back."""

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file that `load` reads back; a file that stood there is replaced only by a complete one.

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
        """Read what `save` wrote.

        Args:
            path: the file.

        Raises:
            InputError: there is no such file, it holds something else, it is damaged, or another version wrote it.
        """
        header, tensors = _read(path)
        if header.get("class") != cls.__name__:
            raise InputError(
                f"{str(path)!r} holds {header.get('class', 'nothing that jscope_tl saved')}, not {cls.__name__}."
            )
        if header.get("schema") != SCHEMA:
            raise InputError(
                f"{str(path)!r} has schema {header.get('schema')}; this version reads {SCHEMA}. Use the jscope_tl that wrote it."
            )
        try:
            found = restored(cls, json.loads(header["fields"]), tensors)
        except Exception as error:  # whatever a part of the wrong kind leads to
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InputError(f"{str(path)!r} is damaged: what it holds is no {cls.__name__} ({reason}).") from error
        if header.get("sha256") != _digest(header["fields"], tensors):
            raise InputError(f"{str(path)!r} is damaged: it is no longer what was saved (its checksum is another).")
        return found


def plain(value: Any, tensor: Callable[[Tensor], Any] = Tensor.tolist, key: Callable[[Any], str] = str) -> Any:
    """A value in types that JSON has, dataclasses as dictionaries; ``tensor`` and ``key`` say what becomes of tensors and keys."""
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
    """A tensor as JSON has it, for `plain`: lists of numbers; what is not known, NaN, has no number there."""
    if not tensor.is_floating_point() or not bool(tensor.isnan().any()):
        return tensor.tolist()
    return np.where(tensor.isnan().numpy(), None, tensor.numpy()).tolist()  # type: ignore[call-overload]


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not isinstance(path, str | Path) or not os.path.isfile(path):
        raise InputError(f"There is no file {str(path)!r}; give the path of one that save wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}.") from error
    except (SafetensorError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is not a safetensors file ({' '.join(str(error).split())[:200]}).") from error


def _digest(rest: str, tensors: dict[str, Tensor]) -> str:
    """Of the fields and of every number: a byte that changed would leave a result that is another one."""
    found = hashlib.sha256(rest.encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        found.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_target(path: Any) -> Path:
    """A path that a file can be written to, or a refusal."""
    if not isinstance(path, str | Path):
        raise InputError(f"A path is a string or a Path; got {path!r}.")
    target = Path(path)
    if not str(path) or target.is_dir():
        raise InputError(f"{str(path)!r} is no file to write to; give a file name.")
    if target.exists() and not target.is_file():
        raise InputError(
            f"{str(path)!r} is a device or a pipe, which a file cannot take the place of; give a file name."
        )
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
