"""Results: what they offer, and that a file gives back what was saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import jscope_tl as js
from jscope_tl.results import files as storage
from jscope_tl.results.files import SCHEMA
from tests.models import TOKENS


@pytest.fixture(scope="module")
def result(pocket: Any) -> js.Attribution:
    return js.attribute(pocket, "the keys to the cabinet near the doors", "fisher", method="sampled", seed=3)


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


@pytest.mark.parametrize(
    "scope", [js.FisherScope(method="sampled"), js.SemanticScope(target=" are"), js.EntropyScope()]
)
def test_round_trip(pocket: Any, tmp_path: Path, scope: js.Scope) -> None:
    result = js.attribute(pocket, "the <bos> keys 29 , 30 zebra", scope)
    path = result.save(tmp_path / "result.safetensors")
    again = js.Attribution.load(path)
    assert torch.equal(again.scores, result.scores)
    assert torch.equal(again.tokens, result.tokens)
    assert (again.stderr is None) == (result.stderr is None)
    assert storage.as_dict(again) == storage.as_dict(result)
    assert (again.prediction, again.basis, again.provenance) == (result.prediction, result.basis, result.provenance)
    assert (again.position, again.scope, again.unit) == (result.position, result.scope, result.unit)
    assert (again.warnings, again.bos_positions) == (result.warnings, result.bos_positions)
    assert repr(again) == repr(result)


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


def test_bad_files(result: js.Attribution, tmp_path: Path) -> None:
    with pytest.raises(js.InputError, match="no file"):
        js.Attribution.load(tmp_path / "none")
    with pytest.raises(js.InputError, match="no folder"):
        result.save(tmp_path / "none" / "result")
    (tmp_path / "text").write_text("hello, this is no safetensors file")
    with pytest.raises(js.InputError, match="not a safetensors file"):
        js.Attribution.load(tmp_path / "text")
    save_file({"scores": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(js.InputError, match="not one that Attribution.save wrote"):
        js.Attribution.load(tmp_path / "other")
    save_file({"scores": torch.ones(2)}, tmp_path / "newer", {"format": storage.FORMAT, "schema": "99"})
    with pytest.raises(js.InputError, match="schema 99.*Upgrade"):
        js.Attribution.load(tmp_path / "newer")


def test_header_is_json(result: js.Attribution, tmp_path: Path) -> None:
    raw = result.save(tmp_path / "r").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])["__metadata__"]
    assert header["schema"] == str(SCHEMA)
    assert json.loads(header["attribution"])["unit"] == result.unit


def test_results_are_frozen(result: js.Attribution) -> None:
    with pytest.raises(AttributeError):
        result.scope = "other"  # type: ignore[misc]


@pytest.mark.parametrize("damage", ["schema", "attribution", "scores", "position"])
def test_damaged_files(result: js.Attribution, tmp_path: Path, damage: str) -> None:
    header = {"format": storage.FORMAT, "schema": "1", "attribution": json.dumps(storage.as_dict(result))}
    tensors = {"scores": result.scores, "tokens": result.tokens}
    if damage == "scores":
        tensors["scores"] = result.scores[:2].clone()
    elif damage == "position":
        header["attribution"] = json.dumps(storage.as_dict(result) | {"position": 99})
    else:
        header[damage] = "x"
    save_file(tensors, tmp_path / "damaged", header)
    with pytest.raises(js.InputError, match="damaged"):
        js.Attribution.load(tmp_path / "damaged")


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
