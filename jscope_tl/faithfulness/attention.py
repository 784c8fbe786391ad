"""Baselines from attention patterns alone, without a backward pass."""

from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError
from jscope_tl.model.running import Passes, captured
from jscope_tl.model.view import ModelView


def last_layer(model: Any, tokens: Int[Tensor, "pos"], target: int) -> Float[Tensor, "pos"]:
    """Attention of the last position in the last layer, the mean over its heads."""
    return _mean_patterns(model, tokens)[-1][-1]


def mean_of_all(model: Any, tokens: Int[Tensor, "pos"], target: int) -> Float[Tensor, "pos"]:
    """Attention of the last position, the mean over all heads of all layers."""
    return torch.stack([pattern[-1] for pattern in _mean_patterns(model, tokens)]).mean(0)


def rollout(model: Any, tokens: Int[Tensor, "pos"], target: int) -> Float[Tensor, "pos"]:
    """Attention rollout (Abnar and Zuidema 2020): ``Π_l (½ A_l + ½ I)``, ``A_l`` the mean pattern of layer ``l``."""
    reached = torch.eye(len(tokens), device="cpu")
    for pattern in _mean_patterns(model, tokens):
        reached = (0.5 * pattern + 0.5 * torch.eye(len(tokens), device="cpu")) @ reached
    return reached[-1]


def _mean_patterns(model: Any, tokens: Int[Tensor, "pos"]) -> list[Float[Tensor, "dest src"]]:
    view = ModelView(model)
    names = view.points_showing("hook_pattern")
    if not names:
        raise InputError(f"{view.name} has no attention patterns ('hook_pattern').")
    patterns = captured(view, rearrange(tokens, "pos -> 1 pos"), names, [], Passes())
    return [reduce(pattern.float(), "1 head dest src -> dest src", "mean").cpu() for pattern in patterns.values()]
