"""HuggingFace models in float64, differentiated by autograd alone: what the package's numbers are held against.

Nothing here imports the package or TransformerLens. Norms and softmaxes that transformers computes in float32 whatever the
model's dtype are computed in float64 too.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from jaxtyping import Float, Int
from rules_oracle import Patterns, ruled
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

EMBEDDING_NORMS = {"transformer.word_embeddings_layernorm", "model.embeddings.norm"}


@dataclass(frozen=True)
class Forward:
    """One prompt: the embeddings, what each decoder layer reads (each time it runs), ``y`` and logits, on one graph."""

    embeddings: Float[Tensor, "pos d_model"]
    layers: list[list[Float[Tensor, "pos d_model"]]]
    y: Float[Tensor, "pos d_model"]
    logits: Float[Tensor, "pos d_vocab"]
    patterns: Patterns = field(default_factory=list)


def in_float64(hf: Any) -> Any:
    """A copy of the model, whose weights ask for no gradient."""
    return copy.deepcopy(hf).double().requires_grad_(False)


def forward(
    hf: Any,
    tokens: Int[Tensor, "pos"],
    frozen: tuple[str, ...] = (),
    replaced: tuple[int, int, Float[Tensor, "d_model"]] | None = None,
    rules: tuple[str, str] | None = None,
) -> Forward:
    """Run the model once.

    Args:
        frozen: ``"attn"`` takes attention patterns off the graph, ``"norm"`` norm scales.
        replaced: a decoder layer, a position, and what the layer reads there instead.
        rules: for attention and MLPs, with patterns kept; see `rules_oracle`.
    """
    kept: dict[str, Any] = {"layers": [[] for _ in decoder_layers(hf)]}
    with ExitStack() as stack:
        stack.enter_context(_all_double())
        if "attn" in frozen:
            stack.enter_context(_patterns_detached())
        if "norm" in frozen:
            stack.enter_context(_scales_detached(hf))
        patterns = [] if rules is None else stack.enter_context(ruled(hf, *rules))
        for handle in _watchers(hf, kept, replaced):
            stack.callback(handle.remove)
        logits = hf(tokens.unsqueeze(0), use_cache=False).logits[0]
    return Forward(kept["embeddings"], kept["layers"], kept["y"], logits, patterns)


def attention_patterns(hf: Any, tokens: Int[Tensor, "pos"]) -> list[Float[Tensor, "head dest src"]]:
    """As the model returns them, those of layers that have one."""
    with torch.no_grad(), _all_double():
        found = hf(tokens.unsqueeze(0), use_cache=False, output_attentions=True).attentions
    return [pattern[0] for pattern in found or () if isinstance(pattern, Tensor)]


def decoder_layers(hf: nn.Module) -> list[nn.Module]:
    """The first list of modules in the decoder that is as long as the configuration says."""
    config = hf.config.get_text_config()
    n_layers = getattr(config, "num_hidden_layers", None) or len(config.layers_block_type)
    lists = [
        module for part in (hf.get_decoder(), hf) for module in part.modules() if isinstance(module, nn.ModuleList)
    ]
    return next((list(layers) for layers in lists if len(layers) == n_layers), [])


def _embedding(hf: nn.Module) -> nn.Module:
    """What TransformerLens calls so includes a norm right behind the table."""
    return next((module for name, module in hf.named_modules() if name in EMBEDDING_NORMS), hf.get_input_embeddings())


def _watchers(hf: Any, kept: dict[str, Any], replaced: Any) -> Iterator[Any]:
    """Hooks that keep what `Forward` has; embeddings are a leaf."""

    def cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept["embeddings"] = output[0].detach().requires_grad_()
        return kept["embeddings"].unsqueeze(0)

    def keep_layer(i: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        x = (args[0] if args else kwargs["hidden_states"])[0]
        if replaced is not None and replaced[0] == i:
            x = x.index_copy(0, torch.tensor([replaced[1]]), replaced[2].unsqueeze(0))
        kept["layers"][i].append(x)
        whole = x.unsqueeze(0)
        return ((whole, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": whole})

    def keep_y(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept["y"] = args[0][0]

    yield _embedding(hf).register_forward_hook(cut)
    for i, layer in enumerate(decoder_layers(hf)):
        yield layer.register_forward_pre_hook(partial(keep_layer, i), with_kwargs=True)
    yield hf.get_output_embeddings().register_forward_pre_hook(keep_y)


@contextmanager
def _all_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


class _Double(TorchFunctionMode):
    """Everything that asks for float32 gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        wider = partial(_wider, torch.float32, torch.float64)
        return func(*map(wider, args), **{name: wider(value) for name, value in (kwargs or {}).items()})


def _wider(narrow: Any, wide: Any, value: Any) -> Any:
    return wide if value is narrow else value


@contextmanager
def _patterns_detached() -> Iterator[None]:
    """Softmaxes of attention have a head axis, those of routers have none."""
    softmax = functional.softmax

    def detached(*args: Any, **kwargs: Any) -> Tensor:
        shares = softmax(*args, **kwargs)
        return shares.detach() if shares.ndim > 2 else shares

    with mock.patch.object(functional, "softmax", detached):
        yield


@contextmanager
def _scales_detached(hf: nn.Module) -> Iterator[None]:
    """By Euler's theorem: a norm of degree 0 times its scale over the scale's value is the norm with the scale held.

    Norms of one input are handled so, from outside; gated norms and those that are no modules by their roots.
    """
    inside: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        inside.append(module)

    def leave(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inside.pop()
        return _with_scale_held(module, args[0], output) if args[0].is_floating_point() else output

    def root(original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        value = original(*args, **kwargs)
        one_each = isinstance(value, Tensor) and value.ndim > 1 and value.shape[-1] == 1
        return value.detach() if one_each and not inside else value

    with ExitStack() as stack:
        for module in hf.modules():
            kind = type(module).__name__
            if "Norm" in kind and "Gated" not in kind:
                for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave)):
                    stack.callback(handle.remove)
        for name in ("rsqrt", "sqrt"):
            stack.enter_context(mock.patch.object(torch, name, partial(root, getattr(torch, name))))
        yield


def _with_scale_held(module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    kind = type(module).__name__
    centred = x if "RMS" in kind or "L2Norm" in kind else x - x.mean(-1, keepdim=True)
    eps = next((float(value) for name in ("eps", "variance_epsilon") if (value := getattr(module, name, None))), 1e-5)
    scale = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    bias = getattr(module, "bias", None)
    free = output if bias is None else output - bias
    return output + free * (scale / scale.detach() - 1)
