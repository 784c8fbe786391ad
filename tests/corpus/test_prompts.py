"""Prompts from files, data sets and lists: what is read, what is a row with an error, and what is refused as a whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import jscope_tl as js
from jscope_tl.corpus.prompts import N_COMPARED, Line, read_prompts
from jscope_tl.corpus.shards import to_shard

pytestmark = pytest.mark.newest_line

RECORDS = [
    {"id": "a", "prompt": "the keys", "target": " are", "position": 1, "source": "x"},
    {"id": "b", "prompt": 'with "quotes", a comma', "target": None, "position": None, "source": None},
    {"id": "c", "prompt": "ünïcode 语", "target": " is", "position": -1, "source": "y"},
]


def lines(given: Any, **how: Any) -> list[Line]:
    return list(read_prompts(given, **how).lines())


def as_csv(records: list[dict[str, Any]]) -> str:
    cells = [
        ["" if v is None else '"' + str(v).replace('"', '""') + '"' for v in record.values()] for record in records
    ]
    return "\n".join([",".join(records[0]), *map(",".join, cells)]) + "\n"


def files(folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, RECORDS)), encoding="utf-8")
    (folder / "p.csv").write_text(as_csv(RECORDS), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(RECORDS), folder / "p.parquet")
    return {ending: folder / f"p.{ending}" for ending in ("jsonl", "csv", "parquet")} | {"list": RECORDS}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "list", "generator", "datasets"])
def test_every_kind_of_source_has_the_same_lines(kind: str, tmp_path: Path) -> None:
    given = files(tmp_path) | {"generator": (record for record in RECORDS)}
    if kind == "datasets":
        datasets = pytest.importorskip("datasets")
        given["datasets"] = datasets.Dataset.from_list(RECORDS)
    found = lines(given[kind])
    assert [(x.id, x.prompt, x.target, x.position) for x in found] == [
        (r["id"], r["prompt"], r["target"], r["position"]) for r in RECORDS
    ]
    assert [x.carried for x in found] == [{"source": "x"}, {}, {"source": "y"}]
    assert [x.digest for x in found] == [x.digest for x in lines(RECORDS)]


def test_text_has_one_prompt_a_line_and_its_number_as_id(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeffone\r\n\n  \nline\u2028separator stays\nlast".encode())
    found = read_prompts(tmp_path / "p.txt")
    assert [(x.id, x.prompt) for x in found.lines()] == [
        ("0", "one"),
        ("3", "line\u2028separator stays"),
        ("4", "last"),
    ]
    assert found.total == 3


def test_ids_tensors_arrays_and_chats_are_prompts() -> None:
    chat = [{"role": "user", "content": "hi"}]
    found = lines([[1, 2], torch.tensor([1, 2]), np.array([1, 2]), {"tokens": [1, 2]}, chat, {"messages": chat}])
    assert [x.prompt for x in found] == [[1, 2]] * 4 + [chat] * 2
    assert not any(x.error for x in found)


def test_a_table_of_texts_has_ids_and_chats_as_json(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('tokens,position\n"[1, 2]",1\n"[1",\n"[3]",one\n')
    first, broken, position = lines(tmp_path / "p.csv")
    assert (first.prompt, first.position) == ([1, 2], 1)
    assert "tokens must be a JSON list" in str(broken.error)
    assert "position is a whole number" in str(position.error)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "this one has prompt and messages"),
        ({"prompt": None, "other": 1}, "this one has none of them"),
        ({"prompt": 3}, "A prompt must be a string"),
        ({"prompt": ["a"]}, "A prompt must be a string"),
        ({"messages": []}, "messages must be a chat"),
        ({"prompt": "a", "position": 1.5}, "position is a whole number"),
        ({"prompt": "a", "position": True}, "position is a whole number"),
        ({"prompt": "a", "id": 1.5}, "An id must be a string or a whole number"),
        ({"prompt": "a", "id": ["x"]}, "An id must be a string or a whole number"),
        ({"prompt": "a", "id": ""}, "An id must be a string or a whole number"),
    ],
)
def test_a_bad_line_is_a_line_with_an_error(item: Any, says: str) -> None:
    good, bad, after = lines([{"prompt": "good"}, item, {"prompt": "after"}])
    assert good.error is None
    assert after.error is None
    assert bad.prompt is None
    assert says in str(bad.error)


def test_bad_lines_of_files(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n3\nnull\n"text"\n')
    assert [x.error is None for x in lines(tmp_path / "p.jsonl")] == [True, False, False, False, True]
    (tmp_path / "p.csv").write_text("prompt,target\na,b\nc\nd,e,f\n")
    assert [x.error for x in lines(tmp_path / "p.csv")][1:] == [
        f"The record has {n} cells, the header 2." for n in (1, 3)
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.txt", "", "There are no prompts"),
        ("p.txt", "\n \n", "There are no prompts"),
        ("p.jsonl", "", "There are no prompts"),
        ("p.csv", "", "There are no prompts"),
        ("p.csv", "prompt,target\n", "There are no prompts"),
        ("p.jsonl", '[\n{"prompt": "a"}\n]', "a JSON array over several lines"),
        ("p.jsonl", '{"promt": "a"}', "Did you mean 'promt'"),
        ("p.csv", "question,answer\na,b\n", "has the columns ['question', 'answer']"),
        ("p.csv", "prompt,prompt\na,b\n", "the same name"),
        ("p.parquet", "no parquet", "cannot be read"),
        ("p.xlsx", "a", ".txt, .jsonl, .parquet, .csv"),
        ("p.txt", b"\xff\xfe\x00", "UTF-8"),
        ("p.jsonl", '{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', "The id 'a' occurs twice"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused(
    pocket: Any, tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(js.InputError) as refused:
        js.corpus.run(pocket, path, tmp_path / "run")
    assert says in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [Path("nowhere.txt"), Path("."), 3, None, b"text", {"train": ["a"]}, [], iter(())])
def test_what_is_no_source_is_refused(pocket: Any, tmp_path: Path, given: Any) -> None:
    with pytest.raises(js.InputError):
        js.corpus.run(pocket, given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_column_holds_the_prompts() -> None:
    records = [{"question": "why", "prompt": "not this", "answer": "x"}]
    assert [(x.prompt, x.carried) for x in lines(records, column="question")] == [
        ("why", {"prompt": "not this", "answer": "x"})
    ]
    with pytest.raises(js.InputError, match="Did you mean 'question'"):
        read_prompts(records, column="questions")
    with pytest.raises(js.InputError, match="no columns"):
        read_prompts(["text"], column="question")


def test_text_does_where_there_is_no_prompt() -> None:
    assert [x.prompt for x in lines([{"text": "a"}, {"text": "b", "prompt": "c"}])] == ["a", "c"]
    assert lines([{"text": "b", "prompt": "c"}])[0].carried == {"text": "b"}


@pytest.mark.parametrize(
    ("ids", "twice"),
    [([0, 1, 0], "0"), ([5, 1, 5], "5"), ([None, 0], "0"), (["a", "b", "a"], "a"), ([0, 2, None], "2")],
)
def test_ids_that_stand_twice_are_found_also_among_numbers_of_lines(ids: list[Any], twice: str) -> None:
    with pytest.raises(js.InputError, match=f"The id '{twice}' occurs twice"):
        read_prompts([{"id": i, "prompt": "x"} for i in ids])


def test_ids_that_differ_are_not_twice() -> None:
    assert [x.id for x in lines([{"id": i, "prompt": "x"} for i in (0, 2, 1, "00", "x")])] == ["0", "2", "1", "00", "x"]


def test_a_generator_is_read_as_far_as_it_is_needed() -> None:
    taken = []

    def made() -> Iterator[str]:
        for i in range(1000):
            taken.append(i)
            yield f"prompt {i}"

    found = read_prompts(made())
    assert len(taken) == N_COMPARED
    assert found.total is None
    assert [x.prompt for x in found.lines()] == [f"prompt {i}" for i in range(1000)]


@pytest.mark.parametrize("of", [1, 2, 3, 8])
def test_shards_are_disjoint_and_all(of: int) -> None:
    shards = [to_shard(f"{i}/{of}") for i in range(of)]
    assert [sum(shard.has(n) for shard in shards) for n in range(20)] == [1] * 20
    assert [shard.size(20) for shard in shards] == [sum(map(shard.has, range(20))) for shard in shards]


@pytest.mark.parametrize("given", ["8/8", "1", "-1/8", (8, 8), (1, 2, 3), "a/b", 3, (0.5, 2), "1/0", ""])
def test_what_is_no_shard_is_refused(given: Any) -> None:
    with pytest.raises(js.InputError, match="shard is the number of the shard"):
        to_shard(given)
