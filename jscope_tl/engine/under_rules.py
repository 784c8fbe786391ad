"""A forward pass of a model under gradient rules: the functions and modules that rules apply to, and checks that they cover the model."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from jscope_tl.engine import attention_rules, mlp_rules, norm_rules, product_rules
from jscope_tl.engine.ruled_pass import WHAT, ChangePattern, HeldConstant, RuledPass
from jscope_tl.engine.rules import PLAIN, Rules
from jscope_tl.errors import InputError
from jscope_tl.model.hooks import on_this_thread
from jscope_tl.model.view import ModelView

CALLED = {
    "norm": "norm",
    "attn": "attention",
    "mlp": "mlp|experts|moe(block|bridge|$)",
    "act": "gelu|silu|relu|swish|activation",
}
"""Parts of the class names (in lower case) of modules of each kind, in TransformerLens, transformers and torch."""
PART = re.compile(r"blocks\.\d+\.\w+")
"""Names of the parts of a block."""
NAMED = 6
"""Maximum number of modules that an error message names."""


@contextmanager
def under_rules(
    view: ModelView,
    rules: Rules,
    held: HeldConstant,
    pos: int,
    batch: int = 1,
    with_patterns: bool = False,
    change: ChangePattern | None = None,
) -> Iterator[RuledPass]:
    """One forward pass over ``batch`` prompts of ``pos`` tokens, with the same values and the gradients of the rules.

    In runs without gradients, ``change`` can replace attention patterns.

    Raises:
        InputError: the model has no layer that a rule applies to, or a layer computes its values in a way that has no rule.
    """
    check = product_rules.check_unknown if rules.splits_products else None
    ruled = RuledPass(rules, _functions(rules, with_patterns), check, held, pos, batch, with_patterns, change)
    if not ruled.functions:
        yield ruled
        return
    needed = _needed(rules, with_patterns)
    with ExitStack() as stack:
        for kind, name, module in _modules(view.model):
            if kind == "act":
                stack.enter_context(_activation(ruled, module))
            else:
                stack.enter_context(_watched(ruled, kind, name, module, needed.get(kind, {})))
            if kind == "mlp" and rules.mlp != PLAIN:
                stack.enter_context(_own_activations(ruled, module))
        stack.enter_context(ruled)
        yield ruled
    if change is None:
        _need_all(view, ruled, needed)


def _functions(rules: Rules, with_patterns: bool) -> Mapping[Any, Callable[..., Any]]:
    """Torch functions and their replacements; if two rules apply to one function, one replacement calls the other."""
    tables = [
        norm_rules.CONSTANT if rules.norm != PLAIN else {},
        attention_rules.PATTERN if rules.attn != PLAIN or with_patterns else {},
        mlp_rules.SECANT if rules.mlp != PLAIN else {},
        product_rules.PRODUCTS if rules.splits_products else {},
    ]
    functions: dict[Any, Callable[..., Any]] = {}
    for table in tables:
        for func, rule in table.items():
            functions[func] = partial(_one_after_the_other, rule, functions[func]) if func in functions else rule
    return functions


def _one_after_the_other(
    outer: Callable[..., Any],
    inner: Callable[..., Any],
    ruled: RuledPass,
    func: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    return outer(ruled, partial(inner, ruled, func), *args, **kwargs)


def _needed(rules: Rules, with_patterns: bool) -> dict[str, dict[str, int]]:
    """For every kind of module, the kinds of values that it must compute, and the minimum number of each."""
    split = {"product": 2} if rules.attn in ("halved", "tempered") else {}
    needed = {
        "norm": {"norm": 1} if rules.norm != PLAIN else {},
        "attn": {"attn": 1, **split} if rules.attn != PLAIN or with_patterns else {},
        "mlp": {"mlp": 1} if rules.mlp != PLAIN else {},
    }
    return {kind: least for kind, least in needed.items() if least}


def _modules(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Modules with their kind, by the names of their classes, both a bridge's wrappers and the wrapped modules.

    Linear attention has no pattern and so no kind. Other parts of a block have no kind either; they are listed for error messages.
    """
    for name, module in model.named_modules():
        called = type(module).__name__.lower()
        plain = name.replace("._original_component", "")
        kind = next((kind for kind, words in CALLED.items() if re.search(words, called)), "")
        kind = "" if kind == "attn" and "linear" in called else kind
        if kind or PART.fullmatch(plain):
            yield kind, plain, module


