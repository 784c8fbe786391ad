"""Gradient rules: the backward pass through norms, attention and MLPs. The forward pass is unchanged."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from jscope_tl.errors import InputError, nearest

PLAIN = "plain"
CHOICES = {
    "norm": (PLAIN, "constant"),
    "attn": (PLAIN, "constant", "halved", "tempered"),
    "mlp": (PLAIN, "secant"),
}
FROZEN = ("attn", "norm")
"""The names that ``frozen=`` accepts."""


@dataclass(frozen=True)
class Rules:
    """A backward rule for each kind of non-linear layer; ``"plain"`` is the derivative itself.

    Gradients measure the effect of an infinitesimal change. If a layer saturates (softmax, activations) or rescales (norms), this
    effect is small although the input matters. The rules replace the layer, in the backward pass, by a linear map with the same
    value, which measures the contribution of the input. All scopes then use this map instead of ``J``.

    Args:
        norm: ``"constant"`` holds the scale ``σ`` of ``x / σ(x)`` constant (LN rule: Ali et al. 2022, "XAI for Transformers").
        attn: ``"constant"`` holds the pattern ``P = softmax(s)`` constant. ``"halved"``: each product of two activations,
            ``s = q·k`` and ``z = P v``, passes half of the gradient to each factor: ``∂z/∂v → ½ P``, ``∂z/∂P → ½ v``
            (AttnLRP, Achtibat et al. 2024, the uniform rule). ``"tempered"``: like ``"halved"``, and the derivative of the
            softmax is taken at twice the temperature, ``diag(P_T) - P_T P_T^T`` with ``P_T = softmax(s/2)`` (GIM, Edin et al. 2025),
            so that a saturated softmax still passes a gradient.
        mlp: ``"secant"`` holds ``act(g)/g`` constant, so that ``act(g)`` is linear in ``g`` with the slope of the line through the
            origin (the secant), and a gated product ``act(g) ⊙ u`` passes half of the gradient to each factor (AttnLRP: identity and
            uniform rule; RelP, Jafari et al. 2025: half rule).

    Raises:
        InputError: the name of a rule is unknown.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> rules = js.Rules(norm="constant", attn="halved", mlp="secant")  # the same as "attnlrp"
        >>> js.attribute(model, "the keys to the cabinet", "log_prob", gradient=rules).options["gradient"]
        'attnlrp'
    """

    norm: str = PLAIN
    attn: str = PLAIN
    mlp: str = PLAIN

    def __post_init__(self) -> None:
        for kind, known in CHOICES.items():
            given = getattr(self, kind)
            if not isinstance(given, str) or given not in known:
                raise InputError(
                    f"There is no rule {kind}={given!r}.{nearest(str(given), known)} Known: {', '.join(known)}."
                )

    @property
    def name(self) -> str:
        """The name in `RULES`, or the list of the rules that are not plain."""
        changed = [f"{field.name}={getattr(self, field.name)}" for field in fields(self)]
        named = (name for name, rules in RULES.items() if rules == self)
        return next(named, ", ".join(said for said in changed if not said.endswith(PLAIN)))

    @property
    def frozen(self) -> list[str]:
        """The names for ``frozen=`` of everything that is held constant, if there are no other changes; else an empty list."""
        constant = [kind for kind in FROZEN if getattr(self, kind) == "constant"]
        return constant if Rules(**dict.fromkeys(constant, "constant")) == self else []

    @property
    def splits_products(self) -> bool:
        """Whether products of two activations have a rule, so that all of them must be recognised."""
        return self.attn in ("halved", "tempered") or self.mlp != PLAIN


RULES: dict[str, Rules] = {
    "plain": Rules(),
    "attnlrp": Rules("constant", "halved", "secant"),
    "relp": Rules("constant", "constant", "secant"),
    "gim": Rules("constant", "tempered"),
}
"""Rules by name. ``plain``: as in the paper. ``attnlrp``: AttnLRP (Achtibat, Hatefi, Dreyer et al., ICML 2024). ``relp``: RelP (Jafari, Eberle,
Khakzar, Nanda 2025). ``gim``: Gradient Interaction Modifications (Edin et al. 2025)."""


def to_rules(gradient: Any = PLAIN, frozen: Any = ()) -> Rules:
    """The rules of that name, or the rules that hold the values in ``frozen`` constant.

    Raises:
        InputError: the rules are unknown, or both arguments were given.
    """
    constant = _frozen(frozen)
    if gradient is None or gradient == PLAIN or gradient == Rules():
        return Rules(**dict.fromkeys(constant, "constant"))
    if constant:
        raise InputError(
            f"frozen={frozen!r} is the gradient rule {Rules(**dict.fromkeys(constant, 'constant')).name} and cannot be combined with "
            f"gradient={gradient!r}. Give one of them, or combine rules with js.Rules(norm=..., attn=..., mlp=...)."
        )
    if isinstance(gradient, Rules):
        return gradient
    if not isinstance(gradient, str) or gradient not in RULES:
        raise InputError(
            f"There are no gradient rules {gradient!r}.{nearest(str(gradient), RULES)} Known: {', '.join(RULES)}, and "
            "js.Rules(norm=..., attn=..., mlp=...)."
        )
    return RULES[gradient]


def _frozen(given: Any) -> Sequence[str]:
    """The names of what is held constant, each once; an error if one is unknown."""
    kinds = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, tuple | list | set) else None
    if kinds is None or any(not isinstance(kind, str) or kind not in FROZEN for kind in kinds):
        raise InputError(
            f"frozen is 'attn' (attention patterns), 'norm' (norm scales), or both, ('attn', 'norm'); got {given!r}."
        )
    return [kind for kind in FROZEN if kind in kinds]
