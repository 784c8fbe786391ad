"""The scopes, one room per family, and the registry of their names."""

from jscope_tl.scopes import directions, fisher, spectral

__all__ = ["directions", "fisher", "spectral"]
