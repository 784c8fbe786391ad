"""A run on a Ray cluster has the same files in the end, also where a worker is killed in the middle."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jscope_tl as js
from jscope_tl.corpus import on_ray
from tests.corpus.test_interrupted import need_equal

PROMPTS = [{"id": f"p{i}", "prompt": prompt.text} for i, prompt in enumerate(js.pocket_prompts("agreement", 48))]
pytestmark = pytest.mark.newest_line


@pytest.fixture(scope="module")
def cluster() -> Iterator[js.corpus.Ray]:
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'jscope-tl[ray]'")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield js.corpus.Ray(workers=2)
    ray.shutdown()


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(pocket: Any, cluster: js.corpus.Ray, tmp_path: Path) -> None:
    started, run = tmp_path / "workers", tmp_path / "run"
    started.mkdir()

    def load() -> Any:
        """In each worker; it says that it is there, and is slow, so that there is a middle."""
        from jscope_tl.corpus import batching

        (started / str(os.getpid())).touch()
        real = batching.explain_together

        def slow(batch: Any) -> Any:
            time.sleep(0.5)
            return real(batch)

        batching.explain_together = slow
        return js.load_pocket_model()

    killed: list[int] = []

    def kill_one() -> None:
        end = time.monotonic() + 300
        while time.monotonic() < end and not [*run.glob("part-*.parquet")]:
            time.sleep(0.05)
        running = [int(path.name) for path in started.iterdir() if Path(f"/proc/{path.name}").exists()]
        newest = max(running, key=lambda pid: (started / str(pid)).stat().st_mtime)  # the oldest made the settings
        os.kill(newest, signal.SIGKILL)
        killed.append(newest)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    found = js.corpus.run(load, PROMPTS, run, engine=cluster, part_rows=4, batch_tokens=20, progress=False)
    killer.join()
    assert killed
    assert len([*started.iterdir()]) >= 4, "the settings, two workers, and one in place of the killed"
    need_equal(found, js.corpus.run(pocket, PROMPTS, tmp_path / "whole", progress=False))
    assert [Path(file).name for file in found.files] == [f"part-0000-of-0001-{i:06d}.parquet" for i in range(12)]


@pytest.mark.slow
def test_a_run_goes_on_on_a_cluster_and_back(pocket: Any, cluster: js.corpus.Ray, tmp_path: Path) -> None:
    js.corpus.run(pocket, PROMPTS[:20], tmp_path / "run", "log_prob", progress=False)
    js.corpus.run(js.load_pocket_model, PROMPTS[:40], tmp_path / "run", "log_prob", engine=cluster, progress=False)
    found = js.corpus.run(pocket, PROMPTS, tmp_path / "run", "log_prob", progress=False)
    need_equal(found, js.corpus.run(pocket, PROMPTS, tmp_path / "whole", "log_prob", progress=False))
    with pytest.raises(js.InputError, match="^.*has a run with other settings, scope: 'log_prob' against 'fisher'"):
        js.corpus.run(js.load_pocket_model, PROMPTS, tmp_path / "run", "fisher", engine=cluster)
    with pytest.raises(js.InputError, match="^There is no scope 'fishr'"):
        js.corpus.run(js.load_pocket_model, PROMPTS, tmp_path / "run", "fishr", engine=cluster)


def test_without_ray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(js.InputError, match=r"pip install 'jscope-tl\[ray\]'"):
        js.corpus.run(js.load_pocket_model, PROMPTS, tmp_path, engine="ray")


def test_what_is_no_engine_is_refused(pocket: Any, tmp_path: Path) -> None:
    with pytest.raises(js.InputError, match="engine is 'local', 'ray'"):
        js.corpus.run(pocket, PROMPTS, tmp_path, engine="slurm")
    for how in ({"workers": 0}, {"num_gpus": -1.0}, {"num_cpus": 0.0}):
        with pytest.raises(js.InputError):
            on_ray.Ray(**how)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_loaded_model_is_refused(pocket: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'jscope-tl[ray]'")
    with pytest.raises(js.InputError, match="every worker loads the model"):
        js.corpus.run(pocket, PROMPTS, tmp_path, engine="ray")
