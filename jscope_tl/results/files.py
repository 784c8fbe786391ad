"""Results as files: one safetensors file, tensors as tensors and the rest as JSON in the header.

Any dataclass can be saved: what is in it is read off its fields and their types. Nothing in a file is executed.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import uuid4

import numpy as np
from jaxtyping import jaxtyped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from jscope_tl.errors import InputError

SCHEMA = "1"
TENSOR = "__tensor__"
Self = TypeVar("Self", bound="Saved")


class Saved:
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
            tensors[name] = tensor.contiguous().clone()  # safetensors refuses tensors that share memory
            return {TENSOR: name}

        rest = json.dumps(plain(self, put_aside), default=repr)
        return write_whole(path, to_bytes(tensors, {"class": type(self).__name__, "schema": SCHEMA, "fields": rest}))

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
            return _restored(cls, json.loads(header["fields"]), tensors)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            raise InputError(f"{str(path)!r} is damaged: what it holds is no {cls.__name__} ({error!r}).") from error


def plain(value: Any, tensor: Callable[[Tensor], Any] = Tensor.tolist) -> Any:
    """A value in types that JSON has, dataclasses as dictionaries of their fields; ``tensor`` says what becomes of tensors."""
    if isinstance(value, Tensor):
        return tensor(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), tensor) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item, tensor) for key, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    return [plain(item, tensor) for item in value] if isinstance(value, list | tuple) else value


def _restored(kind: Any, value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value of an annotated field, from what JSON made of it."""
    if isinstance(value, dict) and TENSOR in value:
        return tensors[value[TENSOR]]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # `X | None`
        others = [argument for argument in arguments if argument is not type(None)]
        return value if value is None or len(others) > 1 else _restored(others[0], value, tensors)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        kept = {f.name: _restored(hints[f.name], value[f.name], tensors) for f in fields(kind)}
        with jaxtyped("context"):  # axes of one name have one length
            for name, item in kept.items():
                if isinstance(item, Tensor) and not isinstance(item, hints[name]):
                    raise ValueError(f"{name} does not fit, with {item.dtype} {list(item.shape)}")
        return kind(**kept)  # type: ignore[operator]
    if origin is dict:
        key, inner = arguments
        return {(key(name) if key is int else name): _restored(inner, item, tensors) for name, item in value.items()}
    if kind is tuple or origin in (list, tuple):
        inners = arguments[:1] * len(value) if len(arguments) < 2 or arguments[1] is ... else arguments
        return (origin or kind)(_restored(inner, item, tensors) for inner, item in zip(inners, value, strict=True))
    if isinstance(value, dict | list):  # of no declared type, an option for one
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found = {name: _restored(Any, item, tensors) for name, item in items}
        return found if isinstance(value, dict) else list(found.values())
    return value


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not isinstance(path, str | Path) or not Path(path).is_file():
        raise InputError(f"There is no file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise InputError(f"{str(path)!r} is not a safetensors file ({error}).") from error


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
