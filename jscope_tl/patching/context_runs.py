"""`context`: the predictions of an answer without parts of its prompt, measured and predicted."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.attribute import explain
from jscope_tl.attribution.describe import about
from jscope_tl.attribution.generation import Generation, with_answer
from jscope_tl.attribution.setup import Setup, set_up
from jscope_tl.engine.batches import in_batches
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.jvp import jvp
from jscope_tl.engine.progress import progress_bar
from jscope_tl.engine.run import Run
from jscope_tl.engine.state import divergence
from jscope_tl.engine.vjp import Backward
from jscope_tl.errors import InputError
from jscope_tl.model.prompts import Prompt, prompt_texts, to_str_tokens
from jscope_tl.model.running import Passes, ends_along, undisturbed
from jscope_tl.model.text import Continuation, Messages, Tokenized
from jscope_tl.patching.ablated_runs import blank
from jscope_tl.patching.context_effects import ContextEffects, with_cues
from jscope_tl.results.attribution import Attribution
from jscope_tl.results.base import PredictedToken
from jscope_tl.results.cost import Cost
from jscope_tl.results.sources import Source, sources_of, to_segments
from jscope_tl.scopes.fisher import fisher_factor

LogProbs = Float[Tensor, "out d_vocab"]


@documented
def context(
    model: Any,
    prompt: Prompt | Messages,
    continuation: Continuation | None = None,
    *,
    by: Any = "message",
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    generation_seed: int = 0,
    stop: Sequence[str | int] | None = None,
    chat_template: str | None = None,
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    progress: bool | None = None,
) -> ContextEffects:
    """How much each token of an answer depends on each part of its prompt: the KL divergence of its prediction without the part.

    This is the first of PECoRe's two steps (Sarti et al., ICLR 2024), for each part; the second is `ContextEffects.cues`. A part is left
    out in two ways: its tokens are removed from the text, and its vectors at ``hook_embed`` are set to 0. Fisher information predicts the
    effect of the latter to second order. The cost is two forward passes for each part, and one Jacobian-vector product for each part for
    the predictions at all tokens.

    Args:
        prompt: a string, ids, or the messages of a chat, as in `js.attribute_text`.
        continuation: the answer, a string or ids; None: the model generates it.
        by: the parts: ``"message"`` (the whole prompt if it is not a chat), ``"line"``, ``"sentence"``, ``"word"``, ``"token"``, or your
            own segments, as in `js.attribute_text`. BOS and template text are never left out.
        max_new_tokens, temperature, generation_seed, stop, chat_template: as in `js.attribute_text`.
        progress: a progress bar of runs always (True), never (False), or if the call takes more than a second (None).
        {shared}

    Raises:
        InputError: the cases in which `js.attribute_text` raises it; there is no part to leave out, or nothing is left before the
            answer.

    Example:
        >>> import jscope_tl as js
        >>> found = js.patching.context(js.load_pocket_model(), "the keys to the cabinet near the doors", " are old", by="word")
        >>> found.top(1)[0].str_token, found.top(1)[0].source.text
        (' are', 'doors')
    """
    setup, passes = set_up(model, "fisher", {}, fwd_hooks=fwd_hooks, progress=progress), Passes()
    given, how = with_answer(
        setup.view, prompt, continuation, Generation(max_new_tokens, temperature, generation_seed, stop), prepend_bos=prepend_bos,
        template=chat_template, hooks=setup.settings.fwd_hooks, passes=passes, progress=progress,
    )  # fmt: skip
    parts = _parts(setup, given, by)
    warnings, costs = setup.warnings(given.tokens), dict[str, Cost]()
    masks = torch.zeros(len(parts), len(given.tokens), dtype=torch.bool, device="cpu")
    for i, part in enumerate(parts):
        masks[i, list(part.positions)] = True
    start = time.perf_counter()
    predicted, described, notes = _predicted(setup, given, masks)
    costs["predicted"] = Cost.of(described["provenance"], time.perf_counter() - start)
    base, removed = _removed(setup, given, masks, costs, progress)
    zeroed = _zeroed(setup, given, masks, base, costs, progress)
    kl, without, instead = _compared(setup, given, base, removed)
    answer = given.tokens[given.text.n_prompt :].cpu()
    effects = ContextEffects(
        **{name: described[name] for name in ("tokens", "str_tokens", "basis", "provenance")},
        text=given.text,
        parts=tuple(parts),
        removed=kl,
        zeroed=zeroed,
        predicted=predicted,
        probabilities=base.gather(1, answer.unsqueeze(1))[:, 0].exp().float(),
        without=without,
        instead=instead,
        continued=how,
        costs=costs,
        warnings=[*warnings, *notes],
    )
    return with_cues(effects, partial(_cues, setup))


def _parts(setup: Setup, given: Tokenized, by: Any) -> list[Source]:
    """The parts of the prompt, without template text."""
    str_tokens = prompt_texts(setup.view, given.tokens.tolist())
    name, segments = to_segments(by, given.text.string)
    n = given.text.n_prompt
    found = [s for s in sources_of(given.text, str_tokens, name, segments) if not s.is_template and s.positions[-1] < n]
    if segments:
        named = {segment.name for segment in segments}
        found = [source for source in found if source.text in named]
    if not found:
        raise InputError(
            "There is no part of the prompt to leave out: by= has only parts of the answer or of template text. Give other parts."
        )
    if any(len(part.positions) == n for part in found):
        raise InputError(
            "Without one of the parts, nothing would be left before the answer. Give the prompt with its BOS, or smaller parts (by=...)."
        )
    return found


def _predicted(
    setup: Setup, given: Tokenized, masks: Bool[Tensor, "part pos"]
) -> tuple[Float[Tensor, "part out"] | None, dict[str, Any], list[str]]:
    """``½ ‖S J δ‖²`` from one Jacobian-vector product for each part, at all predictions of the answer together."""
    positions = list(range(given.text.n_prompt - 1, len(given.tokens) - 1))
    with setup.run(given.tokens, positions) as (forward, backward):
        found = second_order(forward, backward, masks)
        described = about(setup, given.tokens, forward.activations[0], forward.passes, None)
        return found, described, backward.notes


def second_order(forward: Run, backward: Backward, masks: Bool[Tensor, "part pos"]) -> Float[Tensor, "part out"] | None:
    """``½ ‖S J δ‖²`` at every explained position, with the vectors of each mask as ``δ``; None if there are no Jacobian-vector products."""
    x = forward.activations[0].detach()
    moved = jvp(backward, rearrange(masks, "part pos -> part pos 1").to(x.device) * x, slice(None))
    if moved is None:
        return None
    effects = []
    for i in range(len(forward.positions)):
        S = fisher_factor(forward.state(i))
        effects.append(0.5 * S.size**2 * S.left(moved[:, i]).square().sum(1))
    return torch.stack(effects, 1).float().cpu()


def _removed(
    setup: Setup, given: Tokenized, masks: Bool[Tensor, "part pos"], costs: dict[str, Cost], progress: bool | None
) -> tuple[LogProbs, list[LogProbs]]:
    """Log-probabilities of all predictions of the answer, with the whole prompt and without each part."""
    start, passes, n_out = time.perf_counter(), Passes(), len(given.tokens) - given.text.n_prompt
    kept = [torch.ones_like(masks[0]), *~masks]
    with (
        undisturbed(setup.view, setup.settings.fwd_hooks),
        ends_along(setup.view, setup.settings.fwd_hooks, slice(-n_out - 1, -1)) as ends,
    ):
        found = []
        for keep in progress_bar(progress, "parts removed", "run", kept):
            logits = ends(given.tokens[keep.to(given.tokens.device)].unsqueeze(0), passes)[1][0]
            found.append(logits.double().cpu().log_softmax(-1))
    costs["removed"] = Cost.of(passes, time.perf_counter() - start)
    return found[0], found[1:]


def _zeroed(
    setup: Setup,
    given: Tokenized,
    masks: Bool[Tensor, "part pos"],
    base: LogProbs,
    costs: dict[str, Cost],
    progress: bool | None,
) -> Float[Tensor, "part out"]:
    """The KL divergences with each part's vectors set to 0."""
    start, passes, n_out, view = time.perf_counter(), Passes(), len(base), setup.view
    hooks = setup.settings.fwd_hooks

    def run(part: slice) -> Float[Tensor, "batch out"]:
        batch = masks[part].to(given.tokens.device)
        own = [("hook_embed", partial(blank, batch, torch.zeros((), device=batch.device)))]
        with undisturbed(view, hooks, own), ends_along(view, [*hooks, *own], slice(-n_out - 1, -1)) as ends:
            logits = ends(repeat(given.tokens, "pos -> batch pos", batch=len(batch)), passes)[1]
            return divergence(base, logits.double().cpu().log_softmax(-1)).clamp_min(0)

    at_once = view.prompts_at_once(len(given.tokens), hooks)
    with progress_bar(progress, "parts set to 0", "run", total=len(masks)) as bar:
        found = []
        for effects in in_batches(run, len(masks), at_once):
            bar.update(len(effects))
            found.append(effects)
    costs["zeroed"] = Cost.of(passes, time.perf_counter() - start)
    return torch.cat(found).float()


