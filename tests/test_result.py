"""Results: what they offer, and that a file gives back what was saved."""

import functools
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import jscope_tl as js
from jscope_tl.results import files as storage
from jscope_tl.results.files import SCHEMA, Saved
from tests.models import TOKENS

PROMPT = "the keys to the cabinet near the doors"
PAIR = ("the keys near the door", "the key near the door")
SAMPLED = {"method": "sampled", "rank": 2, "probes": 4, "seed": 3}
SAVED: dict[str, Callable[[Any], Any]] = {
    "attribution": lambda model: js.attribute(model, "the <bos> keys 29 , 30 zebra", js.SemanticScope(target=" are")),
    "estimate": lambda model: js.attribute(model, PROMPT, "fisher", **SAMPLED),
    "layer map": lambda model: js.attribute(model, PROMPT, "fisher", at="resid_pre", **SAMPLED),
    "along a path": lambda model: js.attribute(model, PROMPT, path=js.Line(alphas=(0.5, 1.0)), frozen=("attn", "norm")),
    "pattern": lambda model: js.influence_pattern(model, PROMPT, "fisher", [5, 3], **SAMPLED),
    "spectrum": lambda model: js.spectrum(model, PROMPT, k=3, position=5),
    "spectrum of fisher": lambda model: js.spectrum(model, PROMPT, of="fisher", k=2),
    "comparison": lambda model: js.patching.compare(model, *PAIR, "log_prob"),
    "comparison of few": lambda model: js.patching.compare(model, *PAIR, "fisher", only_top=2),
    "ablation": lambda model: js.patching.ablate(model, PROMPT, "entropy", position=5),
    "side by side": lambda model: js.patching.side_by_side(model, *PAIR, "blocks.2.hook_resid_pre", [5, 2]),
    "linearity": lambda model: js.diagnostics.linearity(model, PROMPT, "log_prob", n_random=2),
    "sink": lambda model: js.diagnostics.sink(js.attribute(model, "the keys", prepend_bos=False), model),
    "scope comparison": lambda model: js.diagnostics.compare_scopes(model, [PROMPT], "temperature", "entropy"),
    "faithfulness": lambda model: js.faithfulness.evaluate(
        model, js.pocket_prompts("assistant", 2), ["log_prob", "random"], "aopc", protocol="authors"
    )["aopc"],
}
"""Something of every class that has files, with its optional parts and without."""


@functools.cache
def made(name: str, model: Any) -> Any:
    return SAVED[name](model)


def same(a: Any, b: Any, typed: bool = True) -> bool:
    """Equal in every field, NaN to NaN. What has no declared type may have come back as a list from a tuple."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, list | tuple):
        alike = type(a) is type(b) or (not typed and isinstance(b, list))
        return alike and len(a) == len(b) and all(same(x, y, typed) for x, y in zip(a, b, strict=True))
    if type(a) is not type(b):
        return False
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name), f.name not in ("options", "rows")) for f in fields(a))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key], typed) for key in a)
    return a == b or (a != a and b != b)


def opened(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Header and tensors of a file."""
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)


def without(given: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != name}


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, PROMPT, "fisher", method="sampled", seed=3)


def test_top(result: js.Attribution) -> None:
    scores = [token.score for token in result.top(20)]
    assert scores == sorted(scores, reverse=True)
    assert len(result.top(3)) == 3
    assert len(result.top(100, include_bos=True)) == len(result.tokens)
    best = result.top(1)[0]
    assert result.str_tokens[best.position] == best.str_token
    assert best.score == float(result.scores[best.position])
    assert result.stderr is not None
    assert best.stderr == float(result.stderr[best.position])


def test_top_leaves_out_what_comes_later(llama: Any) -> None:
    result = js.attribute(llama, TOKENS, position=3)
    assert {token.position for token in result.top(20)} == {1, 2, 3}


@pytest.mark.parametrize("k", [0, -1, True])
def test_bad_k(result: js.Attribution, k: int) -> None:
    with pytest.raises(js.InputError, match="k is how many"):
        result.top(k)


def test_dataframe(result: js.Attribution) -> None:
    frame = result.to_dataframe()
    assert list(frame.columns) == ["token", "str_token", "score", "stderr", "is_bos", "is_explained"]
    assert frame["score"].tolist() == pytest.approx(result.scores.tolist())
    assert frame["is_bos"].tolist() == [True] + [False] * 8
    assert frame["is_explained"].sum() == 1
    assert frame.attrs["unit"] == result.unit