@contextmanager
def _watched(ruled: RuledPass, kind: str, name: str, module: nn.Module, needed: Mapping[str, int]) -> Iterator[None]:
    """Track when the module runs, and check that each run computes the needed values, unless it returns its input."""
    before: list[Counter[str]] = []

    def enter(module: nn.Module, args: Any) -> None:
        ruled.enter(kind, name)
        before.append(Counter(ruled.found))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        found = ruled.found - before.pop()
        first = output[0] if isinstance(output, tuple) else output
        changes = isinstance(first, Tensor) and first.requires_grad and not any(first is given for given in args)
        for what, least in needed.items():
            if changes and found[what] < least:
                ruled.miss(what)
        ruled.leave()

    with _hooked(module, enter, leave):
        yield


@contextmanager
def _activation(ruled: RuledPass, module: nn.Module) -> Iterator[None]:
    """Apply the rule to a module that is an activation."""

    def enter(module: nn.Module, args: Any) -> None:
        ruled.enter("act", "")

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        ruled.leave()
        if ruled.rules.mlp == PLAIN or ruled.inside in ("attn", "norm", "act"):
            return None
        with ruled.running("act", ""):
            return mlp_rules.activated(ruled, module.forward, args[0], output)

    with _hooked(module, enter, leave):
        yield


@contextmanager
def _own_activations(ruled: RuledPass, module: nn.Module) -> Iterator[None]:
    """Apply the rule to Python functions that an MLP uses as its activation, which are not a single torch function."""
    own = {name: f for name, f in vars(module).items() if "act" in name and callable(f) and f not in ruled.functions}
    thread = get_ident()

    def activated(f: Callable[..., Tensor], x: Tensor) -> Any:
        if get_ident() != thread:
            return f(x)
        with ruled.running("act", ""):
            return mlp_rules.activated(ruled, f, x, f(x))

    try:
        for name, f in own.items():
            setattr(module, name, partial(activated, f))
        yield
    finally:
        for name, f in own.items():
            setattr(module, name, f)


@contextmanager
def _hooked(module: nn.Module, enter: Callable[..., None], leave: Callable[..., Any]) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(on_this_thread(enter)),
        module.register_forward_hook(on_this_thread(leave)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _need_all(view: ModelView, ruled: RuledPass, needed: Mapping[str, Mapping[str, int]]) -> None:
    rules = ruled.rules
    for what, missed in ruled.missed.items():
        names = list(dict.fromkeys(missed))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise InputError(
            f"{_asked(rules, what)} is not possible on {view.name}: {', '.join(names[:NAMED])}{more} compute "
            f"{_unknown(rules, what)}. {_cure(rules, what)}"
        )
    for what in needed:
        if not ruled.found[what] and (rules.frozen or not _has_none(view, what)):
            raise InputError(
                f"{view.name} computes no {WHAT[what]}, so {_asked(rules, what)} would change nothing. {_cure(rules, what)}"
            )


def _has_none(view: ModelView, what: str) -> bool:
    """Whether the model has no layer of this kind by its configuration, so that the other rules can be used without it."""
    cfg = view.model.cfg
    if what == "mlp":
        return bool(getattr(cfg, "attn_only", False))
    return what == "norm" and getattr(cfg, "normalization_type", "") is None


def _asked(rules: Rules, what: str) -> str:
    if rules.frozen:
        return f"frozen={what!r}"
    return f"gradient={rules.name!r}" if rules != Rules() else "moving attention patterns (at='pattern', of='edges')"


def _unknown(rules: Rules, what: str) -> str:
    if what == "product":
        return "products or quotients of two activations that have no rule"
    constant = what != "mlp" and getattr(rules, what) == "constant"
    return f"no {WHAT[what]} that {'could be held constant' if constant else 'have a rule'}"


def _cure(rules: Rules, what: str) -> str:
    if rules.frozen:
        return f"Leave {what!r} out of frozen."
    if rules == Rules():
        return "Use at='hook_embed' or of='heads', or load the model with attn_implementation='eager'."
    return "Use gradient='plain', or js.Rules(norm=..., attn=..., mlp=...) without the rule for it."
