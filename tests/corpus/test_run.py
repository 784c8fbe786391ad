"""A run writes what `js.attribute` says of each prompt, whatever the batches; a prompt that fails is a row with its error."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import jscope_tl as js
from jscope_tl.corpus import batching
from jscope_tl.corpus.schema import ROW
from tests.models import has_hooked

PROMPTS = [prompt.text for task in ("agreement", "translation") for prompt in js.pocket_prompts(task, 12)]
BAD = [
    {"id": "empty", "prompt": ""},
    {"id": "far", "prompt": "the keys", "position": 40},
    {"id": "unknown id", "tokens": [1, 10**6]},
    {"id": "long", "tokens": [1] * 5000},
    {"id": "nothing", "prompt": None, "source": "x"},
]


def same(row: Any, result: js.Attribution, rtol: float = 1e-3) -> None:
    """A row against an attribution; batches round otherwise than single prompts do."""
    scale = float(result.scores.abs().max())
    np.testing.assert_allclose(row.scores, result.scores.numpy(), rtol=rtol, atol=1e-4 * scale)
    target = result.prediction.target
    assert (row.tokens.tolist(), row.str_tokens) == (result.tokens.tolist(), result.str_tokens)
    assert (row.position, row.off_scale, row.error) == (result.position, result.off_scale, None)
    assert (row.target, row.target_str, row.rank) == (target.token, target.str_token, result.prediction.target_rank - 1)
    assert row.probability == pytest.approx(target.probability, rel=1e-3)
    assert row.entropy == pytest.approx(result.prediction.entropy, rel=1e-3, abs=1e-5)
    assert (row.n_forward, row.n_backward) == (result.provenance.n_forward, result.provenance.n_backward)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["temperature", "semantic", "fisher"])
@pytest.mark.parametrize("batch_tokens", [None, 40])
def test_rows_are_what_attribute_says(pocket: Any, tmp_path: Path, scope: str, batch_tokens: int | None) -> None:
    run = js.corpus.run(pocket, PROMPTS, tmp_path, scope, batch_tokens=batch_tokens, progress=False)
    assert len(run) == len(PROMPTS)
    assert run.n_errors == 0
    for i, prompt in enumerate(PROMPTS):
        row, result = run.row(i), js.attribute(pocket, prompt, scope)
        same(row, result)
        assert row.warnings == result.warnings
        if scope == "fisher":
            assert row.stderr is None if result.stderr is None else np.allclose(row.stderr, result.stderr.numpy())
    assert (run.scope, run.unit) == (result.scope, result.unit)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"gradient": "attnlrp"},
        {"reduction": "dot"},
        {"frozen": ["attn"]},
        {"at": "blocks.1.hook_resid_pre"},
        {"at": "pattern"},
        {"path": "line"},
        {"position": -3},
        {"prepend_bos": True},
    ],
)
def test_settings_are_those_of_attribute(pocket: Any, tmp_path: Path, how: dict[str, Any]) -> None:
    run = js.corpus.run(pocket, PROMPTS[:5], tmp_path, "log_prob", **how, progress=False)
    for i, prompt in enumerate(PROMPTS[:5]):
        result = js.attribute(pocket, prompt, "log_prob", **how)
        same(run.row(i), result)
    assert run.unit == result.unit


def test_each_prompt_has_its_own_target_baseline_and_position(pocket: Any, tmp_path: Path) -> None:
    asked = [
        {"prompt": PROMPTS[0], "target": " is", "baseline": " are"},
        {"prompt": PROMPTS[1], "target": " are", "baseline": " is", "position": -2},
        {"prompt": PROMPTS[2], "target": 12, "baseline": 13, "position": 3},
        {"prompt": PROMPTS[3]},
    ]
    run = js.corpus.run(pocket, asked, tmp_path, "contrastive", target=" were", baseline=" was", progress=False)
    for i, line in enumerate(asked):
        given = {"target": " were", "baseline": " was", "position": -1} | {
            k: v for k, v in line.items() if k != "prompt"
        }
        same(run.row(i), js.attribute(pocket, line["prompt"], "contrastive", **given))


def test_causes_of_many_prompts(pocket: Any, tmp_path: Path) -> None:
    """``"explain"`` gives the rows of `js.explain`, with each prompt's own target and baseline, and says what it is."""
    lines = [
        {"prompt": "the keys to the cabinet near the doors", "target": " are", "baseline": [" is", " was"]},
        {"prompt": "tom grew up in the south and goes to columbia . at school he is a", "position": 12},
        {"prompt": "the keys", "target": " two words"},
    ]
    run = js.corpus.run(pocket, lines, tmp_path, "explain", n=2)
    first, second, failed = run
    expected = js.explain(pocket, lines[0]["prompt"], " are", [" is", " was"], n=2)
    np.testing.assert_array_equal(first.scores, expected.scores.numpy())
    np.testing.assert_array_equal(
        second.scores, js.explain(pocket, lines[1]["prompt"], position=12, n=2).scores.numpy()
    )
    assert failed.error is not None
    assert (run.scope, run.unit, run.settings["scope"]) == (expected.scope, expected.unit, "explain")
    assert run.settings["options"] == {"target": None, "baseline": None, "n": 2, "gradient": "attnlrp"}
    assert run.settings["at"] == expected.provenance.hook_point
    assert len(js.corpus.by_distance(run).rows) > 3
    with pytest.raises(js.InputError, match="other settings, options.n: 2 against 3"):
        js.corpus.run(pocket, lines, tmp_path, "explain", n=3)


