"""The names of hook points: those of bridges, and those of HookedTransformer, which users and this package use."""

import re
from collections.abc import Mapping
from typing import TypeVar

Point = TypeVar("Point")

ALIASES = (
    (r"embed\.hook_out", "hook_embed"),
    (r"(blocks\.\d+)\.hook_in", r"\1.hook_resid_pre"),
    (r"(blocks\.\d+)\.ln2\.hook_in", r"\1.hook_resid_mid"),
    (r"(blocks\.\d+)\.hook_out", r"\1.hook_resid_post"),
    (r"(blocks\.\d+\.attn)\.(q|k|v)\.hook_out", r"\1.hook_\2"),
    (r"(blocks\.\d+\.attn)\.o\.hook_in", r"\1.hook_z"),
    (r"(blocks\.\d+)\.ln1_post\.hook_out", r"\1.hook_attn_out"),
    (r"(blocks\.\d+)\.attn\.hook_out", r"\1.hook_attn_out"),
    (r"(blocks\.\d+)\.ln2_post\.hook_out", r"\1.hook_mlp_out"),
    (r"(blocks\.\d+)\.mlp\.hook_out", r"\1.hook_mlp_out"),
    (r"(blocks\.\d+\.mlp)\.out\.hook_in", r"\1.hook_post"),
)
"""A bridge's name of a hook point, and the HookedTransformer name, which bridges support as an alias as long as they have aliases. If two
names have the same alias, the first one present is the hook point."""


def with_aliases(points: Mapping[str, Point]) -> dict[str, Point]:
    """The hook points, with the HookedTransformer names added if they are missing."""
    found = dict(points)
    for own, alias in ALIASES:
        for name in points:
            if (match := re.fullmatch(own, name)) and (older := match.expand(alias)) not in found:
                found[older] = points[name]
    return found