def _compared(
    setup: Setup, given: Tokenized, base: LogProbs, removed: list[LogProbs]
) -> tuple[Float[Tensor, "part out"], Float[Tensor, "part out"], tuple[tuple[PredictedToken, ...], ...]]:
    """The KL divergences, the probabilities of the answer's tokens, and the most probable tokens, without each part."""
    answer = given.tokens[given.text.n_prompt :].cpu().unsqueeze(1)
    kl = torch.stack([divergence(base, log_q) for log_q in removed]).clamp_min(0)
    without = torch.stack([log_q.gather(1, answer)[:, 0].exp() for log_q in removed])
    instead = []
    for log_q in removed:
        best = log_q.max(-1)
        texts = to_str_tokens(setup.view, best.indices.tolist())
        tokens = zip(best.indices.tolist(), texts, best.values.exp().tolist(), strict=True)
        instead.append(tuple(PredictedToken(token, text, min(1.0, p)) for token, text, p in tokens))
    return kl.float(), without.float(), tuple(instead)


def _cues(setup: Setup, effects: ContextEffects, out: int, part: int) -> Attribution:
    """The contrastive scope of the token against the most probable token without the part."""
    token, instead = int(effects.tokens[effects.text.n_prompt + out]), effects.instead[part][out].token
    name, options = (
        ("log_prob", {"target": token}) if token == instead else ("contrastive", {"target": token, "baseline": instead})
    )
    own = set_up(setup.view.model, name, options, fwd_hooks=setup.settings.fwd_hooks, progress=setup.progress)
    tokens = effects.tokens[: effects.text.n_prompt + out].to(setup.view.input_device)
    return explain(own, tokens, len(tokens) - 1)
