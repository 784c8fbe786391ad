"""Results as coloured text for a terminal (rich)."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jscope_tl.model.pieces import pieces, text_of
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.text import percent, score_text, visible
from jscope_tl.results.text_attribution import TextAttribution
from jscope_tl.views.answer_words import off_scale, quoted, row_shares, row_text, row_tops, source_texts, where
from jscope_tl.views.scale import Scale, row_scales, scale_of
from jscope_tl.views.together import legible

LOW, HIGH = (148, 142, 136), (255, 128, 0)
"""The scale from grey to orange is equally visible on black and on white terminals, and black text is readable on both colours."""
STEPS = {"standard": ("", "bold", "black on yellow", "reverse"), "no colour": ("", "", "bold", "reverse")}
"""Styles for the four steps of the scale, for a terminal with 16 colours, and without colours."""
FAINT = 0.1
"""The intensity below which a token has no background."""


def coloured_prompt(result: Attribution, colours: str = "truecolor") -> Text:
    """The prompt with backgrounds coloured by its scores, once for each row of a layer map. The token at the explained position is underlined.

    Each row of a layer map has its own scale.

    Args:
        result: the result to show.
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
    """A note about the meaning of the colours."""
    scale = scale_of([result])
    note = "; ".join(["colour: each row from 0 to its own highest score", *scale.left_out])
    return _in_steps(note if result.hook_points else scale.note, colours)


def _in_steps(note: str, colours: str) -> str:
    if colours not in STEPS:
        return note
    steps = ", ".join(dict.fromkeys(step or "plain" for step in STEPS[colours]))
    return f"{note}; in steps: {steps}"


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
        listed = ", ".join(f"{t.str_token!r} {t.position}: {score_text(t.score, t.stderr)}" for t in tokens)
        table.add_row(Text(name), Text(listed))
    return table


def panel(result: Attribution, k: int = 8, colours: str | None = "truecolor") -> RenderableType:
    """Everything that ``jscope`` prints for a result; without colours (None), the prompt is not repeated for each row of a layer map."""
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


def coloured_answer(result: TextAttribution, colours: str | None = "truecolor") -> Text:
    """The text, message by message, with each source coloured by the largest share that its score has of the highest score of a row.

    BOS and template text are left out. If the result has one row, the explained text is underlined. Without colours (None), this is only
    the text.
    """
    shares, texts, text, last = row_shares(result).amax(0).tolist(), source_texts(result), Text(), None
    only = result.rows[0] if len(result.rows) == 1 else None
    explained = range(result.text.n_prompt + only.start, result.text.n_prompt + only.stop) if only else range(0)
    for j, source in enumerate(result.sources):
        if result.hidden(source):
            continue
        if (owner := where(result, source)) != last:
            text.append(f"{chr(10) * (last is not None)}{owner}: ", style="" if colours is None else "dim")
        last = owner
        style = "" if colours is None else _style(shares[j], colours)
        text.append(visible(texts[j]), style=f"{style} underline" if {*source.positions} & {*explained} else style)
    return text


def answer_panel(result: TextAttribution, k: int = 3, colours: str | None = "truecolor") -> RenderableType:
    """Everything that ``jscope`` prints for an answer: the coloured text, and for each row its ``k`` strongest sources."""
    parts: list[RenderableType] = [Text(result.headline(), style="bold"), Text(), coloured_answer(result, colours)]
    if colours is not None:
        one = f"colour: linear from 0 to the highest score, {float(row_tops(result)[0]):.4g}"
        several = "colour: the largest share that a source's score has of the highest score of a row"
        note = "; ".join([one if len(result.rows) == 1 else several, *off_scale(result)])
        parts.append(Text(_in_steps(note, colours), style="dim"))
    parts += [Text(), _rows_table(result, k)]
    parts += [Text(), Text(result.template_line(), style="dim")] if result.template_line() else []
    return Group(*parts, *(Text(f"warning: {warning}", style="yellow") for warning in result.warnings))


def _rows_table(result: TextAttribution, k: int) -> Table:
    table = Table("", "explained", "probability", box=None, pad_edge=False, header_style="bold")
    table.add_column(Text(f"strongest sources, position and score ({result.unit})"))
    long = any(len(source.text) > 30 for source in result.sources if not result.hidden(source))
    for i, row in enumerate(result.rows):
        best = [
            f"{quoted(s.source.text)} {s.source.positions[0]}: {score_text(s.score, s.stderr)}"
            for s in result.top(k, i)
            if s.score > 0
        ]
        table.add_row(
            str(i),
            Text(quoted(row_text(result, i))),
            percent(row.probability),
            Text(("\n" if long else ", ").join(best)),
        )
    return table


def show(result: Attribution | TextAttribution, console: Console | None = None, k: int | None = None) -> None:
    """Print a result to a terminal, with its ``k`` strongest tokens (for a layer map those of each layer, for many heads those of the strongest
    heads).

    Args:
        result: the result to show.
        console: the console to print to; by default the terminal.
        k: the number of tokens, 8 by default; for an answer the number of sources for each row, 3 by default.
    """
    console = console or Console()
    system = "standard" if console.color_system == "windows" else console.color_system
    colours = "no colour" if system and console.no_color else system
    if isinstance(result, TextAttribution):
        console.print(answer_panel(result, 3 if k is None else k, colours))
    else:
        console.print(panel(result, 8 if k is None else k, colours))
