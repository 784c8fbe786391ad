"""The command `python examples/benchmarks corpora`: prompts per second of a corpus run, its memory, and what shards and Ray cost."""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import jscope_tl as js
from jscope_tl.model.loading import load_model

SCOPES = ("semantic", "temperature", "fisher")
SHORTEST, LONGEST = 20, 60
"""Tokens of a prompt."""
WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import corpora
model, ready, go = corpora.loaded(sys.argv[2]), Path(sys.argv[4]), Path(sys.argv[5])
prompts = corpora.made(model, int(sys.argv[6]))
ready.touch()
while not go.exists():
    time.sleep(0.01)
print(corpora.seconds(lambda: corpora.js.corpus.run(model, prompts, sys.argv[3], shard=sys.argv[7], progress=False)))
"""
"""A process that waits until all are ready."""


def main(arguments: list[str]) -> None:
    """Print what is asked for as Markdown tables."""
    parser = argparse.ArgumentParser(prog="python examples/benchmarks corpora", description=__doc__)
    parser.add_argument(
        "model", nargs="?", default="", help="a HuggingFace name or folder; the pocket model without it"
    )
    parser.add_argument("--n", type=int, default=64, help="prompts (default: 64)")
    parser.add_argument("--times", type=int, default=3, help="how often each is taken (default: 3)")
    parser.add_argument("--scopes", nargs="*", default=SCOPES)
    parser.add_argument("--memory", type=int, help="also the memory of a run over so many prompts")
    parser.add_argument("--shards", action="store_true", help="also two processes against one")
    parser.add_argument("--ray", action="store_true", help="also one worker on Ray against none")
    options = parser.parse_args(arguments)
    model = loaded(options.model)
    if options.scopes:
        throughput(model, options)
    if options.memory:
        memory(model, options.memory)
    if options.shards:
        shards(options)
    if options.ray:
        on_ray(model, options)


def loaded(name: str) -> Any:
    """The model of that name."""
    return load_model(name) if name else js.load_pocket_model()


def made(model: Any, n: int) -> list[list[int]]:
    """Random prompts as ids, of 20 to 60 tokens: what they say does not change what they cost."""
    rng = random.Random(0)
    vocab = min(500, int(model.cfg.d_vocab))
    return [[rng.randrange(10, vocab) for _ in range(rng.randint(SHORTEST, LONGEST))] for _ in range(n)]


def seconds(run: Callable[[], Any]) -> float:
    """Of the wall."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cpu_seconds(run: Callable[[], Any]) -> float:
    """Of the processor, which says the same on a machine with other work."""
    start = time.process_time()
    run()
    return time.process_time() - start


def throughput(model: Any, options: argparse.Namespace) -> None:
    """Prompts per second of each scope, one by one and as a run; the two are taken in turns."""
    print(
        f"{torch.get_num_threads()} threads, {options.n} prompts, medians of {options.times}; seconds are the processor's\n"
    )
    print("| scope | one by one, prompts/s | run, prompts/s | times as many |\n|---|---|---|---|")
    for scope in options.scopes:
        prompts = made(model, options.n if scope != "fisher" else max(2, options.n // 16))
        pairs = [_pair(model, prompts, scope) for _ in range(options.times)]
        alone, together = (len(prompts) / median(of_one) for of_one in zip(*pairs, strict=True))
        ratio = median(a / b for a, b in pairs)
        print(f"| `{scope}` | {alone:.2f} | {together:.2f} | {ratio:.2f} |", flush=True)


def _pair(model: Any, prompts: Sequence[Any], scope: str) -> tuple[float, float]:
    js.attribute(model, prompts[0], scope)
    with tempfile.TemporaryDirectory() as folder:
        alone = cpu_seconds(lambda: [js.attribute(model, prompt, scope, progress=False) for prompt in prompts])
        return alone, cpu_seconds(lambda: js.corpus.run(model, prompts, folder, scope, progress=False))


def memory(model: Any, n: int) -> None:
    """Resident memory while prompts are read from a file."""
    seen: dict[int, float] = {}
    prompts = made(model, n)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prompts.jsonl")
        path.write_text("".join(f'{{"tokens": {prompt}}}\n' for prompt in prompts))
        del prompts
        parts = Path(folder, "run")

        from jscope_tl.corpus.parts import Parts

        flush = Parts.flush

        def watched(self: Any) -> None:
            flush(self)
            seen[len([*parts.glob("part-*.parquet")])] = _resident()

        Parts.flush = watched  # type: ignore[method-assign]
        took = seconds(lambda: js.corpus.run(model, path, parts, progress=False))
        Parts.flush = flush  # type: ignore[method-assign]
        size = sum(file.stat().st_size for file in parts.iterdir())
    places = sorted({round(i * (len(seen) - 1) / 7) for i in range(8)})
    print(f"\n{n} prompts in {took:.0f} s, {size / 2**20:.0f} MiB of files\n\n| parts | resident MiB |\n|---|---|")
    for place in places:
        part = sorted(seen)[place]
        print(f"| {part} | {seen[part]:.0f} |")


def _resident() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def shards(options: argparse.Namespace) -> None:
    """Seconds of one process and of two with half of the prompts each, models loaded."""
    times = [[max(_processes(options, k)) for k in (1, 2)] for _ in range(options.times)]
    one, two = (median(of_one) for of_one in zip(*times, strict=True))
    ratio = median(a / b for a, b in times)
    print(f"\none process {one:.1f} s, two {two:.1f} s: {ratio:.2f} times as fast")


def _processes(options: argparse.Namespace, n: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        ready = [Path(folder, f"ready{i}") for i in range(n)]
        go = Path(folder, "go")
        here = str(Path(__file__).parent)
        started = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    WORKER,
                    here,
                    options.model,
                    f"{folder}/run",
                    str(ready[i]),
                    str(go),
                    str(options.n),
                    f"{i}/{n}",
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(n)
        ]
        while not all(path.exists() for path in ready):
            time.sleep(0.05)
        go.touch()
        return [float(process.communicate()[0]) for process in started]


def on_ray(model: Any, options: argparse.Namespace) -> None:
    """Seconds of a run here, and of one worker on Ray with all that it takes to start."""
    name, prompts = options.model, made(model, options.n)
    cluster = js.corpus.Ray(workers=1)
    load = name or js.load_pocket_model
    with tempfile.TemporaryDirectory() as folder:
        local = seconds(lambda: js.corpus.run(model, prompts, f"{folder}/a", progress=False))
        import ray

        start = seconds(lambda: ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False))
        few = seconds(lambda: js.corpus.run(load, prompts[:1], f"{folder}/b", engine=cluster, progress=False))
        rest = seconds(
            lambda: js.corpus.run(load, prompts, f"{folder}/b", engine=cluster, part_rows=64, progress=False)
        )
        ray.shutdown()
    print(f"\nhere {local:.1f} s; Ray: cluster {start:.1f} s, one prompt {few:.1f} s, the others {rest:.1f} s")