def test_pattern(pocket: Any) -> None:
    pattern = js.influence_pattern(pocket, PROMPT, "entropy", [6, 3])
    assert pattern.position == 6
    best = pattern.top(100)
    assert {(token.explained, token.position) for token in best} == {(p, t) for p in (6, 3) for t in range(1, p + 1)}
    assert [token.score for token in best] == sorted((token.score for token in best), reverse=True)
    for token in best:
        assert token.score == float(pattern.scores[pattern.positions.index(token.explained), token.position])
        assert token.str_token == pattern.str_tokens[token.position]
    assert pattern.scored(2, row=1) == next(t for t in best if (t.explained, t.position) == (3, 2))
    frame = pattern.to_dataframe()
    assert frame.index.names == ["explained", "position"]
    assert frame["score"].unstack().loc[[6, 3]].to_numpy().tolist() == pattern.scores.tolist()
    assert list(frame.index[frame["is_explained"]]) == [(6, 6), (3, 3)]
    assert list(frame.index[frame["is_bos"]]) == [(6, 0), (3, 0)]
    assert (frame.attrs["scope"], frame.attrs["unit"]) == ("entropy", pattern.unit)


def test_spectrum(pocket: Any) -> None:
    """Positions rank by their leading singular value; the data frame has all of them, up to the explained position."""
    found = js.spectrum(pocket, PROMPT, k=3, position=5)
    leading = found.singular_values[1:6, 0]
    best = found.top(100)
    assert [token.position for token in best] == (1 + leading.argsort(descending=True)).tolist()
    assert [token.score for token in best] == leading.sort(descending=True).values.tolist()
    assert {(token.explained, token.stderr) for token in best} == {(5, None)}
    frame = found.to_dataframe()
    assert list(frame.index) == [(t, i) for t in range(6) for i in range(3)]
    assert frame["singular_value"].tolist() == found.singular_values[:6].flatten().tolist()
    parts = frame["singular_value"] ** 2 / frame["share"]
    assert parts.tolist() == pytest.approx(found.energy[:6].repeat_interleave(3).tolist(), rel=1e-4)


@pytest.mark.slow
def test_every_class_that_has_files_is_tested(pocket: Any) -> None:
    def under(kind: type) -> set[type]:
        return {kind} | {found for child in kind.__subclasses__() for found in under(child)}

    concrete = {kind for kind in under(Saved) - {Saved} if not inspect.isabstract(kind)}
    assert {type(made(name, pocket)) for name in SAVED} == {k for k in concrete if k.__module__.startswith("jscope_tl")}


@pytest.mark.parametrize("name", SAVED)
def test_round_trip(pocket: Any, tmp_path: Path, name: str) -> None:
    saved = made(name, pocket)
    again = type(saved).load(saved.save(tmp_path / "result.safetensors"))
    assert same(saved, again)
    assert repr(again) == repr(saved)


def test_round_trips_are_of_what_is_hard_to_keep(pocket: Any) -> None:
    assert made("layer map", pocket).stderr.shape == (4, 9)
    assert made("pattern", pocket).stderr is not None
    assert made("comparison of few", pocket).effects.isnan().any()
    assert made("comparison", pocket).joint is None
    assert math.isnan(made("sink", pocket).rows[0]["bos_share"])
    assert made("along a path", pocket).options["path"]["alphas"] == (0.5, 1.0)
    runs = made("side by side", pocket)
    assert runs.patched.tokens.data_ptr() == runs.corrupted.tokens.data_ptr()  # safetensors refuses shared memory
    nested = replace(runs.clean, prediction=replace(runs.clean.prediction, target_rank=99))
    assert not same(runs, replace(runs, clean=nested))


def test_a_loaded_spectrum_decodes(pocket: Any, tmp_path: Path) -> None:
    found = made("spectrum", pocket)
    again = js.Spectrum.load(found.save(tmp_path / "spectrum"))
    assert [again.decode(t, i, 20) for t in range(6) for i in range(3)] == [
        found.decode(t, i, 20) for t in range(6) for i in range(3)
    ]


