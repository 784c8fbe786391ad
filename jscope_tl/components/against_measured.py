"""`agreement`: how well predicted effects of components agree with the effects of ablating or patching them."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.keywords import refuse
from jscope_tl.attribution.setup import Setup, set_up
from jscope_tl.components.agreement import ComponentAgreement
from jscope_tl.components.effects import ComponentEffects, measured_at, unmeasured
from jscope_tl.components.lens_attribution import transformer_lens_effects, why_not
from jscope_tl.components.prediction import components
from jscope_tl.components.sources import NAMED
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.rules import PLAIN, Rules
from jscope_tl.errors import InputError, count
from jscope_tl.model.prompts import Prompt, to_tokens
from jscope_tl.results.cost import Cost
from jscope_tl.scopes.base import Scope
from jscope_tl.scopes.directions import QuantityScope
from jscope_tl.scopes.fisher import FisherScope

LENS, LOG_PROB = "TransformerLens' attribution patching", "log_prob"


@documented
@torch.inference_mode(False)
def agreement(
    model: Any,
    prompt: Prompt,
    scope: str | Scope | Callable[..., Any] = "fisher",
    *,
    of: str = "heads",
    source: str | Prompt = "zero",
    position: int = -1,
    positions: str = "all",
    prompts: Sequence[Prompt] | None = None,
    resample_seed: int = 0,
    direction: str = "noising",
    sae: Any = None,
    at: str | None = None,
    refine: int | None = None,
    sample: int | None = None,
    sample_seed: int = 0,
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> ComponentAgreement:
    """Measure the effect of changing every component, and compare it with the predictions of this package and of attribution patching.

    The methods:

    - the prediction of `components` for the scope, with the strongest components refined, and without refinement (``refine=0``);
    - attribution patching: the gradient of one number times the change of the activation. For a scope with a single cotangent this is the
      prediction without refinement; for a scope with several cotangents (Fisher) the number is the target's log-probability;
    - TransformerLens' attribution patching (``transformer_lens.tools.analysis``, 3.x and 4.x) of the same number, where it supports the
      question: heads or MLPs of a `TransformerBridge`, another prompt as ``source``, ``direction="denoising"``. The scores of its nodes
      are summed over positions.

    For each method, the result has the rank correlation with the absolute values of the measured effects, and the overlap of the strongest
    components.

    Args:
        of, source, positions, prompts, resample_seed, direction, sae, at, refine: as of `components`.
        sample: the number of components to measure, drawn at random, for when all are too many (single edges); None: all.
        sample_seed: the seed of this draw.
        {shared}

    Returns:
        A `ComponentAgreement`.

    Raises:
        InputError: as `components`; ``sample`` is not 1 or more.

    Example:
        >>> import jscope_tl as js
        >>> found = js.patching.agreement(js.load_pocket_model(), "the keys to the cabinet near the doors", progress=False)
        >>> list(found.predictions)
        ['fisher, refined', 'fisher', 'attribution patching (log_prob)']
    """
    refuse("patching.agreement", options)
    sample = None if sample is None else count("sample", sample, 1)
    seed = count("sample_seed", sample_seed, 0)
    shared: dict[str, Any] = dict(
        of=of, source=source, position=position, positions=positions, prompts=prompts, resample_seed=resample_seed, direction=direction, sae=sae,
        at=at, prepend_bos=prepend_bos, fwd_hooks=list(fwd_hooks or ()), gradient=gradient, frozen=frozen, chunk_size=chunk_size,
        matmul_precision=matmul_precision, progress=progress,
    )  # fmt: skip
    effects = components(model, prompt, scope, refine=refine, **shared, **options)
    setup = set_up(model, scope, options)
    found = _predictions(model, prompt, setup, effects, shared)
    laid = {name: _laid_like(effects, other) for name, other in found.items()}
    costs = {name: other.costs["prediction"] for name, other in found.items()}
    notes = []
    name, by_lens = _by_lens(setup, effects, prompt, shared)
    if isinstance(by_lens, str):
        notes.append(f"{LENS} is not compared: {by_lens}.")
    else:
        laid[name], costs[name] = by_lens
    measured = measured_at(unmeasured(effects), _cells(laid.values(), sample, seed), progress)
    costs["measuring"] = measured.costs["measuring"]
    return ComponentAgreement(effects=measured, predictions=laid, costs=costs, notes=notes)


def _predictions(
    model: Any, prompt: Any, setup: Setup, effects: ComponentEffects, shared: dict[str, Any]
) -> dict[str, ComponentEffects]:
    """Predictions by the name of the method: those of the scope with and without refinement, and attribution patching if it is another method."""
    label, plain, single = effects.scope, effects, _is_single(setup.scope, effects)
    found = {}
    if "refined" in effects.options["resolved"]:
        found[f"{label}, refined"] = effects
        plain = components(model, prompt, setup.scope, refine=0, **shared)
    found[f"{label} (attribution patching)" if single else label] = plain
    if not single:
        token, plain_gradients = effects.prediction.target.token, {"gradient": PLAIN, "frozen": ()}
        found[f"attribution patching ({LOG_PROB})"] = components(
            model, prompt, LOG_PROB, refine=0, **{**shared, **plain_gradients}, target=token
        )
    return found


def _is_single(scope: Scope, effects: ComponentEffects) -> bool:
    """Whether the scope explains one number, so that its first-order prediction is attribution patching."""
    return effects.options["resolved"]["rows"] == 1 and not isinstance(scope, FisherScope)


def _laid_like(effects: ComponentEffects, other: ComponentEffects) -> Float[Tensor, "*axes"]:
    """The other prediction in the shape of these effects; 0 for components that it does not list."""
    if effects.index is None or (other.index is not None and torch.equal(effects.index, other.index)):
        return other.values
    if other.index is None:  # the other scope has one row, which takes less memory, so that it kept all edges
        return other.values.flatten(2).gather(2, effects.index)
    pos = len(effects.tokens)
    layers = zip(other.values, other.index, effects.index, strict=True)
    return torch.stack([_at(wanted, listed, values, pos**2) for values, listed, wanted in layers])


def _at(
    wanted: Int[Tensor, "head entry"], listed: Int[Tensor, "head other"], values: Float[Tensor, "head other"], n: int
) -> Float[Tensor, "head entry"]:
    """The values at the ``wanted`` places out of ``n``, from the values at the ``listed`` ones; 0 where a place is not listed."""
    return values.new_zeros(len(values), n).scatter(1, listed, values).gather(1, wanted)


def _by_lens(
    setup: Setup, effects: ComponentEffects, prompt: Any, shared: dict[str, Any]
) -> tuple[str, str | tuple[Float[Tensor, "*axes"], Cost]]:
    """The name of the method, and its effects and cost, or the reason why it does not support this question."""
    view, of, single = setup.view, effects.of, _is_single(setup.scope, effects)
    by_prompt = not (isinstance(shared["source"], str) and shared["source"] in NAMED)
    reason = why_not(view, of, effects.axes, by_prompt, effects.direction)
    if not reason and view.is_hooked(shared["fwd_hooks"]):
        reason = "hooks are active"
    if not reason and single and not isinstance(setup.scope, QuantityScope):
        reason = f"{effects.scope} does not explain a function of the logits"
    if reason:
        return LENS, reason
    quantity = _quantity(setup, effects) if single else partial(_log_prob, effects.prediction.target.token)
    clean, corrupted = to_tokens(view, prompt, shared["prepend_bos"]), effects.tokens.to(view.input_device)
    try:
        found = transformer_lens_effects(view, clean, corrupted, of, quantity, effects.position, effects.predicted)
    except ValueError as error:
        return LENS, f"it refuses this model ({' '.join(str(error).split())[:200]})"
    return f"TransformerLens ({effects.scope if single else LOG_PROB})", found


def _log_prob(token: int, logits: Float[Tensor, "d_vocab"]) -> Float[Tensor, ""]:
    return logits.log_softmax(-1)[token]


def _quantity(setup: Setup, effects: ComponentEffects) -> Callable[[Float[Tensor, "d_vocab"]], Float[Tensor, ""]]:
    """The function of the logits that the scope explains, in the run whose components are changed."""
    assert isinstance(setup.scope, QuantityScope)  # for mypy
    with setup.run(effects.tokens.to(setup.view.input_device), [effects.position]) as (forward, _):
        return setup.scope.quantity(forward.state())


def _cells(predictions: Iterable[Float[Tensor, "*axes"]], sample: int | None, seed: int) -> list[int]:
    """Places of the components to measure: those for which any prediction is not 0, or ``sample`` of them, drawn at random.

    The source does not change the others, or they come after the explained position.
    """
    cells = torch.stack([values.flatten() != 0 for values in predictions]).any(0).nonzero().flatten()
    if sample is not None:
        order = torch.randperm(len(cells), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        cells = cells[order[:sample]].sort().values
    if not len(cells):
        raise InputError(
            "No component has an effect here: the source has the same activations as the prompt. Give another source."
        )
    return [int(cell) for cell in cells]
