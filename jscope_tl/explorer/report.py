"""`report`: the explorer's page as a file, with results instead of a model."""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from jscope_tl.components.effects import ComponentEffects
from jscope_tl.components.token_flow import TokenFlow
from jscope_tl.explorer.answers import described
from jscope_tl.explorer.frozen import frozen_page
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.files import check_target, write_whole
from jscope_tl.results.pattern import InfluencePattern
from jscope_tl.results.text_attribution import TextAttribution
from jscope_tl.views.page import write_page
from jscope_tl.views.report import report_body
from jscope_tl.views.together import as_list, legible, unique


def report(
    results: Any,
    path: str | Path,
    cache_or_patterns: Any = None,
    layers: Iterable[int] | int | None = None,
    heads: Iterable[int] | int | None = None,
    *,
    title: str | None = None,
) -> Path:
    """Write one self-contained HTML page about some results: the page of ``jscope app`` without a model, and all results as tables and figures.

    Attributions of the same prompt are columns, with their rank correlation; clicking a token shows its score, error and rank. Below that
    are coloured tokens, tables, predictions, figures and attention, which are readable without scripts. The page loads nothing from the
    network, works on phones and with the keyboard (Tab to a prompt, arrow keys between its tokens), and has a table for everything that it
    shows in colours. The views are the following: `views.series` for a prompt that is a number series; `views.heatmap` for several
    attributions of one scope at several hook points; `views.attention` for influence patterns and effects of edges, beside the attention
    heads of ``cache_or_patterns``; `views.heads` for effects of components; `views.flow` for a token's flow; and `views.answer` for an
    answer.

    Args:
        results: one or several `Attribution`, `InfluencePattern`, `TextAttribution`, `patching.ComponentEffects` and
            `patching.TokenFlow`, of any prompts and units; each has its own scale.
        path: the file to write; it is written completely or not at all.
        cache_or_patterns: the cache of ``run_with_cache`` for the prompt of the influence patterns and edges, or a tensor
            ``[layer, head, dest, src]``; None: these are shown without attention heads.
        layers, heads: the layers and heads of the model to show; None: all.
        title: the heading of the page.

    Returns:
        The path.

    Raises:
        InputError: no result, a path that cannot be written, a cache without influence patterns or edges, or a cache of another prompt.

    Example:
        >>> import jscope_tl as js, tempfile, pathlib
        >>> result = js.attribute(js.load_pocket_model(), "29 , 30 , 31 ,", "temperature")
        >>> folder = tempfile.mkdtemp()
        >>> js.report(result, pathlib.Path(folder) / "page.html").stat().st_size < 200_000
        True
    """
    check_target(path)
    shown = as_list(results, (Attribution, InfluencePattern, TextAttribution, ComponentEffects, TokenFlow))
    heading = str(title) if title else f"{', '.join(dict.fromkeys(result.scope for result in shown))} scope"
    below = report_body(shown, cache_or_patterns, layers, heads)
    attributions = [result for result in shown if isinstance(result, Attribution)]
    if not attributions:
        return write_page(path, heading, f"<h1>{escape(heading)}</h1>{below}")
    page = frozen_page(frozen_results(attributions), heading, below)
    return write_whole(path, page.encode("utf-8", "replace"))


def frozen_results(results: list[Attribution]) -> dict[str, Any]:
    """The data of a page that has results but no model."""
    names = unique([f"{result.scope}{result.asked}" for result in results])
    models = ", ".join(dict.fromkeys(result.provenance.model_name for result in results))
    named = [{**described(legible(result)[0]), "name": name} for name, result in zip(names, results, strict=True)]
    return {"about": {"model": models, "scopes": [], "examples": []}, "results": named}
