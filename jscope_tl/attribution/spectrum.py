"""`spectrum`: the directions in which each token moves the prediction, their strengths, and their tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.decoding import decoded
from jscope_tl.attribution.describe import about, finished, of_prompt, with_sink_warning
from jscope_tl.attribution.keywords import refuse
from jscope_tl.attribution.setup import set_up
from jscope_tl.engine.forward import FwdHooks
from jscope_tl.engine.one_position import VJP
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.state import State
from jscope_tl.errors import InputError, whole
from jscope_tl.model.prompts import Prompt
from jscope_tl.model.view import ModelView
from jscope_tl.results.spectrum import Decodings, Spectrum
from jscope_tl.scopes.singular import Factors, collected, factors
from jscope_tl.scopes.spectral import SEED, SpectralScope

CAPTURED = 0.99
"""Share of the energy below which a warning is given for singular values from a sketch."""


@documented
def spectrum(
    model: Any,
    prompt: Prompt,
    *,
    of: str = "jacobian",
    k: int = 8,
    position: int = -1,
    at: str = "hook_embed",
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **not_taken: Any,
) -> Spectrum:
    """Compute the directions in which each token moves the prediction, with their strengths and the tokens that they change.

    The result has the singular value decompositions of ``J_t = ∂y/∂x_t``, or of ``F_u^{1/2} J_t``, at every position ``t``. The
    trace (``fisher``) measures how far a token moves the distribution; the spectrum shows in how many directions, and in which.

    It takes ``d_model`` backward rows. If these need more than 256 MB at once, random combinations of them are computed first (at
    least ``k + 32``, up to half as many as rows if memory allows), and the values are lower bounds from the space that these span, by
    the randomised range finder of Halko, Martinsson and Tropp (2011). The result's ``captured`` is the share of the energy in this
    space, and a warning is given if it is below 99 %: the values of a slowly decaying spectrum are then several per cent too low.

    Args:
        of: ``"jacobian"``: gains from ``x_t`` to ``y``, whether or not they change the prediction; or ``"fisher"``: gains from
            ``x_t`` to the next-token distribution.
        k: the number of singular values and vectors.
        {shared}
        not_taken: catches keywords that the function does not support: ``reduction`` and ``path`` raise an error with the reason.

    Returns:
        A `Spectrum`.

    Raises:
        InputError: as in `attribute`; ``of`` is unknown, or ``k`` is larger than ``d_model``.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> found = js.spectrum(model, prompt, of="fisher").decode(10, k=1)
        >>> [token for token, _ in found.rises + found.falls]
        [' liberal', ' conservative']
    """
    refuse("spectrum", not_taken, more=["of", "k"])
    scope = SpectralScope(of)
    setup = set_up(
        model, scope, {}, at=at, one_point=True, fwd_hooks=fwd_hooks, gradient=gradient, frozen=frozen, chunk_size=chunk_size,
        matmul_precision=matmul_precision, progress=progress,
    )  # fmt: skip
    view, (tokens, explained) = setup.view, setup.prompt(prompt, prepend_bos, position)
    n, warnings = _count(k, view), setup.warnings(tokens)
    with setup.run(tokens, [explained]) as (forward, backward):
        state = forward.state()
        linear = state.is_linear()
        directions, weights = _directions(scope, state)
        found = collected(directions, weights, VJP(backward), n, SEED)
        energy = _finished(found.energy, len(tokens), view, state)
        factored = factors(found, directions, n, movement=of == "fisher")
        outputs = rearrange(factored.outputs, "seen k d_model -> (seen k) d_model")
        decodings = decoded(outputs, state, view, of == "fisher") if linear else None
        numbers = _numbers(factored, decodings, len(tokens), view, state)
        result = Spectrum(
            **about(setup, tokens, state.x, forward.passes, None if found.basis is None else SEED),
            **numbers,
            position=explained,
            energy=energy,
            of=of,
            options={**setup.options(), "k": n},
            warnings=[*warnings, *backward.notes, *_warnings(numbers["captured"][: explained + 1], linear)],
            decodings=decodings,
        )
        return with_sink_warning(of_prompt(result, prompt))


def _count(k: Any, view: ModelView) -> int:
    number, most = whole(k), int(view.cfg.d_model)
    if number is None or not 1 <= number <= most:
        raise InputError(
            f"k is the number of singular values to compute, 1 to {most} (d_model) for {view.name}; got {k!r}."
        )
    return number


def _directions(
    scope: SpectralScope, state: State
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model"] | None]:
    """A complete orthonormal basis of ``y`` and a weight for each vector (None: all 1); for Fisher, eigenvectors and ``λ^{1/2}``."""
    rows = scope.cotangents(state)
    if scope.of == "jacobian":
        return rows, None
    sizes = rows.norm(dim=1)
    known = rows[sizes > 0] / rearrange(sizes[sizes > 0], "k -> k 1")
    # Complete the basis with directions of weight 0, which do not change the distribution.
    rest = torch.linalg.qr(known.T, mode="complete").Q[:, len(known) :].T
    weights = torch.cat([sizes[sizes > 0], rest.new_zeros(len(rest))])
    return torch.cat([known, rest]), weights


def _finished(
    values: Float[Tensor, "seen *rest"], pos: int, view: ModelView, state: State
) -> Float[Tensor, "pos *rest"]:
    """Values on the CPU, in float32, 0 after the explained position; values that are not finite are refused."""
    filled = values.new_zeros(pos, *values.shape[1:])
    filled[: len(values)] = values
    by_position = rearrange(filled, "pos ... -> ... pos")
    return rearrange(finished(by_position, state.x.dtype, view.name), "... pos -> pos ...")


def _numbers(factored: Factors, decodings: Decodings | None, pos: int, view: ModelView, state: State) -> dict[str, Any]:
    """The result's tensors, with the sign of each direction chosen."""
    outputs = factored.outputs
    signs = _signs(outputs) if decodings is None else decodings.signs.view(outputs.shape[:2]).to(outputs)
    signs = rearrange(signs, "seen k -> seen k 1")
    signed = {
        "singular_values": factored.values,
        "output_directions": outputs * signs,
        "input_directions": factored.inputs * signs.to(factored.inputs),
        "effective_rank": factored.effective_rank,
        "captured": factored.captured,
    }
    return {name: _finished(values, pos, view, state) for name, values in signed.items()}


def _signs(outputs: Float[Tensor, "seen k d_model"]) -> Float[Tensor, "seen k"]:
    """Signs of directions that cannot be decoded: the largest entry becomes positive."""
    largest = outputs.gather(-1, outputs.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return torch.where(largest < 0, -1.0, 1.0).to(outputs)


def _warnings(captured: Float[Tensor, "seen"], linear: bool) -> list[str]:
    warnings = []
    if (worst := float(captured.min())) < CAPTURED:
        warnings.append(
            f"Singular values are lower bounds from a sketch that captures {worst:.1%} of the energy at the worst position; the "
            "squares of the true values are larger by at most the energy that is missing."
        )
    if not linear:
        warnings.append(
            "The model (or a hook) mixes logits after the unembedding: directions cannot be decoded into tokens."
        )
    return warnings
