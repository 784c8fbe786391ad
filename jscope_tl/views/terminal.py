"""Results as coloured text for a terminal (rich)."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jscope_tl.model.pieces import pieces, text_of
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.text import score_text, visible
from jscope_tl.views.scale import Scale, row_scales, scale_of
from jscope_tl.views.together import legible

LOW, HIGH = (148, 142, 136), (255, 128, 0)
"""From grey to orange: as conspicuous on a black terminal as on a white one, and both bear black text."""
STEPS = {"standard": ("", "bold", "black on yellow", "reverse"), "no colour": ("", "", "bold", "reverse")}
"""Four steps of the scale where a terminal has 16 colours, and where the user wants none."""
FAINT = 0.1
"""Intensity below which a token stays as it is."""


def coloured_prompt(result: Attribution, colours: str = "truecolor") -> Text:
    """The prompt on backgrounds as strong as its scores, once for each row of a layer map; the explained token is underlined.

    Each row of a layer map is on its own scale.

    Args:
        result: what is shown.
        colours: ``"truecolor"``, ``"256"``, ``"standard"`` (16 colours, in four steps) or ``"no colour"``.
    """
    text, texts = Text(), pieces(result.str_tokens)
    for layer, scale in enumerate(_scales(result)):
        text.append(f"\n{result.hook_points[layer]}\n" if result.hook_points else "", style="dim")
        for i, token in enumerate(texts):
            style = _style(scale(result.scored(i, layer).score), colours)
            text.append(visible(token), style=f"{style} underline" if i == result.position else style)
    return text


def _scales(result: Attribution) -> list[Scale]:
    return row_scales(result) if result.hook_points else [scale_of([result])]


def _style(intensity: float, colours: str) -> str:
    if colours in STEPS:
        return STEPS[colours][min(3, int(4 * intensity))]
    if intensity < FAINT:
        return ""
    red, green, blue = (round(low + (high - low) * intensity) for low, high in zip(LOW, HIGH, strict=True))
    return f"black on rgb({red},{green},{blue})"


def _note(result: Attribution, colours: str) -> str:
    """What the colours mean."""
    scale = scale_of([result])
    said = "; ".join(["colour: each row from 0 to its own highest score", *scale.left_out])
    said = said if result.hook_points else scale.note
    if colours not in STEPS:
        return said
    steps = ", ".join(dict.fromkeys(step or "plain" for step in STEPS[colours]))
    return f"{said}; in steps: {steps}"


def _table(result: Attribution, k: int) -> Table:
    table = Table("", "position", "token", box=None, pad_edge=False, header_style="bold")
    table.add_column(Text(f"score ({result.unit})"))
    for rank, token in enumerate(result.top(k), start=1):
        score = score_text(token.score, token.stderr)
        table.add_row(str(rank), str(token.position), Text(repr(token.str_token)), score)
    return table


def _layers(result: Attribution) -> Table:
    """The strongest tokens of each layer."""
    table = Table("at", box=None, pad_edge=False, header_style="bold")
    table.add_column(Text(f"strongest tokens, position and score ({result.unit})"))
    for name, tokens in zip(result.hook_points, result.by_row(), strict=True):
        said = ", ".join(f"{t.str_token!r} {t.position}: {score_text(t.score, t.stderr)}" for t in tokens)
        table.add_row(Text(name), Text(said))
    return table


def panel(result: Attribution, k: int = 8, colours: str | None = "truecolor") -> RenderableType:
    """Everything that ``jscope`` prints of a result; without colours (None) the prompt of a layer map is not repeated."""
    result, notes = legible(result)
    parts: list[RenderableType] = [Text("; ".join([result.headline(), *notes]), style="bold"), Text()]
    if colours is None:
        parts += [] if result.hook_points else [Text(visible(text_of(result.str_tokens))), Text()]
    else:
        parts += [coloured_prompt(result, colours), Text(_note(result, colours), style="dim"), Text()]
    parts += [Text(result.prediction_line()), Text(), _layers(result) if result.hook_points else _table(result, k)]
    if colours is None and result.bos_positions:
        parts += [Text("BOS is left out of the table", style="dim")]
    if result.resolved_line():
        parts += [Text(), Text(result.resolved_line(), style="dim")]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    return Group(*parts)


def show(result: Attribution, console: Console | None = None, k: int = 8) -> None:
    """Print a result to a terminal, with its ``k`` strongest tokens (of a layer map: the strongest of each layer, of many heads those of the strongest heads)."""
    console = console or Console()
    system = "standard" if console.color_system == "windows" else console.color_system
    console.print(panel(result, k, "no colour" if system and console.no_color else system))
