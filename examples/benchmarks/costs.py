"""The command `python examples/benchmarks costs MODEL`: time and memory of each kind of call by prompt length, as a Markdown table.

Each call runs in a process of its own, whose largest memory above that of the loaded model is read from the system (Linux).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

import jscope_tl as js
from jscope_tl.model.loading import load_model

GUIDE = Path(__file__).parents[1] / "guide" / "costs.md"
CHANGED = 16
"""The token before the last so many is another one in the corrupted prompt of patching."""
INTRODUCTION = """# What a call costs

Made by `python examples/benchmarks costs` on {name} with torch {torch}, one thread of a CPU, float32. The prompt is this package's
source code. Each cell has the CPU seconds, the same time as a multiple of one forward pass in brackets, the peak memory above that of
the loaded model, and the passes that the result states (forward + backward).

*Layer map* is `at="resid_pre"`, *pattern* an influence pattern of the last 16 positions, *patching* `js.patching.compare` at three layers with
one token exchanged 16 before the end, *report* a page of the semantic result. Fisher stops at {max_rows} backward rows (vector-Jacobian products).
"""


def semantic(model: Any, tokens: Int[Tensor, "pos"], rows: int) -> Any:
    """One cotangent."""
    return js.attribute(model, tokens, "semantic", progress=False)


def fisher(model: Any, tokens: Int[Tensor, "pos"], rows: int) -> Any:
    """The whole distribution, estimated."""
    return js.attribute(model, tokens, "fisher", max_rows=rows, progress=False)


def layer_map(model: Any, tokens: Int[Tensor, "pos"], rows: int) -> Any:
    """One cotangent, all layers."""
    return js.attribute(model, tokens, "semantic", at="resid_pre", progress=False)


def pattern(model: Any, tokens: Int[Tensor, "pos"], rows: int) -> Any:
    """One cotangent for each of the last positions."""
    positions = range(max(0, len(tokens) - 16), len(tokens))
    return js.influence_pattern(model, tokens, "semantic", positions, progress=False)


def patching(model: Any, tokens: Int[Tensor, "pos"], rows: int) -> Any:
    """The first, the middle and the last layer."""
    corrupted, n = tokens.clone(), int(model.cfg.n_layers)
    place = -min(CHANGED, len(tokens))
    corrupted[place] = (tokens[place] + 1) % int(model.cfg.d_vocab)
    at = [f"blocks.{layer}.hook_resid_pre" for layer in sorted({0, n // 2, n - 1})]
    return js.patching.compare(model, tokens, corrupted, "semantic", at=at, progress=False)


def report(model: Any, tokens: Int[Tensor, "pos"], rows: int) -> Any:
    """A page."""
    result = semantic(model, tokens, rows)
    with tempfile.TemporaryDirectory() as folder:
        js.report(result, Path(folder) / "page.html")
    return result


CALLS: dict[str, Callable[[Any, Int[Tensor, "pos"], int], Any]] = {
    call.__name__: call for call in (semantic, fisher, layer_map, pattern, patching, report)
}


def prompt(model: Any, pos: int) -> Int[Tensor, "pos"]:
    """The first tokens of the package's own source."""
    files = sorted(Path(js.__file__).parent.rglob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return torch.tensor(model.tokenizer(text[: 20 * pos])["input_ids"][:pos])


def measured(name: str, call: str, pos: int, rows: int) -> dict[str, Any]:
    """One call in this process."""
    torch.set_num_threads(1)
    model = load_model(name)
    tokens = prompt(model, pos)
    CALLS[call](model, tokens[:8], rows)  # what is imported and cached the first time
    start = time.process_time()
    with torch.no_grad():
        model(tokens.unsqueeze(0))
    forward = time.process_time() - start
    before, start = _memory("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far is forgotten
    result = CALLS[call](model, tokens, rows)
    seconds = time.process_time() - start
    return {"seconds": seconds, "forward": forward, "MB": _memory("VmHWM") - before, "passes": _passes(result)}


def _memory(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1000


def _passes(result: Any) -> str:
    costs = list(result.costs.values()) if hasattr(result, "costs") else [result.provenance]
    return f"{sum(cost.n_forward for cost in costs):.3g} + {sum(cost.n_backward for cost in costs):g}"


def in_a_process(name: str, call: str, pos: int, rows: int) -> dict[str, Any]:
    """`measured` in a process of its own."""
    command = [sys.executable, str(Path(__file__).parent), "costs", name, "--one", call, "--pos", str(pos)]
    done = subprocess.run([*command, "--max-rows", str(rows)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{call} at {pos} tokens ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(name: str, calls: list[str], lengths: list[int], rows: int) -> str:
    """A row for each call, a column for each length."""
    lines = ["| call | " + " | ".join(f"{pos} tokens" for pos in lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    with tqdm(total=len(calls) * len(lengths), desc="calls", unit="call") as bar:
        for call in calls:
            cells = []
            for pos in lengths:
                m = in_a_process(name, call, pos, rows)
                ratio = m["seconds"] / m["forward"]
                cells.append(f"{m['seconds']:.1f} s ({ratio:.1f}), {m['MB']:.0f} MB, {m['passes']}")
                bar.update()
            lines.append(f"| {call.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser("python examples/benchmarks costs", description=__doc__)
    parser.add_argument("model", help="a HuggingFace name or a local folder")
    parser.add_argument("--pos", nargs="+", type=int, default=[128, 512, 1024])
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=list(CALLS))
    parser.add_argument("--max-rows", type=int, default=28, help="of Fisher Scope")
    parser.add_argument(
        "--write", type=Path, nargs="?", const=GUIDE, help="write the page there; without a path the guide's"
    )
    parser.add_argument("--one", choices=CALLS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(measured(given.model, given.one, given.pos[0], given.max_rows)))
        return
    found = table(given.model, given.calls, given.pos, given.max_rows)
    print(found)
    if given.write:
        introduction = INTRODUCTION.format(
            name=Path(given.model).name, torch=torch.__version__, max_rows=given.max_rows
        )
        given.write.write_text(f"{introduction}\n{found}", encoding="utf-8")
