"""The command ``jscope heads``: effects of heads, or other components, on the prediction."""

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jscope_tl.cli.faithfulness import read_prompts
from jscope_tl.cli.models import load
from jscope_tl.cli.options import Parser, as_json, need_usable, of_one_prompt, scope_options
from jscope_tl.components.effects import KINDS, PREDICTED, ComponentEffects
from jscope_tl.components.prediction import components
from jscope_tl.errors import InputError, nearest
from jscope_tl.explorer.report import report
from jscope_tl.model.pieces import text_of
from jscope_tl.results.text import percent, score_text, visible
from jscope_tl.scopes.registry import get_scope
from jscope_tl.views.component_words import short_name, tokens_at

OF = tuple(kind for kind in KINDS if kind != "features")
"""Without features, which need an autoencoder in Python."""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(
        prog="jscope heads",
        description="Predict, and with --measure also measure, how the prediction changes when a head (or an edge of an attention pattern, an MLP, a neuron) is removed. "
        "Predictions rank components well, but single values can be wrong by a factor of ten.",
        parents=[of_one_prompt("fisher", "components")],
    )
    p.add_argument("--of", default="heads", help=f"which components: {', '.join(OF)} (default: heads)")
    p.add_argument("--source", default="zero",
                   help="what replaces an activation: zero, mean, resample, or another prompt with the same number of tokens (default: zero)")  # fmt: skip
    p.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts for --source mean and resample, one per line (default: the mean over positions)",
    )
    p.add_argument(
        "--positions", default="all", help="all (change all positions together) or each (one at a time) (default: all)"
    )
    p.add_argument("--measure", type=int, metavar="N", help="also run the N strongest changes, and report the measured effects instead of the predictions")  # fmt: skip
    return p


def run(argv: Sequence[str]) -> int:
    """Predict, measure with ``--measure``, write and print."""
    options = parser().parse_args(argv)
    need_usable(options, "jscope heads")
    if options.of not in OF:
        why = (
            " Features need an autoencoder: js.patching.components takes one."
            if options.of == "features"
            else nearest(options.of, OF)
        )
        raise InputError(f"--of is one of {', '.join(OF)}; got {options.of!r}.{why}")
    if options.measure is not None and options.measure < 1:
        raise InputError(f"--measure is the number of changes to run, 1 or more; got {options.measure}.")
    if options.scope == "fisher" and (options.target or options.baseline):
        wanted = "--baseline needs --scope contrastive" if options.baseline else "--target needs --scope log_prob"
        raise InputError(
            f"jscope heads explains the whole prediction (--scope fisher) unless asked otherwise; {wanted}."
        )
    scope = get_scope(options.scope)(**scope_options(options))
    prompts = None if options.prompts is None else read_prompts(options.prompts)
    model = load(options.model, options.device, options.dtype)
    how = {name: getattr(options, name) for name in ("of", "source", "positions", "position", "gradient", "frozen")}
    effects = components(model, options.prompt, scope, prompts=prompts, **how)
    if options.measure is not None:
        effects = effects.measure(options.measure)
    # Write files first: the reader of standard output may close the pipe.
    if options.html is not None:
        report(effects, options.html, _patterns(model, effects))
    if options.save is not None:
        effects.save(options.save)
    if options.json:
        print(as_json(effects))
    else:
        Console().print(panel(effects, options.top))
    return 0


def _patterns(model: Any, effects: ComponentEffects) -> Any:
    """The attention patterns that a report shows beside edges."""
    if effects.of != "edges":
        return None
    return model.run_with_cache(effects.tokens, names_filter=lambda name: name.endswith("attn.hook_pattern"))[1]


def panel(effects: ComponentEffects, k: int) -> RenderableType:
    """The text that the command prints."""
    table = Table("", "component", box=None, pad_edge=False, header_style="bold")
    found = effects.top(k)
    tokens = [tokens_at(effects, one) for one in found]
    if any(tokens):
        table.add_column("tokens")
    for name in (f"effect ({effects.unit})", "how", "name"):
        table.add_column(Text(name))
    for rank, (one, at) in enumerate(zip(found, tokens, strict=True), start=1):
        cells = [short_name(one), *([at] if any(tokens) else []), score_text(one.effect, one.stderr), one.how, one.name]
        table.add_row(str(rank), *map(Text, cells))
    cost = "; ".join(
        f"{name} {c.forward_equivalents:.1f} passes, {c.seconds:.2f} s" for name, c in effects.costs.items()
    )
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in effects.warnings]
    asked = Text(f"{visible(text_of(effects.str_tokens))}\n{_predicts(effects)}\n")
    costs = Text(f"cost: {cost}", style="dim")
    unsure = any(one.how != "measured" for one in found)
    note = [Text(f"{PREDICTED}; --measure {k} measures the strongest", style="dim")] if unsure else []
    return Group(Text(effects.headline(), style="bold"), asked, table, Text(), *note, costs, *warnings)


def _predicts(effects: ComponentEffects, k: int = 3) -> str:
    """The most probable next tokens."""
    listed = ", ".join(f"{visible(one.str_token)!r} {percent(one.probability)}" for one in effects.prediction.top[:k])
    return f"position {effects.position} predicts {listed}"
