"""Results as plain text (``repr``) and as coloured text for a terminal (rich)."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jscope_tl.results.attribution import Attribution
from jscope_tl.views.scale import background, ink, scale_of
from jscope_tl.results.text import percent, score_text, visible


def headline(result: Attribution) -> str:
    """Scope, explained position and hook point in one line."""
    where = f"position {result.position} ({result.str_tokens[result.position]!r})"
    return f"{result.scope} scope of the prediction at {where}, at {result.provenance.hook_point}"


def prediction_line(result: Attribution, k: int = 3) -> str:
    """The most probable next tokens and the target's probability."""
    top = ", ".join(f"{c.str_token!r} {percent(c.probability)}" for c in result.prediction.top[:k])
    target = result.prediction.target
    says = f"target {target.str_token!r} {percent(target.probability)} (rank {result.prediction.target_rank})"
    return f"predicts {top}; {says}"


def resolved_line(result: Attribution) -> str:
    """What the scope did where it had a choice, or nothing."""
    resolved = result.options.get("resolved") or {}
    return "resolved: " + ", ".join(f"{key} = {value!r}" for key, value in resolved.items()) if resolved else ""


def summary(result: Attribution, k: int = 5) -> str:
    """A few lines of plain text: what was explained, the strongest tokens, the unit and the doubts."""
    lines = [f"Attribution: {headline(result)}", f"  {prediction_line(result)}", f"  score in {result.unit}:"]
    for rank, token in enumerate(result.top(k), start=1):
        place = f"{token.str_token!r} at {token.position}" + (f", {token.hook_point}" if token.hook_point else "")
        lines.append(f"  {rank}. {place:<24} {score_text(token.score, token.stderr)}")
    if resolved_line(result):
        lines.append(f"  {resolved_line(result)}")
    lines += [f"  warning: {warning}" for warning in result.warnings]
    return "\n".join(lines)


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
        Text(headline(result), style="bold"),
        Text(),
        coloured_prompt(result),
        Text(scale_of([result]).note, style="dim"),
        Text(),
        Text(prediction_line(result)),
        Text(),
        _table(result, k),
    ]
    if resolved_line(result):
        parts += [Text(), Text(resolved_line(result), style="dim")]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    return Group(*parts)


def show(result: Attribution, console: Console | None = None, k: int = 8) -> None:
    """Print a result to a terminal, with its ``k`` strongest tokens."""
    (console or Console()).print(panel(result, k))
