"""Results: what they offer, and that a file gives back what was saved."""

import copy
import functools
import inspect
import itertools
import json
import math
import os
import random
import tempfile
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
from jscope_tl.results.restoring import restored
from tests.corpus.written import attributed
from tests.models import TOKENS

pytestmark = pytest.mark.newest_line

PROMPT = "the keys to the cabinet near the doors"
PAIR = ("the keys near the door", "the key near the door")
SAMPLED = {"method": "sampled", "rank": 2, "probes": 4, "seed": 3}


def corpus(model: Any, scope: str) -> js.corpus.CorpusRun:
    return js.corpus.open(attributed(Path(tempfile.mkdtemp()), model, [*PAIR, PROMPT], scope))


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
    "components": lambda model: js.patching.components(model, PROMPT, "fisher").measure(3),
    "edges": lambda model: js.patching.components(model, "the keys", "log_prob", of="edges", target=" are"),
    "component agreement": lambda model: js.patching.agreement(model, PROMPT, "fisher"),
    "text": lambda model: js.attribute_text(model, PROMPT, " are old", by={"keys": (4, 8), "end": "doors"}),
    "text, with its signs": lambda model: js.attribute_text(model, PROMPT, max_new_tokens=2, stop=[], reduction="dot"),
    "text, estimated": lambda model: js.attribute_text(model, PROMPT, " are", scope="fisher", by="word", **SAMPLED),
    "context": lambda model: js.patching.context(model, "the keys near . the doors", " are old", by="sentence"),
    "summary of a corpus": lambda model: js.corpus.by_token(corpus(model, "temperature"), least=2),
    "sources of targets": lambda model: js.corpus.by_target(corpus(model, "temperature"), least=2),
    "agreement of two runs": lambda model: js.corpus.agreement(corpus(model, "temperature"), corpus(model, "log_prob")),
    "mean effects": lambda model: js.corpus.components(model, [PROMPT, ""], "log_prob", target=" are"),
    "flow of a token": lambda model: js.patching.flow(model, PROMPT, 2, "log_prob", n_edges=9),
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


def later(kind: type) -> set[str]:
    """Fields that older files lack."""
    return {f.name for f in fields(kind) if f.metadata.get("later")}


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
    with pytest.raises(js.InputError, match="k is the number of"):
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
    with pytest.raises(js.InputError, match="contains nothing that jscope_tl saved, not Attribution"):
        js.Attribution.load(tmp_path / "other")


@pytest.mark.parametrize("name", SAVED)
def test_files_of_another_class_or_schema(pocket: Any, tmp_path: Path, name: str) -> None:
    saved = made(name, pocket)
    path, kind = saved.save(tmp_path / "result"), type(saved)
    for other in {type(made(name, pocket)) for name in SAVED} - {kind}:
        with pytest.raises(js.InputError, match=f"contains {kind.__name__}, not {other.__name__}"):
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
        *((json.dumps(without(kept, field)), tensors) for field in kept if field not in later(kind)),
        *((header["fields"], without(tensors, key)) for key in tensors),
        *((header["fields"], tensors | {key: tensors[key][:-1].clone()}) for key in tensors),
        *((text, tensors) for text in ("{", "[]", "null", '"x"')),
    ]
    for text, some in damaged:
        save_file(some, path, header | {"fields": text})
        with pytest.raises(js.InputError, match=f"damaged: its content is not a valid {kind.__name__}"):
            kind.load(path)
    save_file(tensors, path, header)
    assert same(made(name, pocket), kind.load(path))  # what was damaged was whole


@pytest.mark.parametrize("name", ["attribution", "pattern", "spectrum", "comparison", "side by side"])
def test_older_files_are_read(pocket: Any, tmp_path: Path, name: str) -> None:
    """What came later is missing in them, at whatever depth; it is what it is by default."""
    saved = made(name, pocket)
    path = saved.save(tmp_path / "result")
    header, tensors = opened(path)
    assert '"prepended": "<bos>"' in header["fields"]

    def older(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: older(item) for key, item in value.items() if key not in ("prepended", "baseline")}
        return [older(item) for item in value] if isinstance(value, list) else value

    text = json.dumps(older(json.loads(header["fields"])))
    save_file(tensors, path, header | {"fields": text, "sha256": storage._digest(text, tensors)})
    again = type(saved).load(path)
    assert "was prepended" in repr(saved) or name == "side by side"
    assert "was prepended" not in repr(again)
    with pytest.raises(AttributeError):
        again.baseline.x  # noqa: B018


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
        with pytest.raises(js.InputError, match="not a path of a file"):
            result.save(bad)


