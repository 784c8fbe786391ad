"""Results as coloured text for a terminal (rich)."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jscope_tl.results.attribution import Attribution
from jscope_tl.results.text import score_text, visible
from jscope_tl.views.scale import background, ink, scale_of


def coloured_prompt(result: Attribution) -> Text:
    """The prompt on backgrounds as strong as its scores, once for each row of a layer map; the explained token is underlined."""
    text = Text()
    scale = scale_of([result])
    for layer, hook_point in enumerate(result.hook_points or ("",)):
        text.append(f"\n{hook_point}\n" if hook_point else "", style="dim")
        for i, token in enumerate(result.str_tokens):
            intensity = scale(result.scored(i, layer).score)
            red, green, blue = background(intensity)
            style = f"{ink(intensity)} on rgb({red},{green},{blue})" if intensity > 0.02 else ""
            text.append(visible(token), style=f"{style} underline" if i == result.position else style)
    return text


def _table(result: Attribution, k: int) -> Table:
    table = Table("", "position", "token", box=None, pad_edge=False, header_style="bold")
    table.add_column(Text(f"score ({result.unit})"))
    table.add_column("at" if result.hook_points else "")
    for rank, token in enumerate(result.top(k), start=1):
        score = score_text(token.score, token.stderr)
        table.add_row(str(rank), str(token.position), Text(repr(token.str_token)), score, token.hook_point or "")
    return table


def panel(result: Attribution, k: int = 8) -> RenderableType:
    """Everything that ``jscope`` prints of a result."""
    parts: list[RenderableType] = [
        Text(result.headline(), style="bold"),
        Text(),
        coloured_prompt(result),
        Text(scale_of([result]).note, style="dim"),
        Text(),
        Text(result.prediction_line()),
        Text(),
        _table(result, k),
    ]
    if result.resolved_line():
        parts += [Text(), Text(result.resolved_line(), style="dim")]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    return Group(*parts)


def show(result: Attribution, console: Console | None = None, k: int = 8) -> None:
    """Print a result to a terminal, with its ``k`` strongest tokens."""
    (console or Console()).print(panel(result, k))