def test_causes_of_prompts_of_one_length(pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share no pass, in which the alternatives of one prompt would be those of all."""
    prompts = ["the keys near the door", "the key near the doors", "the cup near the doors"]
    monkeypatch.setattr(batching, "explain_together", lambda batch: pytest.fail("prompts share a pass"))
    how = {"n": 2, "gradient": "plain"}
    run = js.corpus.run(pocket, prompts, tmp_path, "explain", **how, path="point", at=["hook_embed"], progress=False)
    assert run.settings["gradient"] == "plain"
    for row, prompt in zip(run, prompts, strict=True):
        np.testing.assert_array_equal(row.scores, js.explain(pocket, prompt, **how).scores.numpy())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"at": "resid_pre"}, "explain takes no at, got 'resid_pre'"),
        ({"frozen": "attn"}, "explain takes no frozen"),
        ({"gradient": "lrp"}, "There are no gradient rules 'lrp'"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"matmul_precision": "lowest"}, "matmul_precision"),
        ({"target": " are is"}, "is 2 tokens"),
        ({"baseline": " zzz"}, "not in the vocabulary"),
        ({"path": "line"}, "explain takes no path"),
        ({"choice": "both"}, "explain has no option 'choice'. It has target, baseline, n"),
        ({"basline": " is"}, "Did you mean 'baseline'"),
        ({"n": 0}, "n is a whole number, 1 or more"),
    ],
)
def test_settings_that_explain_does_not_take(pocket: Any, tmp_path: Path, how: dict[str, Any], says: str) -> None:
    with pytest.raises(js.InputError, match=says):
        js.corpus.run(pocket, ["the keys"], tmp_path / "run", "explain", **how)
    assert not (tmp_path / "run").exists()


def test_a_target_of_several_tokens_is_explained_by_itself(pocket: Any, tmp_path: Path) -> None:
    asked = [{"prompt": PROMPTS[0], "target": " is in"}, {"prompt": PROMPTS[1], "target": " is"}]
    run = js.corpus.run(pocket, asked, tmp_path, "log_prob", progress=False)
    for i, line in enumerate(asked):
        result = js.attribute(pocket, line["prompt"], "log_prob", target=line["target"])
        np.testing.assert_allclose(run.row(i).scores, result.scores.numpy(), rtol=1e-3, atol=1e-5)
        assert run.row(i).target_str == line["target"]


def test_a_scope_without_a_target_carries_it_along(pocket: Any, tmp_path: Path) -> None:
    asked = [{"prompt": PROMPTS[0], "target": " is", "n": 3, "nan": float("nan"), "of": {"a": [1, None]}}]
    row = js.corpus.run(pocket, asked, tmp_path, "temperature", progress=False).row(0)
    same(row, js.attribute(pocket, PROMPTS[0], "temperature"))
    assert row.carried == {"target": " is", "n": 3, "nan": None, "of": {"a": [1, None]}}


@pytest.mark.newest_line
def test_a_function_is_a_scope_and_takes_targets(pocket: Any, tmp_path: Path) -> None:
    def pull(state: js.State, target: int = 5) -> torch.Tensor:
        return state.logit_gradient(target) if hasattr(state, "logit_gradient") else state.y.detach() * target

    run = js.corpus.run(pocket, [{"prompt": PROMPTS[0], "target": 7}, PROMPTS[0]], tmp_path, pull, progress=False)
    for i, target in enumerate((7, 5)):
        result = js.attribute(pocket, PROMPTS[0], pull, target=target)
        np.testing.assert_allclose(run.row(i).scores, result.scores.numpy(), rtol=1e-3, atol=1e-4)
    assert run.scope == "pull"


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["temperature", "fisher"])
def test_a_prompt_that_fails_is_a_row_and_leaves_the_others_as_they_are(
    pocket: Any, tmp_path: Path, scope: str
) -> None:
    good = [{"id": f"good {i}", "prompt": prompt} for i, prompt in enumerate(PROMPTS[:6])]
    given = [x for pair in zip(good, [*BAD, good[-1]], strict=False) for x in pair][:11]
    run = js.corpus.run(pocket, given, tmp_path / "a", scope, progress=False)
    assert {row.id for row in run if row.error} == {bad["id"] for bad in BAD}
    assert "at most" in str(run.row("long").error)
    assert "outside the prompt" in str(run.row("far").error)
    assert run.row("nothing").carried == {"source": "x"}
    for i, prompt in enumerate(PROMPTS[:6]):
        same(run.row(f"good {i}"), js.attribute(pocket, prompt, scope))


def test_a_prompt_that_fails_in_its_pass_leaves_those_beside_it(pocket: Any, tmp_path: Path) -> None:
    def pull(state: js.State) -> torch.Tensor:
        if state.tokens.tolist() == bad.tolist():
            raise js.InputError("not this one")
        if state.tokens.tolist() == odd.tolist():
            raise RuntimeError("something\nelse")
        return state.y.detach()

    bad, odd = (js.attribute(pocket, PROMPTS[i]).tokens for i in (3, 9))
    run = js.corpus.run(pocket, PROMPTS, tmp_path, pull, progress=False)
    assert {row.id: row.error for row in run if row.error} == {"3": "not this one", "9": "RuntimeError: something else"}
    assert len(run) == len(PROMPTS)
    np.testing.assert_allclose(run.row(4).scores, js.attribute(pocket, PROMPTS[4], lambda s: s.y.detach()).scores, rtol=1e-3, atol=1e-4)  # fmt: skip


def test_errors_that_nobody_foresaw_end_the_run_where_nothing_works(pocket: Any, tmp_path: Path) -> None:
    def pull(state: js.State) -> torch.Tensor:
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        js.corpus.run(pocket, PROMPTS, tmp_path, pull, progress=False)
    assert len(js.corpus.open(tmp_path)) == 0, "what failed for no reason of its own is tried again"


@pytest.mark.slow
def test_where_memory_runs_out_batches_are_halved(pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real, real_alone = batching.explain_together, batching.explain_target

    def scarce(batch: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(batch)

    def alone(setup: Any, tokens: Any, position: int) -> Any:
        if len(tokens) == longest:
            raise MemoryError
        return real_alone(setup, tokens, position)

    longest = max(len(js.attribute(pocket, prompt).tokens) for prompt in PROMPTS)
    monkeypatch.setattr(batching, "explain_together", scarce)
    run = js.corpus.run(pocket, PROMPTS, tmp_path / "a", batch_tokens=10**6, progress=False)
    assert run.n_errors == 0
    assert sizes[0] == len(PROMPTS)
    assert sum(size > 3 for size in sizes) < len(PROMPTS) / 3
    monkeypatch.setattr(batching, "explain_target", alone)
    run = js.corpus.run(pocket, PROMPTS, tmp_path / "b", "temperature", batch_tokens=1, progress=False)
    errors = [row for row in run if row.error]
    assert 0 < len(errors) < len(PROMPTS)
    assert all("too little memory" in str(row.error) for row in errors)


@pytest.mark.slow
def test_where_the_system_does_not_tell_its_memory_batches_are_those_of_a_cpu(
    pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS and Windows, which have no /proc/meminfo."""
    monkeypatch.setattr("jscope_tl.corpus.batching.available_bytes", lambda device: float("inf"))
    run = js.corpus.run(pocket, PROMPTS, tmp_path / "run", "semantic", progress=False)
    assert run.n_errors == 0
    for row, prompt in zip(run, PROMPTS, strict=True):
        same(row, js.attribute(pocket, prompt, "semantic"))


@pytest.mark.slow
@pytest.mark.newest_line
def test_files_are_read_by_pyarrow_and_duckdb(pocket: Any, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    js.corpus.run(pocket, [*PROMPTS, *BAD], tmp_path, "log_prob", part_rows=10, progress=False)
    files = sorted(tmp_path.glob("part-*.parquet"))
    assert len(files) == 3
    tables = [pq.read_table(file) for file in files]
    assert all(table.schema.equals(ROW) for table in tables)
    assert sum(table.num_rows for table in tables) == 29
    pattern = str(tmp_path / "part-*.parquet")
    ask = duckdb.connect().execute
    counted = ask(f"select count(*), count(error), sum(len(tokens)) from '{pattern}'").fetchall()
    lengths = sum(len(js.attribute(pocket, prompt).tokens) for prompt in PROMPTS)
    assert counted == [(29, 5, lengths)]
    best = ask(f"select str_tokens[list_position(scores, list_max(scores))] from '{pattern}' where id = '0'").fetchall()
    result = js.attribute(pocket, PROMPTS[0], "log_prob")
    assert best == [(result.str_tokens[int(result.scores.argmax())],)]


def test_rows_of_a_part_are_in_the_order_of_the_lines(pocket: Any, tmp_path: Path) -> None:
    run = js.corpus.run(pocket, PROMPTS, tmp_path, progress=False)
    assert [row.id for row in run] == [str(i) for i in range(len(PROMPTS))]


@pytest.mark.newest_line
def test_settings_say_what_determines_the_numbers(pocket: Any, tmp_path: Path) -> None:
    js.corpus.run(pocket, PROMPTS[:1], tmp_path, "fisher", rank=3, method="low_rank", progress=False)
    told = json.loads((tmp_path / "run.json").read_text())
    result = js.attribute(pocket, PROMPTS[0], "fisher", rank=3, method="low_rank")
    assert told["model"] == result.provenance.model_name
    assert told["dtype"] == result.provenance.dtype
    assert told["scope"] == "fisher"
    assert told["unit"] == result.unit
    assert told["options"]["rank"] == 3
    assert set(told["versions"]) == {"jscope_tl", "transformer_lens", "torch"}


@pytest.mark.parametrize(
    ("scope", "how", "says"),
    [
        ("temperatur", {}, "Did you mean 'temperature'"),
        ("log_prob", {"target": 10**7}, "out of range"),
        ("temperature", {"target": " is"}, "has no option 'target'"),
        ("temperature", {"at": ["hook_embed", "blocks.1.hook_resid_pre"]}, "layer map"),
        ("temperature", {"at": "resid_pre"}, "layer map"),
        ("temperature", {"position": 10**6}, "outside the prompt"),
        ("temperature", {"batch_tokens": 0}, "batch_tokens"),
        ("temperature", {"part_rows": 0}, "part_rows"),
        ("temperature", {"shard": "8/8"}, "shard is the number of the shard"),
    ],
)
def test_what_fails_for_every_prompt_is_refused_before_any_work(
    pocket: Any, tmp_path: Path, scope: str, how: dict[str, Any], says: str
) -> None:
    with pytest.raises(js.InputError) as refused:
        js.corpus.run(pocket, PROMPTS, tmp_path / "run", scope, **how)
    assert says in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_chats_are_explained_where_the_answer_begins(llama: Any, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    run = js.corpus.run(llama, [{"messages": chat}], tmp_path, chat_template=template, progress=False)
    row = run.row(0)
    if llama.tokenizer is None:
        assert "no tokenizer" in str(row.error)
    else:
        same(row, js.attribute(llama, row.tokens.tolist(), "temperature"))


def test_every_class_of_model(llama: Any, tmp_path: Path) -> None:
    prompts = [[1, 2, 3, 4, 5], [5, 4, 3], [2, 2]]
    run = js.corpus.run(llama, prompts, tmp_path, "semantic", progress=False)
    for i, prompt in enumerate(prompts):
        result = js.attribute(llama, prompt, "semantic")
        np.testing.assert_allclose(run.row(i).scores, result.scores.numpy(), rtol=1e-3, atol=1e-5)
    assert run.settings["model_class"] == type(llama).__name__
    assert has_hooked() or run.settings["model_class"] == "TransformerBridge"
