"""`spectrum`: in which directions each token moves the prediction, how strongly, and what that says in tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.decoding import decoded
from jscope_tl.attribution.describe import about, doubted, finished, of_prompt
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
"""Share of the energy below which singular values from a sketch are doubted."""


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
    """In which directions each token moves the prediction, how strongly, and what that says in tokens.

    Singular value decompositions of ``J_t = ∂y/∂x_t``, or of ``F_u^{1/2} J_t``, at every position ``t``. Where the trace
    (``fisher``) says how far a token moves the distribution, this says in how many ways, and which.

    ``d_model`` backward rows. Where they take more than 256 MB at once, random combinations of them come first (``k + 32`` at
    least, up to half as many as rows where there is room) and the values are lower bounds from the space that these span, by
    the randomised range finder of Halko, Martinsson and Tropp (2011). The result's ``captured`` says how much of the energy is
    in it, and its warnings where that is less than 99 %: a slowly falling spectrum is then seen several per cent too low.

    Args:
        of: ``"jacobian"``, gains from ``x_t`` to ``y`` whatever they do to the prediction; or ``"fisher"``, those to the
            next-token distribution.
        k: how many singular values and vectors.
        {shared}
        not_taken: nothing; ``reduction`` and ``path`` are refused with the reason.

    Returns:
        A `Spectrum`.

    Raises:
        InputError: as `attribute`; there is no such matrix, or ``k`` is more than its size.

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
            warnings=[*warnings, *backward.notes, *_doubts(numbers["captured"][: explained + 1], linear)],
            decodings=decodings,
        )
        return doubted(of_prompt(result, prompt))


def _count(k: Any, view: ModelView) -> int:
    number, most = whole(k), int(view.cfg.d_model)
    if number is None or not 1 <= number <= most:
        raise InputError(f"k is how many singular values to compute, 1 to {most} (d_model) for {view.name}; got {k!r}.")
    return number


def _directions(
    scope: SpectralScope, state: State
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model"] | None]:
    """A complete orthonormal basis of ``y`` and the weight of each of its vectors: for Fisher eigenvectors and ``λ^{1/2}``."""
    rows = scope.cotangents(state)
    if scope.of == "jacobian":
        return rows, None
    sizes = rows.norm(dim=1)
    known = rows[sizes > 0] / rearrange(sizes[sizes > 0], "k -> k 1")
    # What moves nothing is part of the movement all the same.
    rest = torch.linalg.qr(known.T, mode="complete").Q[:, len(known) :].T
    weights = torch.cat([sizes[sizes > 0], rest.new_zeros(len(rest))])
    return torch.cat([known, rest]), weights


def _finished(
    values: Float[Tensor, "seen *rest"], pos: int, view: ModelView, state: State
) -> Float[Tensor, "pos *rest"]:
    """Off the device, in float32, 0 after the explained position; what is not finite is refused."""
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
    """Where nothing can be decoded, the largest entry is positive."""
    largest = outputs.gather(-1, outputs.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return torch.where(largest < 0, -1.0, 1.0).to(outputs)


def _doubts(captured: Float[Tensor, "seen"], linear: bool) -> list[str]:
    doubts = []
    if (worst := float(captured.min())) < CAPTURED:
        doubts.append(
            f"Singular values are lower bounds from a sketch that holds {worst:.1%} of the energy where it holds least; the "
            "squares of the true ones are larger by the rest at most."
        )
    if not linear:
        doubts.append("The model (or a hook) mixes logits after the unembedding: directions have no tokens.")
    return doubts
