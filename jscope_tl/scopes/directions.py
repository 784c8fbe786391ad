"""Scopes with one cotangent ``v``, hence one backward pass: ``score_t = ‖v^T J_t‖`` (Eq. 1 of the paper)."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.engine.state import State
from jscope_tl.errors import InputError, count
from jscope_tl.model.basis import Basis
from jscope_tl.scopes.base import Effect, Scope
from jscope_tl.scopes.registry import register_scope

Target = str | int | Sequence[str | int] | None
"""A token of the vocabulary, as a string or an id; `js.attribute` and `js.attribute_batch` also take a sequence of several tokens."""
Quantity = Callable[[Float[Tensor, "d_vocab"]], Float[Tensor, ""]]


class QuantityScope(Scope):
    """A scope that explains a number computed from the logits: its cotangent is that number's gradient."""

    moves_along = True
    exact_effect = True

    @abstractmethod
    def quantity(self, state: State) -> Quantity:
        """The function of the logits that is explained."""

    def cotangents(self, state: State) -> Float[Tensor, "1 d_model"]:
        """The gradient of the quantity with respect to ``y``."""
        return rearrange(state.gradient(self.quantity(state)), "d_model -> 1 d_model")

    def effect_from(self, base: State) -> Effect:
        """The change of the quantity."""
        quantity = self.quantity(base)
        before = quantity(base.logits.detach())
        return lambda y, logits: quantity(logits.to(before)) - before


@dataclass(frozen=True)
class TargetScope(QuantityScope):
    """A scope that explains one token of the vocabulary."""

    target: Target = None

    def target_id(self, state: State) -> int:
        """The target as an id; a target that is not one token is refused."""
        return state.to_id(self.target)


@register_scope("semantic")
@dataclass(frozen=True)
class SemanticScope(TargetScope):
    """How strongly each token moves the target's logit (the paper's Semantic Scope, Eq. 3).

    ``score_t = ‖(∂z_target/∂y)^T J_t‖``; the cotangent is the target's column of ``W_U`` if nothing (such as a soft-cap) follows
    the unembedding. One backward pass. Unit: logit per unit of x.

    Centring ``W_U`` (``center_unembed=True``, a TransformerLens default) subtracts the mean logit and so changes this
    score; results on such a model have a warning.

    Args:
        target: a string that is one token, or an id. None: the prompt's own next token if there is one, else the
            most probable token.

    Raises:
        InputError: the target is not exactly one token, or is out of range.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> js.attribute(model, prompt, "semantic", target=" liberal").top(1)[0].str_token
        ' columbia'
    """

    unit = "logit per unit of x"

    def quantity(self, state: State) -> Quantity:
        """The target's logit."""
        token = self.target_id(state)
        return lambda logits: logits[token]

    def check(self, basis: Basis) -> list[str]:
        """Warn if centring makes the score differ from the paper's."""
        if not basis.unembed_centered:
            return []
        return [
            "W_U is centred (center_unembed=True, a TransformerLens default): this is the score of the target's logit "
            "minus the mean logit, not the paper's score. For the paper's score, load the model with from_pretrained_no_processing; "
            "log_prob is the same on both."
        ]


@register_scope("log_prob")
@dataclass(frozen=True)
class LogProbScope(TargetScope):
    """How strongly each token moves the target's log-probability: the semantic direction minus its mean under ``p``.

    ``score_t = ‖(∂ log p_target/∂y)^T J_t‖``. One backward pass. Unit: nat per unit of x. Unlike Semantic Scope, it does
    not change if all logits rise by the same amount, and so neither with centring nor with folding.

    Args:
        target: a string or an id. For several tokens (a longer string, or a list of ids) `js.attribute` explains the log-probability of
            the whole sequence, which is one number with one gradient. None: the prompt's own next token if there is one, else the
            most probable token.

    Raises:
        InputError: the target is not exactly one token, or is out of range.
    """

    unit = "nat per unit of x"

    def quantity(self, state: State) -> Quantity:
        """The target's log-probability."""
        token = self.target_id(state)
        return lambda logits: logits.log_softmax(-1)[token]