def test_saving_is_all_or_nothing(result: js.Attribution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.safetensors"
    result.save(path)
    before = path.read_bytes()

    def full_disk(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(storage.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        result.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["result.safetensors"]


def test_header_is_json(result: js.Attribution, tmp_path: Path) -> None:
    raw = result.save(tmp_path / "r").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])["__metadata__"]
    assert (header["class"], header["schema"]) == ("Attribution", SCHEMA)
    assert json.loads(header["fields"])["unit"] == result.unit


def test_bad_files(result: js.Attribution, tmp_path: Path) -> None:
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(js.InputError, match="no file"):
            js.Attribution.load(missing)
    with pytest.raises(js.InputError, match="no folder"):
        result.save(tmp_path / "none" / "result")
    (tmp_path / "text").write_text("hello, this is no safetensors file")
    with pytest.raises(js.InputError, match="not a safetensors file"):
        js.Attribution.load(tmp_path / "text")
    (tmp_path / "half").write_bytes(result.save(tmp_path / "whole").read_bytes()[:-9])
    with pytest.raises(js.InputError, match="not a safetensors file"):
        js.Attribution.load(tmp_path / "half")
    save_file({"scores": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(js.InputError, match="holds nothing that jscope_tl saved, not Attribution"):
        js.Attribution.load(tmp_path / "other")


@pytest.mark.parametrize("name", SAVED)
def test_files_of_another_class_or_schema(pocket: Any, tmp_path: Path, name: str) -> None:
    saved = made(name, pocket)
    path, kind = saved.save(tmp_path / "result"), type(saved)
    for other in {type(made(name, pocket)) for name in SAVED} - {kind}:
        with pytest.raises(js.InputError, match=f"holds {kind.__name__}, not {other.__name__}"):
            other.load(path)
    header, tensors = opened(path)
    save_file(tensors, path, header | {"schema": "99"})
    with pytest.raises(js.InputError, match=f"schema 99; this version reads {SCHEMA}"):
        kind.load(path)


@pytest.mark.parametrize("name", SAVED)
def test_damaged_files(pocket: Any, tmp_path: Path, name: str) -> None:
    """A field or a tensor that is missing, a tensor that lacks its last row, and what is no JSON."""
    path, kind = made(name, pocket).save(tmp_path / "result"), type(made(name, pocket))
    header, tensors = opened(path)
    kept = json.loads(header["fields"])
    damaged = [
        *((json.dumps(without(kept, field)), tensors) for field in kept),
        *((header["fields"], without(tensors, key)) for key in tensors),
        *((header["fields"], tensors | {key: tensors[key][:-1].clone()}) for key in tensors),
        *((text, tensors) for text in ("{", "[]", "null", '"x"')),
    ]
    for text, some in damaged:
        save_file(some, path, header | {"fields": text})
        with pytest.raises(js.InputError, match=f"damaged: what it holds is no {kind.__name__}"):
            kind.load(path)
    save_file(tensors, path, header)
    assert same(made(name, pocket), kind.load(path))  # what was damaged was whole


@pytest.mark.parametrize("name", ["spectrum of fisher", "linearity"])
def test_lengths_are_compared_by_load_itself(pocket: Any, tmp_path: Path, name: str) -> None:
    """Types are checked at run time in these tests, but not for users."""
    path = made(name, pocket).save(tmp_path / "result")
    header, tensors = opened(path)
    for key in tensors:
        save_file(tensors | {key: tensors[key][:-1].clone()}, path, header)
        with pytest.raises(js.InputError, match="does not fit, with torch"):
            type(made(name, pocket)).load(path)


def test_results_are_frozen(result: js.Attribution) -> None:
    with pytest.raises(AttributeError):
        result.scope = "other"  # type: ignore[misc]


def test_saving_keeps_permissions_and_follows_links(result: js.Attribution, tmp_path: Path) -> None:
    private, link = tmp_path / "private", tmp_path / "link"
    private.touch(0o600)
    private.chmod(0o600)
    link.symlink_to(private)
    result.save(link)
    assert link.is_symlink()
    assert private.stat().st_mode & 0o777 == 0o600
    assert js.Attribution.load(private).unit == result.unit
    for bad in ("", tmp_path):
        with pytest.raises(js.InputError, match="no file to write to"):
            result.save(bad)
