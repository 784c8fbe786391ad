"""The model that an option names."""

from typing import Any

from jscope_tl.model.loading import load_model
from jscope_tl.pocket.load import load_pocket_model


def load(name: str | None, device: str, dtype: str) -> Any:
    """The pocket model for None, else a HuggingFace name or a local folder."""

    return load_pocket_model(device=device, dtype=dtype) if name is None else load_model(name, device, dtype)
