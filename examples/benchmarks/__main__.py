"""What an estimate costs and how wrong it is, and how near the engine is to the machine. It asserts nothing.

`python examples/benchmarks` prints ratios, each measured within one run; it writes JSON and a figure where asked to.
`python examples/benchmarks architectures` checks the decoder classes that TransformerLens loads, and writes the guide's table.
`python examples/benchmarks costs MODEL` takes time and memory by prompt length.
`python examples/benchmarks causes MODEL ...` says which methods put a validated cause on top.
`python examples/benchmarks claims MODEL ...` takes the paper's own prompts by its scopes and by `js.explain`.
`python examples/benchmarks components MODEL GROUND_TRUTH` holds predicted effects of heads, MLPs and edges against measured ones.
`python examples/benchmarks control MODEL GROUND_TRUTH` compares the scores of scopes with those of a random direction.
`python examples/benchmarks corpora MODEL` takes prompts per second, memory, shards and Ray of a corpus run.
`python examples/benchmarks explorer MODEL ...` takes the times of the explorer's page in a browser.
"""

import argparse
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import architecture_table
import causes
import claims
import components
import control
import corpora
import costs
import engine
import explorer
import torch
from estimators import BUDGETS, Measured, field, linear
from shapes import SHAPES, build

import jscope_tl as js


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python examples/benchmarks", description="Ratios, each measured within one run.")
    parser.add_argument("--shapes", nargs="+", default=["pocket", "gpt2-small"], choices=["pocket", *SHAPES])
    parser.add_argument("--pos", nargs="+", type=int, default=[64, 128], help="prompt lengths of the random models")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=8, help="draws of each estimator")
    parser.add_argument("--skip", nargs="+", default=[], choices=["engine", "estimators", "batch"])
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--figure", type=Path, help="write error against cost there")
    return parser.parse_args()


def prompts_of(shape: str, lengths: list[int], seed: int) -> list[Any]:
    """Pocket prompts, one of each task; random tokens otherwise."""
    if shape == "pocket":
        return [js.pocket_prompts(task, 1)[0].text for task in js.pocket_tasks() if task != "series"]
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, SHAPES[shape]["d_vocab"], (n,), generator=generator) for n in lengths]


def engine_ratios(shape: str, model: Any, lengths: list[int], seed: int) -> list[dict[str, Any]]:
    """One row for each prompt length."""
    rows = []
    vocab = int(model.cfg.d_vocab)
    for n in lengths:
        tokens = torch.randint(0, vocab, (n,), generator=torch.Generator().manual_seed(seed))
        row: dict[str, Any] = {"model": shape, "pos": n}
        for measure in (
            engine.single_cotangent,
            engine.overhead,
            engine.row_throughput,
            engine.memory,
            engine.preparation,
        ):
            row |= measure(model, tokens)
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    return "| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |"


def _head(row: dict[str, Any]) -> str:
    return "| " + " | ".join(row) + " |\n|" + "---|" * len(row)


def draw(measured: list[Measured], path: Path) -> None:
    """Error against cost, a panel for each model."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(m.model for m in measured))
    methods = dict.fromkeys(m.method for m in measured if m.error)
    styles = dict(
        zip(methods, zip("vxs^o", ("#999999", "#56B4E9", "#009E73", "#E69F00", "#D55E00"), strict=True), strict=True)
    )
    figure = Figure(figsize=(3.6 * len(names) + 1, 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for method, (marker, color) in styles.items():
            points = [m for m in measured if m.model == name and m.method == method]
            label = method.replace("`", "")
            axes.loglog(
                [m.cost for m in points], [100 * m.error for m in points], marker=marker, color=color, label=label
            )
        axes.set(title=name, xlabel="backward passes", xticks=BUDGETS, xticklabels=BUDGETS)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean relative error per position (%)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, write."""
    given = options()
    torch.manual_seed(given.seed)
    on_gpu = given.device.startswith("cuda")
    machine = (
        torch.cuda.get_device_name(given.device)
        if on_gpu
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    found: dict[str, Any] = {"device": machine, "torch": torch.__version__, "engine": [], "estimators": []}
    print(f"jscope_tl benchmark on {machine}, torch {torch.__version__}\n")
    measured: list[Measured] = []
    for shape in given.shapes:
        model = build(shape, given.device, given.seed)
        if "engine" not in given.skip:
            found["engine"] += engine_ratios(shape, model, given.pos, given.seed)
        if "estimators" not in given.skip:
            cases = [linear(model, prompt) for prompt in prompts_of(shape, given.pos[:1], given.seed)]
            measured += list(field(shape, cases, given.seeds))
        del model
    if found["engine"]:
        print("\n" + "\n".join([_head(found["engine"][0]), *map(_line, found["engine"])]))
    if "batch" not in given.skip:
        found["batch"] = engine.batch_throughput()
        print("\nmany prompts:", found["batch"])
    found["estimators"] = [asdict(m) for m in measured]
    if measured:
        print("\n" + _head(found["estimators"][0]))
        print("\n".join(_line(row) for row in found["estimators"]))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if given.figure:
        draw(measured, given.figure)


if __name__ == "__main__":
    commands = {
        "architectures": architecture_table, "causes": causes, "claims": claims, "components": components, "control": control, "corpora": corpora, "costs": costs,
        "explorer": explorer,
    }  # fmt: skip
    if (name := "".join(sys.argv[1:2])) in commands:
        commands[name].main(sys.argv[2:])
    else:
        main()
