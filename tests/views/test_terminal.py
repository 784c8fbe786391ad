"""Terminals of few colours show the order of the scores, and none shows the lowest one most."""

import dataclasses
import io
import re
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.text import Text

import jscope_tl as js
from jscope_tl.views.terminal import STEPS, coloured_prompt, show

pytestmark = pytest.mark.newest_line

SYSTEMS = ["truecolor", "256", "standard", "no colour"]


@pytest.fixture(scope="module")
def rising(pocket: Any) -> js.Attribution:
    """Scores 0, 1, 2, ... without a BOS."""
    result = js.attribute(pocket, "the keys to the cabinet near the doors", "semantic", prepend_bos=False, position=6)
    return dataclasses.replace(
        result, position=7, scores=torch.arange(8.0), str_tokens=[f" w{i}" for i in range(8)], warnings=[]
    )


def printed(result: js.Attribution, system: Any, **how: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, color_system=system, force_terminal=system is not None, width=120, **how)
    show(result, console)
    return out.getvalue()


def styles(text: Text) -> list[str]:
    """The style of every token, without the mark of the explained one."""
    return [str(span.style).replace("underline", "").strip() for span in text.spans if text.plain[span.start :].strip()]


@pytest.mark.parametrize("system", SYSTEMS)
def test_styles_follow_the_scores(rising: js.Attribution, system: str) -> None:
    text = coloured_prompt(rising, system)
    starts = {span.start: str(span.style).replace("underline", "").strip() for span in text.spans}
    found = [starts.get(3 * i, "") for i in range(8)]
    assert found[0] == ""  # the lowest is left as it is
    if system in STEPS:
        ranks = [STEPS[system].index(style) for style in found]
        assert ranks == sorted(ranks)
        assert ranks[-1] == 3
    else:
        reds = [[int(n) for n in re.findall(r"\d+", style)] for style in found[1:]]
        assert reds == sorted(reds)
        assert reds[-1] == [255, 128, 0]


def test_sixteen_colours_are_never_asked_for_more(rising: js.Attribution) -> None:
    codes = re.findall(r"\x1b\[([\d;]*)m", printed(rising, "standard"))
    assert codes
    assert all(int(n) < 48 for code in codes for n in code.split(";") if n)  # 48;5 and 48;2 are colours beyond sixteen
    assert "in steps: plain, bold, black on yellow, reverse" in printed(rising, "standard")


def test_without_colours_there_is_no_word_of_colours(rising: js.Attribution) -> None:
    out = printed(rising, None)
    assert "\x1b" not in out
    assert "colour" not in out
    assert "".join(rising.str_tokens) in out


def test_who_wants_no_colours_sees_bold_and_reverse(rising: js.Attribution) -> None:
    codes = {
        n
        for code in re.findall(r"\x1b\[([\d;]*)m", printed(rising, "truecolor", no_color=True))
        for n in code.split(";")
    }
    assert codes <= {"0", "1", "2", "4", "7"}
    assert {"1", "7"} <= codes


@pytest.mark.parametrize("system", [*SYSTEMS[:3], None])
def test_layer_maps_name_the_strongest_of_each_layer(pocket: Any, system: Any) -> None:
    layers = js.attribute(pocket, "the keys to the cabinet near the doors", "semantic", at="resid_pre")
    out = re.sub(r"\x1b\[[\d;]*m", "", printed(layers, system))
    for row in layers.by_row():
        best = row[0]
        assert re.search(rf"{best.hook_point} +{best.str_token!r} {best.position}: {best.score:.4g}", out)
    repeated = out.count("".join(layers.str_tokens[1:]))
    assert repeated == (0 if system is None else 4)


def test_a_split_character_is_one(rising: js.Attribution) -> None:
    result = dataclasses.replace(
        rising, str_tokens=["a", " 🙂⟨1/3⟩", " 🙂⟨2/3⟩", " 🙂⟨3/3⟩", "é⟨1/2⟩", "é⟨2/2⟩", "b", "c"]
    )
    assert coloured_prompt(result).plain == "a 🙂··é·bc"
    assert "a 🙂ébc" in printed(result, None)
    assert " 🙂⟨3/3⟩" in printed(result, None)  # in the table