def loaded(kind: type[Any], path: Path) -> Any:
    """What loads, or None where the file is refused in one line of words."""
    try:
        return kind.load(path)
    except js.InputError as error:
        said = str(error)
    assert str(path) in said
    assert "\n" not in said
    assert len(said) < 600
    return None


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in what JSON holds."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


DEEP = "[" * 100_000 + "]" * 100_000
DROPPED = object()
WRONG = [DROPPED, None, True, -1, 10**6, -0.5, math.nan, math.inf, 10**400, "", "x", [], {}, [[]], {"__tensor__": "0"}]


def one_of_each(found: list[tuple[Any, ...]], rng: random.Random) -> list[tuple[Any, ...]]:
    """Of places that differ only in which item of a list they are in."""
    alike: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for place in found:
        alike.setdefault(tuple("#" if str(key).isdigit() else key for key in place), []).append(place)
    return [rng.choice(some) for some in alike.values()]


def replaced(fields: Any, place: tuple[Any, ...], put: Any) -> Any:
    """A copy with something else at a place, or nothing."""
    if not place:
        return None if put is DROPPED else put
    found = copy.deepcopy(fields)
    inside = functools.reduce(lambda value, key: value[key], place[:-1], found)
    if put is DROPPED:
        del inside[place[-1]]
    else:
        inside[place[-1]] = put
    return found


