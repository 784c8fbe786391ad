"""`ModelView`, the only place that depends on TransformerLens' classes: model types, hook points, and weight processing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jscope_tl.errors import InputError, nearest
from jscope_tl.model.basis import Basis, basis_of
from jscope_tl.model.hook_names import with_aliases
from jscope_tl.model.turns import cached_property

EXPLAINABLE = {"HookedTransformer", "TransformerBridge"}
REFUSED = {
    "RemoteBridge": "runs elsewhere and has no local module, so nothing can be differentiated through it",
    "HookedEncoder": "is an encoder; it predicts no next token",
    "BertNextSentencePrediction": "is an encoder; it predicts no next token",
    "HookedAudioEncoder": "is an audio encoder; it predicts no next token",
    "HookedEncoderDecoder": "is an encoder-decoder; its prediction has two inputs",
}
CURE = "Use a HookedTransformer or a TransformerBridge of a causal (decoder-only) language model."
TOKENS_AT_ONCE = 1024
"""Maximum number of tokens in one forward pass over several prompts."""
OWN_LEVEL = 1000
"""The context level of the package's own hooks, above every level that a user reaches."""
LIBRARIES = ("jscope_tl", "transformer_lens", "transformers", "torch", "accelerate")


@dataclass(frozen=True)
class ModelView:
    """A common interface to the model classes of TransformerLens that can be explained.

    Raises:
        InputError: the model is an encoder, an encoder-decoder, remote, not a TransformerLens model, or in training mode.
    """

    model: Any

    def __post_init__(self) -> None:
        kind = type(self.model).__name__
        bases = {base.__name__ for base in type(self.model).__mro__}
        for refused in sorted(bases & REFUSED.keys()):
            raise InputError(f"{kind} {REFUSED[refused]}. {CURE}")
        if not bases & EXPLAINABLE:
            raise InputError(f"{kind} is not a TransformerLens model that predicts tokens. {CURE}")
        self._refuse_other_directions()
        self._refuse_training()

    def _refuse_other_directions(self) -> None:
        """Refuse encoders, which exist in both classes; in TransformerLens 3 the configuration of a bridged BERT says it is causal."""
        config = getattr(self._inner, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            raise InputError(f"{self.name} is an encoder-decoder; its prediction has two inputs. {CURE}")
        generates = getattr(getattr(self.model, "adapter", None), "supports_generation", True)
        if not generates or getattr(self.cfg, "attention_dir", "causal") != "causal":
            raise InputError(f"{self.name} is an encoder; it predicts no next token. {CURE}")
        if not isinstance(getattr(self.model, "unembed", None), nn.Module):
            raise InputError(f"{self.name} has no unembedding, hence no next-token prediction. {CURE}")

    def _refuse_training(self) -> None:
        """Refuse training mode of bridges, which have dropout; a HookedTransformer has none, and its loaders leave it in training mode."""
        if self._inner is not self.model and any(module.training for module in walk(self._inner)):
            raise InputError(
                f"{self.name} is in training mode, where dropout makes every run different. Call model.eval() first."
            )
        if any(parameter.is_inference() for parameter in self.parameters):
            raise InputError(
                f"{self.name} was loaded inside torch.inference_mode(), and gradients cannot be computed through such "
                "weights. Load it outside; using it inside is possible."
            )

    @property
    def _inner(self) -> nn.Module:
        """The HuggingFace model inside a bridge, else the model itself."""
        return getattr(self.model, "original_model", self.model)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, each once; every view lists them again, because they may be replaced between calls."""
        held = (parameter for module in walk(self._inner) for parameter in module._parameters.values())
        return list({id(parameter): parameter for parameter in held if parameter is not None}.values())

    @property
    def cfg(self) -> Any:
        """TransformerLens' configuration."""
        return self.model.cfg

    @property
    def name(self) -> str:
        """The name of the model in TransformerLens."""
        return str(getattr(self.cfg, "model_name", None) or type(self.model).__name__)

    @property
    def d_vocab(self) -> int:
        """The number of token ids that the model accepts."""
        return int(self.cfg.d_vocab)

    @property
    def n_ctx(self) -> int:
        """The length of the longest prompt that the model accepts."""
        return int(self.cfg.n_ctx)

    @property
    def input_device(self) -> torch.device:
        """The device of the embedding, where token ids must be."""
        embed = getattr(self.model, "embed", None)
        parameters = embed.parameters() if isinstance(embed, nn.Module) else self.model.parameters()
        return next(iter(parameters), torch.empty(0)).device

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None."""
        return getattr(self.model, "tokenizer", None)

    @cached_property
    def points(self) -> dict[str, nn.Module]:
        """The hook points by name; bridges have several names for some of them, and listing them takes a while."""
        known = self.model.hook_dict
        return known if self._inner is self.model else with_aliases(known)

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding matrix, in TransformerLens' orientation."""
        return self.model.W_U.detach()

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """The embedding matrix."""
        return self.model.W_E.detach()

    @cached_property
    def basis(self) -> Basis:
        """The weight processing, determined from the weights themselves, because configurations do not record it."""
        return basis_of(self.model)

    @property
    def revision(self) -> str | None:
        """The commit of the weights on the hub, if transformers stores it in the configuration (4 does, 5.24 does not)."""
        found = getattr(getattr(self._inner, "config", None), "_commit_hash", None)
        return found if isinstance(found, str) and found else None

    @property
    def processing(self) -> dict[str, Any]:
        """The weight processing in the format of TransformerLens' own analyses."""
        done = [name for name, is_so in vars(self.basis).items() if is_so]
        compatible = bool(getattr(self.model, "compatibility_mode", False))
        return {"compatibility_mode": compatible, "weight_basis": "+".join(done) or "raw_huggingface"}

    def hook_points(self, at: Any) -> list[str]:
        """Residual-stream hook points by name: one, several, or ``"resid_pre"``, ``"resid_mid"``, ``"resid_post"`` for all layers.

        Raises:
            InputError: a hook point does not exist or is not in the residual stream.
        """
        if isinstance(at, str) and f"hook_{at}" in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post"):
            names = [f"blocks.{layer}.hook_{at}" for layer in range(int(self.cfg.n_layers))]
        elif isinstance(at, list | tuple) and at:
            names = list(at)
        else:
            names = [at]
        for name in names:
            self._check_hook_point(name, self.points)
        if len(set(names)) < len(names):
            raise InputError(f"Each hook point can be given only once; got {names}.")
        return names

    def hook_point(self, at: Any) -> str:
        """The one hook point of that name; several are refused."""
        names = self.hook_points(at)
        if len(names) > 1 or not isinstance(at, str):
            raise InputError(
                f"One hook point is needed here, by its name, such as 'hook_embed'; got {at!r}. Call once for each."
            )
        return names[0]

    def _check_hook_point(self, name: Any, points: dict[str, nn.Module]) -> None:
        if not isinstance(name, str) or name not in points:
            residual = [n for n in points if is_residual(n)]
            raise InputError(
                f"{self.name} has no hook point {name!r}.{nearest(str(name), residual)} Scopes attach to the residual "
                "stream: 'hook_embed', 'blocks.0.hook_resid_pre', 'blocks.0.hook_resid_post', ..., or 'resid_pre' for all "
                "layers."
            )
        # Bridges have several names for each point.
        if not is_residual(name) and not any(points[name] is points[n] for n in points if is_residual(n)):
            raise InputError(
                f"{name!r} is not in the residual stream, where one vector per position is all that later layers see. "
                "Use 'hook_embed' or 'blocks.N.hook_resid_pre' / 'hook_resid_mid' / 'hook_resid_post'."
            )
        if self.reads_beside(name) and getattr(self.cfg, "parallel_attn_mlp", False):
            raise InputError(
                f"{self.name} computes attention and MLP in parallel, so there is no residual stream between them, as {name!r} "
                "would be. Use 'hook_resid_pre' or 'hook_resid_post'."
            )

    def reads_beside(self, name: str) -> bool:
        """Whether the point is outside the stream: on a bridge ``hook_resid_mid`` is the input of the MLP, a copy of the stream."""
        if self._inner is self.model:
            return False
        points = self.points  # bridges have several names for each point
        return any(points[n] is points[name] for n in points if n.endswith("hook_resid_mid"))

    def unembedding_is_hooked(self, fwd_hooks: Sequence[Any]) -> bool:
        """Whether there is a hook at or after the unembedding, which may expect all positions."""
        inside = {id(module): module for module in walk(self.model.unembed)}
        names = [name for name, point in self.points.items() if id(point) in inside]
        asked = any(name == hook if isinstance(hook, str) else hook(name) for hook, _ in fwd_hooks for name in names)
        return asked or any(module._forward_hooks or module._forward_pre_hooks for module in inside.values())

    def points_showing(self, what: str) -> list[str]:
        """The names of the hook points that end with ``what``, each point once (bridges have several names for some points)."""
        return list({id(point): name for name, point in self.points.items() if name.endswith(what)}.values())

    def prompts_at_once(self, pos: int, fwd_hooks: Sequence[Any]) -> int:
        """The number of prompts of ``pos`` tokens in one forward pass; 1 if there are hooks, which may expect a single prompt."""
        return 1 if self.is_hooked(fwd_hooks) else max(1, TOKENS_AT_ONCE // pos)

    def is_hooked(self, fwd_hooks: Sequence[Any]) -> bool:
        """Whether a user's hook is active, which may expect a single prompt in the batch."""
        return bool(fwd_hooks) or any(map(self.has_hooks, self.points.values())) or self.has_torch_hooks()

    def has_hooks(self, point: Any) -> bool:
        """Whether a hook point has TransformerLens hooks of the user.

        Our own hooks may be there for the run of another thread, and bridges of some architectures use hooks of TransformerLens
        itself to pass activations on (2.x keeps no function, and has none); these do not count.
        """
        handles = [handle for handle in point.fwd_hooks if (handle.context_level or 0) < OWN_LEVEL]
        return any(not _is_a_librarys(getattr(handle, "user_hook", None)) for handle in handles)

    def has_torch_hooks(self) -> bool:
        """Whether a module has plain torch hooks of the user; hooks that libraries add do not count."""
        kinds = ("_forward_hooks", "_forward_pre_hooks")
        hooks = [hook for module in walk(self.model) for kind in kinds for hook in getattr(module, kind).values()]
        return not all(map(_is_a_librarys, hooks))

    def check_hook_names(self, fwd_hooks: Sequence[Any]) -> None:
        """Refuse hooks on points that do not exist, which a bridge of TransformerLens 3 silently ignores."""
        points = self.points
        for hook in fwd_hooks:
            pair = isinstance(hook, tuple | list) and len(hook) == 2
            if not (pair and (isinstance(hook[0], str) or callable(hook[0])) and callable(hook[1])):
                raise InputError(
                    f"fwd_hooks must be pairs of a hook point's name (or a filter) and a function; got {hook!r}."
                )
            if isinstance(hook[0], str) and hook[0] not in points:
                raise InputError(f"{self.name} has no hook point {hook[0]!r} for fwd_hooks.{nearest(hook[0], points)}")


def walk(model: nn.Module) -> list[nn.Module]:
    """The modules of a model, each once, in the order of ``model.modules()``.

    ``model.modules()`` also builds the name of each module, which takes most of its time: as long as a layer for thousands of modules.
    """
    found, waiting = {id(model): model}, [model]
    while waiting:
        for module in waiting.pop()._modules.values():
            if module is not None and id(module) not in found:
                found[id(module)] = module
                waiting.append(module)
    return list(found.values())


def _is_a_librarys(hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or "").partition(".")[0] in LIBRARIES


def is_residual(name: str) -> bool:
    """Whether a hook point's name is one of the residual stream's, on whichever class."""
    return name.rpartition(".")[2] in ("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post")
