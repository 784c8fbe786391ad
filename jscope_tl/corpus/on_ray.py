"""`Ray`: a run on many machines. Ray Data distributes the prompts, and every worker writes complete parts."""

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jscope_tl.corpus.batching import Budget, Explaining
from jscope_tl.corpus.folder import held
from jscope_tl.corpus.parts import ids_done, next_number, part_name, to_bytes, write
from jscope_tl.corpus.prompts import Prompts
from jscope_tl.corpus.questions import Asked
from jscope_tl.corpus.settings import need_same, settings_of
from jscope_tl.corpus.shards import Shard
from jscope_tl.engine.progress import progress_bar
from jscope_tl.errors import InputError, whole
from jscope_tl.model.loading import load_model

WINDOW = 256
"""How many parts are given to Ray at a time, which limits the memory of this process."""


@dataclass(frozen=True)
class Ray:
    """A Ray cluster, and the resources of each worker.

    Attributes:
        address: the address of the cluster, or ``"auto"`` for the cluster of this machine; None: that cluster, or a new one on this
            machine.
        workers: the number of workers, each with its own model; None: as many as the resources of the cluster allow.
        num_gpus, num_cpus: the resources of each worker; with a fraction such as 0.5, two workers share one GPU.
    """

    address: str | None = None
    workers: int | None = None
    num_gpus: float = 0
    num_cpus: float = 1

    def __post_init__(self) -> None:
        """Refuse invalid numbers."""
        if self.workers is not None and ((n := whole(self.workers)) is None or n < 1):
            raise InputError(
                f"workers is the number of processes that explain prompts, 1 or more; got {self.workers!r}."
            )
        if self.num_gpus < 0 or self.num_cpus <= 0:
            raise InputError(
                f"A worker needs num_gpus of at least 0 and num_cpus above 0; got {self.num_gpus!r} and {self.num_cpus!r}."
            )

    @property
    def of_each(self) -> dict[str, Any]:
        """The resources of a worker, as keywords of Ray."""
        return {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus}


def to_engine(engine: Any) -> Ray | None:
    """The cluster of an ``engine``; None for this process.

    Raises:
        InputError: the engine is unknown.
    """
    if isinstance(engine, Ray) or engine == "ray":
        return engine if isinstance(engine, Ray) else Ray()
    if engine != "local":
        raise InputError(f"engine is 'local', 'ray' or js.corpus.Ray(...); got {engine!r}.")
    return None


def run_on_ray(
    cluster: Ray,
    model: Any,
    asked: Asked,
    prompts: Prompts,
    folder: Path,
    shard: Shard,
    batch_tokens: int | None,
    part_rows: int,
    progress: bool | None,
) -> None:
    """Explain the prompts that have no row yet, on a cluster. If a worker dies, Ray explains its part again under the same name."""
    ray, load = _ray(), _loader(model, cluster)
    with _connected(ray, cluster), _plain_errors():
        first = ray.remote(**cluster.of_each)(_settings).remote(load, asked, prompts.known_by)
        settings = ray.get(first)
        with held(folder, shard, settings):
            done, number = ids_done(folder), next_number(folder, shard.label)
            left = (line for line in prompts.lines() if shard.has(line.n) and line.id not in done)
            total = shard.size(prompts.total)
            bar = progress_bar(progress, "prompts", "prompt", total=None if total is None else total - len(done))
            work = {"load": load, "asked": asked, "settings": settings, "folder": folder, "batch_tokens": batch_tokens}
            parts = iter(lambda: list(islice(left, part_rows)), [])
            try:
                while window := list(islice(parts, WINDOW)):
                    items = [
                        {"name": part_name(shard.label, number + i), "lines": pickle.dumps(lines)}
                        for i, lines in enumerate(window)
                    ]
                    number += len(items)
                    for n in _explained(ray, cluster, items, work):
                        bar.update(n)
            finally:
                bar.close()


def _explained(ray: Any, cluster: Ray, items: list[dict[str, Any]], work: Mapping[str, Any]) -> Iterator[int]:
    """The number of rows of each written part."""
    room = _room(ray, cluster) if cluster.workers is None else cluster.workers
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Worker, fn_constructor_kwargs=dict(work), batch_size=1, batch_format="numpy", concurrency=min(room, len(items)), **cluster.of_each
    )  # fmt: skip
    rows.context.enable_progress_bars = False  # for this data set only; this package has its own progress bar
    for batch in rows.iter_batches(batch_size=1, prefetch_batches=0):
        yield int(batch["n"].sum())


class Worker:
    """One process of a cluster, with its own model; Ray starts it again if it dies."""

    def __init__(
        self,
        load: Callable[[], Any],
        asked: Asked,
        settings: Mapping[str, Any],
        folder: Path,
        batch_tokens: int | None,
    ) -> None:
        question = asked.of(load())
        if not need_same(folder, settings_of(question, settings["prompts"])):
            raise InputError(
                f"A worker cannot find the run in {str(folder)!r}; give a folder on a file system that all machines share."
            )
        self.folder, self.explaining = folder, Explaining(question, Budget(batch_tokens))

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Explain the lines of one part, and write it."""
        rows = sorted(self.explaining.rows(pickle.loads(batch["lines"][0])), key=lambda pair: pair[0])
        write(self.folder, str(batch["name"][0]), to_bytes([row for _, row in rows]))
        return {"n": np.array([len(rows)])}


def _settings(load: Callable[[], Any], asked: Asked, known_by: Mapping[str, Any]) -> dict[str, Any]:
    return settings_of(asked.of(load()), known_by)


def _loader(model: Any, cluster: Ray) -> Callable[[], Any]:
    """The function that every worker calls to load the model."""
    if isinstance(model, str):
        return partial(load_model, model, "cuda" if cluster.num_gpus else "cpu")
    if not callable(model) or hasattr(model, "parameters"):
        raise InputError(
            "With engine='ray' every worker loads the model: give its name, its folder, or a function that returns it, such as "
            f"js.load_pocket_model; got {type(model).__name__}."
        )
    return model


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            "engine='ray' needs Ray Data, which is not installed: pip install 'jscope-tl[ray]'."
        ) from error
    return ray


def _room(ray: Any, cluster: Ray) -> int:
    """The number of workers for which the cluster has resources."""
    there = ray.cluster_resources()
    needs = {"GPU": cluster.num_gpus, "CPU": cluster.num_cpus}
    return max(1, min(int(there.get(kind, 0) / of_each) for kind, of_each in needs.items() if of_each))


@contextmanager
def _connected(ray: Any, cluster: Ray) -> Iterator[None]:
    """A context manager with a connection to a cluster; a cluster that it starts is stopped at the end."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    except ConnectionError as error:
        raise InputError(
            f"There is no Ray cluster at {cluster.address!r} ({error}); start one with `ray start --head`, or leave address out."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A context manager that raises an `InputError` of a worker in this process, with the same message."""
    try:
        yield
    except InputError as error:
        raise InputError(_own_words(error)) from None
    except Exception as error:
        cause: Any = error
        while cause is not None and not isinstance(cause, InputError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise InputError(_own_words(cause)) from error


def _own_words(error: InputError) -> str:
    """The message without the traceback that Ray adds."""
    cause = getattr(error, "cause", None)
    return str(error if cause is None else cause)