@pytest.mark.parametrize("name", SAVED)
def test_a_byte_that_flips_is_seen(pocket: Any, tmp_path: Path, name: str) -> None:
    """What loads is what was saved, whichever byte is another and however much of the file is missing."""
    saved, rng = made(name, pocket), random.Random(name)
    path = saved.save(tmp_path / "result")
    whole, refused = path.read_bytes(), 0
    ends = [0, 1, 7, 8, 9, *(rng.randrange(len(whole)) for _ in range(10))]
    flipped = []
    for i in [*range(8), *(rng.randrange(len(whole)) for _ in range(30))]:
        flipped.append(bytearray(whole))
        flipped[-1][i] ^= rng.randrange(1, 256)
    for content in (*flipped, *(whole[:end] for end in ends), whole + b"x", whole * 2):
        path.write_bytes(content)
        found = loaded(type(saved), path)
        refused += found is None
        assert found is None or same(saved, found)
    assert refused > 38


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("n", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_what_loads_is_a_valid_result(pocket: Any, tmp_path: Path, name: str, n: int) -> None:
    """Anything may stand where something stood, under a checksum that is right: what is not refused can be used.

    Pictures take most of the time: of what stands at one place, the first that loads is drawn, at three places; of a class with
    the same picture of fewer fields, and in the short run, none.
    """
    saved, rng = made(name, pocket), random.Random(f"{name} {n}")
    path, kind = saved.save(tmp_path / "result"), type(saved)
    header, tensors = opened(path)
    fields = json.loads(header["fields"])
    found, drawn = one_of_each(places(fields), rng), set()
    drawing = n == 16 and name not in ("comparison", "comparison of few", "spectrum")
    for place in rng.sample(found, min(len(found), n)):
        for put in rng.sample(WRONG, 4 if n == 8 else 7):
            text = json.dumps(replaced(fields, place, put))
            save_file(tensors, path, header | {"fields": text, "sha256": storage._digest(text, tensors)})
            if (again := loaded(kind, path)) is not None:
                usable(again, tmp_path, pictures=drawing and place not in drawn and len(drawn) < 3)
                drawn.add(place)
    for text in (
        DEEP,
        json.dumps(fields).replace("null", DEEP, 1),
        "",
        "{",
        "[]",
        "null",
        "\\",
        "NaN",
        header["fields"] + "x",
    ):
        save_file(tensors, path, header | {"fields": text, "sha256": storage._digest(text, tensors)})
        assert loaded(kind, path) is None or text == header["fields"]


def test_values_have_the_type_of_their_field() -> None:
    """A whole number becomes a float; a bool is not a number."""
    assert [type(value) for value in restored(tuple[float, ...], [3, 0.5], {})] == [float, float]
    for kind, value in ((int, True), (float, True), (float, 10**400), (int, 1.0), (str, 1), (float, "1")):
        with pytest.raises(TypeError, match="is needed"):
            restored(kind, value, {})


def usable(result: Any, folder: Path, pictures: bool) -> None:
    """Everything that a result offers without a model works."""
    assert repr(result)
    methods = {"to_dataframe", "to_pandas", "summary", "top", "agreement"} | ({"_repr_html_"} if pictures else set())
    for method in methods & {*dir(result)}:
        getattr(result, method)()
    assert same(type(result).load(result.save(folder / "again")), result)


@pytest.mark.parametrize("name", SAVED)
def test_tensors_in_disorder(pocket: Any, tmp_path: Path, name: str) -> None:
    """The header gives a tensor another type, shape or place: nothing, or what was saved."""
    saved = made(name, pocket)
    path, kind = saved.save(tmp_path / "result"), type(saved)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    names = [key for key in header if key != "__metadata__"]
    entries = [(key, part, put) for key in names for part, put in DISORDER]
    for key, part, put in entries:
        entry = {**header[key], part: put(header[key][part])}
        text = json.dumps(header | {key: entry}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
        found = loaded(kind, path)
        assert found is None or same(saved, found)
    for a, b in itertools.pairwise(names):
        text = json.dumps(header | {a: header[b], b: header[a]}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
        found = loaded(kind, path)
        assert found is None or same(saved, found)


DISORDER: list[tuple[str, Callable[[Any], Any]]] = [
    *(("dtype", lambda dtype, other=other: other) for other in ("F32", "I32", "U32", "F64", "I64", "BF16", "F8_E4M3", "BOOL", "?")),
    ("shape", lambda shape: []),
    ("shape", lambda shape: [math.prod(shape)]),
    ("shape", lambda shape: [1, *shape]),
    ("shape", lambda shape: shape[::-1] if len(shape) > 1 else [*shape, 1]),
    ("shape", lambda shape: [-1]),
    ("data_offsets", lambda ends: [ends[0], ends[1] - 1]),
    ("data_offsets", lambda ends: [10**18, 10**18 + ends[1] - ends[0]]),
]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda scores: -scores - 1,
        lambda scores: scores * math.nan,
        lambda scores: scores + math.inf,
        lambda scores: scores[:-1],
        lambda scores: scores.sum(),
        lambda scores: scores[None],
        lambda scores: scores.int(),
    ],
)
@pytest.mark.parametrize("field", ["scores", "stderr", "tokens"])
def test_numbers_that_no_result_has(result: js.Attribution, tmp_path: Path, field: str, change: Any) -> None:
    """Under a checksum that is right: a file may have been wrong when it was written."""
    path = result.save(tmp_path / "result")
    header, tensors = opened(path)
    key = json.loads(header["fields"])[field]["__tensor__"]
    changed = change(tensors[key]).contiguous()
    if field == "tokens" and changed.shape == result.tokens.shape and not changed.is_floating_point():
        return  # ids may be any numbers
    tensors |= {key: changed}
    save_file(tensors, path, header | {"sha256": storage._digest(header["fields"], tensors)})
    with pytest.raises(js.InputError, match="damaged: its content is not a valid Attribution"):
        js.Attribution.load(path)


def test_options_may_have_any_names(result: js.Attribution, tmp_path: Path) -> None:
    """Also that under which files keep tensors."""
    options = {"__tensor__": "0", "\\__tensor__": [{"__tensor__": result.scores}], "a": {"__tensor__": None}, "\\": ""}
    saved = replace(result, options=options)
    assert same(js.Attribution.load(saved.save(tmp_path / "result")), saved)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "result"
    for content in (
        b"",
        b"\0",
        b"{}",
        (2**63).to_bytes(8, "little") + b"{}",
        (10**8).to_bytes(8, "little") + b"{}" * 9,
    ):
        path.write_bytes(content)
        with pytest.raises(js.InputError, match="not a safetensors file"):
            js.Attribution.load(path)
    for missing in (tmp_path / "none", tmp_path, "", "\0"):
        with pytest.raises(js.InputError, match="There is no file"):
            js.Attribution.load(missing)
    path.chmod(0)
    if not os.access(path, os.R_OK):
        with pytest.raises(js.InputError, match="cannot be read"):
            js.Attribution.load(path)
