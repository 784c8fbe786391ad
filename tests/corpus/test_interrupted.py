"""A run that is killed, interrupted, sharded, damaged or out of disk goes on from what is complete, and two processes never mix."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jscope_tl as js
from jscope_tl.corpus import explaining, folder, parts
from jscope_tl.corpus.schema import ROW

pytestmark = [pytest.mark.newest_line, pytest.mark.slow]

PROMPTS = [prompt.text for prompt in js.pocket_prompts("agreement", 30)]
SLOW_RUN = """
import sys, time
import jscope_tl as js
from jscope_tl.corpus import batching

real = batching.explain_together
def slow(batch):
    time.sleep(float(sys.argv[3]))
    return real(batch)

batching.explain_together = slow
js.corpus.run(js.load_pocket_model(), sys.argv[1], sys.argv[2], part_rows=8, batch_tokens=40, progress=False)
"""


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def start(prompts: Path, run: Path, wait: float = 0.2) -> subprocess.Popen[bytes]:
    here = Path(js.__file__).parents[1]
    command = [sys.executable, "-c", SLOW_RUN, str(prompts), str(run), str(wait)]
    return subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE)


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def need_equal(run: js.corpus.CorpusRun, whole: js.corpus.CorpusRun) -> None:
    """The same rows; scores to rounding, since other prompts may have been beside them."""
    assert sorted(run.ids.to_pylist()) == sorted(whole.ids.to_pylist())
    for row in whole:
        other = run.row(row.id)
        for name in ROW.names:
            one, two = getattr(row, name), getattr(other, name)
            if name in ("scores", "probability", "entropy"):
                np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)
            else:
                assert np.array_equal(one, two) if isinstance(one, np.ndarray) else one == two


def test_kill_and_resume_is_the_run_that_was_not_killed(pocket: Any, prompts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    killed = start(prompts, run)
    until(lambda: len([*run.glob("part-*.parquet")]) >= 2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = js.corpus.open(run)
    assert 0 < len(before) < len(PROMPTS)
    (run / ".part-0000-of-0001-000099.parquet.unfinished").write_bytes(
        b"torn"
    )  # as a process leaves that was killed while it wrote
    resumed = js.corpus.run(pocket, prompts, run, part_rows=8, batch_tokens=40, progress=False)
    need_equal(resumed, js.corpus.run(pocket, prompts, tmp_path / "whole", progress=False))
    assert set(before.files) <= set(resumed.files)
    assert not [*run.glob("*.unfinished"), *run.glob(".*.unfinished")]


def test_two_processes_on_one_folder_are_refused(pocket: Any, prompts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    other = start(prompts, run)
    until(lambda: [*run.glob("part-*.parquet")])
    with pytest.raises(js.InputError, match=f"is being written by process {other.pid} of .*, shard 0000/0001"):
        js.corpus.run(pocket, prompts, run, progress=False)
    with pytest.raises(js.InputError, match="all shards of a run must have the same number of shards"):
        js.corpus.run(pocket, prompts, run, shard="1/2", progress=False)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert len(js.corpus.run(pocket, prompts, run, progress=False)) == len(PROMPTS), "the lock dies with its process"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_union_of_shards_is_the_whole_run(
    pocket: Any, prompts: Path, tmp_path: Path, order: tuple[int, ...]
) -> None:
    for i in order:
        found = js.corpus.run(pocket, prompts, tmp_path / "shards", shard=(i, 3), progress=False)
    need_equal(found, js.corpus.run(pocket, prompts, tmp_path / "whole", progress=False))
    assert {Path(file).name for file in found.files} == {f"part-{i:04d}-of-0003-000000.parquet" for i in range(3)}


def test_a_run_goes_on_in_other_shards(pocket: Any, prompts: Path, tmp_path: Path) -> None:
    js.corpus.run(pocket, prompts, tmp_path / "run", shard=(1, 2), progress=False)
    js.corpus.run(pocket, prompts, tmp_path / "run", shard=(0, 3), progress=False)
    found = js.corpus.run(pocket, prompts, tmp_path / "run", progress=False)
    need_equal(found, js.corpus.run(pocket, prompts, tmp_path / "whole", progress=False))


def test_more_shards_than_prompts(pocket: Any, tmp_path: Path) -> None:
    assert len(js.corpus.run(pocket, PROMPTS[:2], tmp_path, shard="7/8", progress=False)) == 0


def test_prompts_may_be_added_at_the_end(pocket: Any, prompts: Path, tmp_path: Path) -> None:
    js.corpus.run(pocket, PROMPTS[:20], tmp_path / "run", progress=False)
    first = (tmp_path / "run" / "part-0000-of-0001-000000.parquet").read_bytes()
    found = js.corpus.run(pocket, prompts, tmp_path / "run", progress=False)
    assert len(found) == len(PROMPTS)
    assert (tmp_path / "run" / "part-0000-of-0001-000000.parquet").read_bytes() == first


def test_a_run_that_is_complete_does_nothing(pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    js.corpus.run(pocket, PROMPTS, tmp_path, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(explaining.Explaining, "_run", lambda *_: pytest.fail("nothing is left to explain"))
    js.corpus.run(pocket, PROMPTS, tmp_path, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"scope": "log_prob"}, "scope: 'temperature' against 'log_prob'; unit: "),
        ({"gradient": "attnlrp"}, "gradient: 'plain' against 'attnlrp'"),
        ({"position": -2}, "position: -1 against -2"),
        ({"at": "blocks.0.hook_resid_post"}, "at: 'hook_embed' against 'blocks.0.hook_resid_post'"),
        ({"reduction": "dot"}, "options.reduction: None against 'dot'"),
        ({"prepend_bos": True}, "prepend_bos: None against True"),
    ],
)
def test_other_settings_are_refused_by_name(pocket: Any, tmp_path: Path, how: dict[str, Any], says: str) -> None:
    js.corpus.run(pocket, PROMPTS, tmp_path, progress=False)
    with pytest.raises(js.InputError) as refused:
        js.corpus.run(pocket, PROMPTS, tmp_path, **how, progress=False)
    assert says in str(refused.value)
    assert len(js.corpus.open(tmp_path)) == len(PROMPTS)


def test_other_options_models_and_versions_are_refused_by_name(
    pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    js.corpus.run(pocket, PROMPTS[:3], tmp_path, "fisher", method="low_rank", rank=2, progress=False)
    with pytest.raises(js.InputError, match="options.rank: 2 against 3"):
        js.corpus.run(pocket, PROMPTS[:3], tmp_path, "fisher", method="low_rank", rank=3, progress=False)
    other = js.load_pocket_model(dtype="float64")
    with pytest.raises(js.InputError, match="dtype: 'float32' against 'float64'"):
        js.corpus.run(other, PROMPTS[:3], tmp_path, "fisher", method="low_rank", rank=2, progress=False)
    changed = js.load_pocket_model()
    next(iter(changed.parameters())).data.mul_(1.5)
    with pytest.raises(js.InputError, match="model: 'jscope-pocket' with weights .* against 'jscope-pocket' with"):
        js.corpus.run(changed, PROMPTS[:3], tmp_path, "fisher", method="low_rank", rank=2, progress=False)
    told = json.loads((tmp_path / "run.json").read_text())
    told["versions"]["torch"] = "1.0"
    (tmp_path / "run.json").write_text(json.dumps(told))
    with pytest.raises(js.InputError, match="versions.torch: '1.0' against"):
        js.corpus.run(pocket, PROMPTS[:3], tmp_path, "fisher", method="low_rank", rank=2, progress=False)


def test_other_prompts_are_refused(pocket: Any, tmp_path: Path) -> None:
    js.corpus.run(pocket, PROMPTS[:5], tmp_path, progress=False)
    with pytest.raises(js.InputError, match=r"number 1 \(counted from 0\) is a different one"):
        js.corpus.run(pocket, [PROMPTS[0], *PROMPTS[2:]], tmp_path, progress=False)


def test_batches_parts_and_device_are_no_other_settings(pocket: Any, tmp_path: Path) -> None:
    js.corpus.run(pocket, PROMPTS[:5], tmp_path, progress=False)
    assert len(js.corpus.run(pocket, PROMPTS, tmp_path, batch_tokens=9, part_rows=2, progress=False)) == len(PROMPTS)


@pytest.mark.parametrize("damage", ["cut", "byte", "empty", "text"])
def test_a_damaged_part_is_refused_by_name(pocket: Any, tmp_path: Path, damage: str) -> None:
    js.corpus.run(pocket, PROMPTS, tmp_path, part_rows=10, progress=False)
    path = tmp_path / "part-0000-of-0001-000001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes({"cut": content[:-50], "byte": content, "empty": b"", "text": b"text"}[damage])
    with pytest.raises(js.InputError, match=f"{path.name}.*Delete it and run the same command again"):
        js.corpus.run(pocket, PROMPTS, tmp_path, progress=False)
    path.unlink()
    need_equal(
        js.corpus.run(pocket, PROMPTS, tmp_path, progress=False),
        js.corpus.run(pocket, PROMPTS, tmp_path.with_name("whole"), progress=False),
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"prompts": 3}'])
def test_damaged_settings_are_refused(pocket: Any, tmp_path: Path, content: bytes) -> None:
    js.corpus.run(pocket, PROMPTS[:3], tmp_path, progress=False)
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(js.InputError, match="run.json"):
        js.corpus.run(pocket, PROMPTS[:3], tmp_path, progress=False)
    (tmp_path / "run.json").unlink()
    with pytest.raises(js.InputError, match="parts of a run but no run.json"):
        js.corpus.run(pocket, PROMPTS[:3], tmp_path, progress=False)


def interrupted_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = explaining.Explaining.rows, []

    def rows(self: Any, lines: Any) -> Iterator[Any]:
        for pair in real(self, lines):
            if len(done) == n:
                raise KeyboardInterrupt
            done.append(pair)
            yield pair

    monkeypatch.setattr(explaining.Explaining, "rows", rows)


def test_an_interrupt_writes_what_is_complete(pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupted_after(13, patch)
        with pytest.raises(KeyboardInterrupt):
            js.corpus.run(pocket, PROMPTS, tmp_path, part_rows=10, progress=False)
    assert len(js.corpus.open(tmp_path)) == 13
    assert len(js.corpus.run(pocket, PROMPTS, tmp_path, progress=False)) == len(PROMPTS)


def test_rows_do_not_wait_longer_than_a_minute(pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "PART_SECONDS", -1.0)
    assert len(js.corpus.run(pocket, PROMPTS[:4], tmp_path, progress=False).files) == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(
            f"needs to mount a tmpfs: {done.stderr.decode().strip()}; the test with a limit on files runs instead"
        )
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_clearly_and_tears_nothing(pocket: Any, small_disk: Path) -> None:
    run, filler = small_disk / "run", small_disk / "filler"
    filler.write_bytes(bytes(16 * 1024))
    with pytest.raises(js.InputError, match="no space left.*free some space and run the same command again"):
        js.corpus.run(pocket, PROMPTS, run, part_rows=5, progress=False)
    kept = js.corpus.open(run)
    assert 0 < len(kept) < len(PROMPTS)
    assert len(kept) % 5 == 0
    assert not [*run.glob(".*.unfinished")]
    filler.unlink()
    assert len(kept) < len(js.corpus.run(pocket, PROMPTS[: len(kept) + 3], run, progress=False)) == len(kept) + 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_wherever_it_shows(pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As the system reports it when a file is flushed to the disk, of a second part."""
    real, calls = os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) == 3:  # run.json and one part have room
            raise OSError(number, os.strerror(number))
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(parts.os, "fsync", full)
        with pytest.raises(js.InputError, match="no space left"):
            js.corpus.run(pocket, PROMPTS, tmp_path, part_rows=10, progress=False)
    assert len(js.corpus.open(tmp_path)) == 10
    assert not [*tmp_path.glob(".*.unfinished")]
    assert len(js.corpus.run(pocket, PROMPTS, tmp_path, progress=False)) == len(PROMPTS)


def test_a_file_system_without_locks_is_said(pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder.fcntl, "flock", none)
    with pytest.warns(UserWarning, match="has no locks"):
        js.corpus.run(pocket, PROMPTS[:3], tmp_path, progress=False)


def test_a_folder_that_cannot_be_made_is_refused(pocket: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(js.InputError, match="cannot be created"):
            js.corpus.run(pocket, PROMPTS[:3], path, progress=False)