@register_scope("contrastive")
@dataclass(frozen=True)
class ContrastiveScope(TargetScope):
    """How strongly each token moves the target's logit against a baseline's: why this word and not that one.

    ``score_t = ‖(∂(z_target - z_baseline)/∂y)^T J_t‖``. One backward pass. Unit: logit per unit of x.

    If the target or the baseline has several tokens, `js.attribute` explains ``log p(target) - log p(baseline)`` of the whole texts, in
    nats; for one token each this equals the difference of their logits.

    Args:
        target: a string or an id, or a list of ids. None: the prompt's own next token if there is one, else the most probable token.
        baseline: the token or text that the target is contrasted with. Required.

    Raises:
        InputError: target or baseline is not exactly one token and the entry point cannot explain several, or both are the same.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> js.attribute(model, prompt, "contrastive", target=" liberal", baseline=" conservative").unit
        'logit per unit of x'
    """

    baseline: Target = None
    unit = "logit per unit of x"

    def quantity(self, state: State) -> Quantity:
        """The difference of the two logits."""
        target, baseline = self.target_id(state), state.to_id(self.baseline)
        if target == baseline:
            raise InputError(f"target and baseline are the same token (id {target}); their difference is always 0.")
        return lambda logits: logits[target] - logits[baseline]

    def check(self, basis: Basis) -> list[str]:
        """Refuse a missing baseline."""
        if self.baseline is None:
            raise InputError("contrastive needs a baseline: the token that the target is contrasted with.")
        return []


@register_scope("temperature")
@dataclass(frozen=True)
class TemperatureScope(Scope):
    """How strongly each token moves the model's confidence, the effective inverse temperature ``‖y‖`` (Eq. 7).

    ``score_t = ‖ŷ^T J_t‖`` with ``ŷ = y/‖y‖`` detached. One backward pass. Unit: ‖y‖ per unit of x.

    Raises:
        InputError: the final norm's gain is folded into ``W_U`` (``fold_ln=True``, a TransformerLens default). Then
            ``‖y‖`` is the same for every input, the score is 0, and autograd returns rounding noise.

    Example:
        >>> import jscope_tl as js
        >>> js.attribute(js.load_pocket_model(), "29 , 30 , 31 ,", "temperature").unit
        '|y| per unit of x'
    """

    unit = "|y| per unit of x"
    moves_along = True
    exact_effect = True

    def cotangents(self, state: State) -> Float[Tensor, "1 d_model"]:
        """The direction of ``y``."""
        y = state.y.detach().to(state.dtype)
        return rearrange(y / y.norm(), "d_model -> 1 d_model")

    def effect_from(self, base: State) -> Effect:
        """The change of ``‖y‖``."""
        before = base.y.detach().to(base.dtype).norm()
        return lambda y, logits: y.to(before).norm() - before

    def check(self, basis: Basis) -> list[str]:
        """Refuse models whose ``‖y‖`` cannot change."""
        if basis.ln_folded:
            raise InputError(
                "Temperature Scope measures the norm of y, but this model's final norm has no gain of its own "
                "(fold_ln=True or enable_compatibility_mode folded it into W_U, or it was never trained): the norm of "
                "y is the same for every input and its score would be rounding noise. Load the model with "
                "HookedTransformer.from_pretrained_no_processing (a bridge: without enable_compatibility_mode), or use "
                "'logit_temperature', which folding does not change."
            )
        return []


@register_scope("logit_temperature")
@dataclass(frozen=True)
class LogitTemperatureScope(QuantityScope):
    """How strongly each token moves the spread of the logits, ``‖z - mean(z)‖``, a measure of confidence.

    ``score_t = ‖(∂‖z - mean(z)‖/∂y)^T J_t‖``. It replaces Temperature Scope on models with folded weights: folding and
    centring do not change it. One backward pass. Unit: logit norm per unit of x.
    """

    unit = "logit norm per unit of x"

    def quantity(self, state: State) -> Quantity:
        """The norm of the centred logits."""
        return lambda logits: (logits - logits.mean()).norm()


@register_scope("entropy")
@dataclass(frozen=True)
class EntropyScope(QuantityScope):
    """How strongly each token moves the entropy of the next-token distribution: the model's uncertainty in nats.

    ``score_t = ‖(∂H(p)/∂y)^T J_t‖``. One backward pass. Unit: nat per unit of x.
    """

    unit = "nat per unit of x"

    def quantity(self, state: State) -> Quantity:
        """``-Σ p log p``."""
        return lambda logits: -(logits.softmax(-1) * logits.log_softmax(-1)).sum()


@register_scope("random_direction")
@dataclass(frozen=True)
class RandomDirectionScope(Scope):
    """How strongly each token moves the final hidden state along a random direction: a baseline for the other scopes.

    ``score_t = ‖v^T J_t‖`` with ``v`` a uniformly distributed unit vector. A pattern that a scope shares with this baseline
    is not specific to the quantity that the scope explains. One backward pass. Unit: unit of y per unit of x.

    Args:
        seed: the seed of the direction, which is the same for all prompts. The global random generator is not touched.
    """

    seed: int = 0
    unit = "unit of y per unit of x"

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", count("seed", self.seed, 0))

    def cotangents(self, state: State) -> Float[Tensor, "1 d_model"]:
        """The direction."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        direction = torch.randn(1, len(state.y), generator=generator, device="cpu")
        return (direction / direction.norm()).to(state.y.device, state.dtype)
