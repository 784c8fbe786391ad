"""The settings that determine the numbers of a run. They are saved in ``run.json`` and compared when a run is resumed."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from jscope_tl.corpus.questions import Question
from jscope_tl.corpus.schema import PARTS, SETTINGS
from jscope_tl.errors import InputError
from jscope_tl.results.files import plain

COMPARED = (
    "weights", "dtype", "model_class", "revision", "basis", "hooked", "scope", "gradient", "options", "unit", "at", "position", "prepend_bos", "chat_template",
    "versions",
)  # fmt: skip
"""The compared settings. The device, the size of batches and parts, and the memory are not compared, because they change numbers only by
rounding. The model's name is not compared either, because it may be a path that differs between machines; the weights identify the model."""
SAMPLED = 64
"""How many numbers of each parameter are used for a fingerprint."""


def settings_of(question: Question, prompts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that determines the numbers, as values of JSON."""
    setup, view = question.setup, question.setup.view
    found = {
        "model": view.name,
        "model_class": type(view.model).__name__,
        "revision": view.revision,
        "weights": fingerprint(view.model),
        "dtype": str(view.W_U.dtype).removeprefix("torch."),
        "device": str(view.W_U.device),
        "basis": view.basis,
        "hooked": view.is_hooked(setup.settings.fwd_hooks),
        "scope": setup.name,
        "label": setup.label,
        "gradient": setup.settings.rules.name,
        "options": setup.options(),
        "unit": setup.unit,
        "at": setup.hook_point,
        "position": question.position,
        "prepend_bos": question.prepend_bos,
        "chat_template": question.template,
        "versions": {name: _version(name) for name in ("jscope_tl", "transformer_lens", "torch")},
        "prompts": prompts,
    }
    return json.loads(json.dumps(plain(found), default=repr))


def need_same(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder has a run, which must have these settings.

    Raises:
        InputError: the run has other settings; the message names every difference.
    """
    path = folder / SETTINGS
    if not path.exists():
        if next(folder.glob(PARTS), None) is not None:
            raise InputError(
                f"{str(folder)!r} has parts of a run but no {SETTINGS}, so the settings of these parts are unknown. Give another folder."
            )
        return False
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        told = before["prompts"]["first"]
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise InputError(f"{str(path)!r} is damaged ({error!r}); give another folder.") from error
    different = [*differences(before, settings), *_other_prompts(told, settings["prompts"]["first"])]
    if different:
        raise InputError(
            f"{str(folder)!r} has a run with other settings, {'; '.join(different)} (that run against this one). Give another folder, or "
            "the settings of that run to resume it."
        )
    return True


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The compared settings that differ, in words."""
    found = []
    for key in COMPARED:
        one, other = before.get(key), now.get(key)
        if one == other:
            continue
        if key == "weights":
            found.append(f"model: {before.get('model')!r} with weights {one} against {now.get('model')!r} with {other}")
        elif isinstance(one, dict) and isinstance(other, dict):
            names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
            found += [f"{key}.{name}: {one.get(name)!r} against {other.get(name)!r}" for name in names]
        else:
            found.append(f"{key}: {one!r} against {other!r}")
    return found


def _other_prompts(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """The difference between the first prompts of both runs, if there is one. Prompts may be added at the end."""
    n = next((n for n, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), None)
    return [] if n is None else [f"prompts: number {n} (counted from 0) is a different one"]


def fingerprint(model: Any) -> str:
    """A digest of a few numbers of every parameter, which distinguishes models with the same name."""
    found = sha256()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            found.update(f"{name} {tuple(parameter.shape)}".encode())
            if not parameter.is_meta and parameter.numel():
                flat = parameter.detach().reshape(-1)
                places = torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat)), dtype=torch.float64).long()
                found.update(flat[places.to(flat.device)].double().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _version(package: str) -> str:
    """The version of a package without the suffix of a build, such as the version of CUDA."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
