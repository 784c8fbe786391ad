"""The command ``jscope``."""

from jscope_tl.cli.command import main, parser

__all__ = ["main", "parser"]
