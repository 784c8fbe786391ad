"""The range of the linear approximation: predicted and actual changes for growing perturbations of one token's vector."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.attribution.arguments import documented
from jscope_tl.attribution.describe import asked
from jscope_tl.attribution.keywords import refuse
from jscope_tl.attribution.setup import set_up
from jscope_tl.engine.forward import FwdHooks, run_again
from jscope_tl.engine.inputs import NORM, Inputs
from jscope_tl.engine.one_position import VJP
from jscope_tl.engine.rules import Rules
from jscope_tl.engine.run import Run
from jscope_tl.errors import InputError, count
from jscope_tl.model.prompts import Prompt, bos_positions, prompt_texts, to_position
from jscope_tl.model.view import ModelView
from jscope_tl.results.checks import need, need_sizes
from jscope_tl.results.files import Saved
from jscope_tl.results.restoring import LATER
from jscope_tl.scopes.base import Scope, Score

SIZES = tuple(2.0**exponent for exponent in range(-10, 2))
TOLERANCE = 0.1


@dataclass(frozen=True, eq=False)
class Linearity(Saved):
    """Predicted and actual changes along the scope's own direction and along random ones.

    Attributes:
        sizes: ``[size]``, the sizes of the perturbation, in units of the norm of the token's vector.
        predicted: ``[direction, sign, size]``, the changes predicted to leading order; the first direction is the scope's own.
        actual: the actual changes, in the same shape.
        unit: the unit of both changes.
        scope: the name of the scope.
        str_token: the text of the token whose vector is perturbed.
        source: the position of this token.
        norm: the norm of its vector.
        warnings: sentences about the limits of these numbers.
        asked: the target of the scope and its baseline, as text; empty if the scope has no target.
    """

    sizes: Float[Tensor, "size"]
    predicted: Float[Tensor, "direction 2 size"]
    actual: Float[Tensor, "direction 2 size"]
    unit: str
    scope: str
    str_token: str
    source: int
    norm: float
    warnings: list[str] = field(default_factory=list)
    asked: str = field(default="", metadata=LATER)

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together, as in a damaged file."""
        shape, n_sizes = self.predicted.shape, len(self.sizes)
        need(
            self.actual.shape == shape and shape[1:] == (2, n_sizes),
            f"changes have the shape [direction, 2, {n_sizes}]",
        )
        need(shape[0] > 1 and n_sizes > 1 and self.source >= 0, "there are several directions and sizes")
        need_sizes("sizes", self.sizes)

    @property
    def own_error(self) -> Float[Tensor, "size"]:
        """The root mean square of ``actual - predicted`` divided by that of ``predicted``, along the scope's own direction."""
        return self._error(slice(0, 1))

    @property
    def random_error(self) -> Float[Tensor, "size"]:
        """The same over all random directions together."""
        return self._error(slice(1, None))

    def radius(self, error: Float[Tensor, "size"], tolerance: float = TOLERANCE) -> float:
        """The size up to which an error stays below ``tolerance``, in units of the vector's norm.

        Between two sizes it is interpolated linearly in logarithms. It is 0 if the error is never below the tolerance, and infinite if it
        still is at the largest size. Sizes at the lower end at which rounding dominates are skipped.

        Args:
            error: `own_error` or `random_error`.
            tolerance: the largest accepted relative error.
        """
        under = (error <= tolerance).nonzero().flatten()
        if not len(under):
            return 0.0
        beyond = (error[under[0] :] > tolerance).nonzero().flatten()
        if not len(beyond):
            return float("inf")
        i = int(under[0] + beyond[0])
        low, high = error[i - 1].clamp_min(1e-12).log(), error[i].log()
        share = float((torch.tensor(tolerance, device="cpu").log() - low) / (high - low))
        return float(self.sizes[i - 1] * (self.sizes[i] / self.sizes[i - 1]) ** share)

    @property
    def own_radius(self) -> float:
        """The size up to which the error along the scope's own direction stays below 10 %."""
        return self.radius(self.own_error)

    @property
    def random_radius(self) -> float:
        """The same along random directions."""
        return self.radius(self.random_error)

    def __repr__(self) -> str:
        asked = f"{self.asked}," if self.asked else ""
        return (
            f"Linearity of the {self.scope} scope{asked} at {self.str_token!r} (position {self.source}): the error stays "
            f"under {TOLERANCE:.0%} up to {self.own_radius:.3g} of the vector's norm along the scope's own direction, "
            f"{self.random_radius:.3g} along {len(self.predicted) - 1} random ones"
        )

    def _error(self, directions: slice) -> Float[Tensor, "size"]:
        predicted, actual = self.predicted[directions], self.actual[directions]
        wrong = (actual - predicted).square().mean((0, 1)).sqrt()
        return wrong / predicted.square().mean((0, 1)).sqrt().clamp_min(torch.finfo(wrong.dtype).tiny)


@documented
def linearity(
    model: Any,
    prompt: Prompt,
    scope: str | Scope | Callable[..., Any] = "semantic",
    *,
    source: int | None = None,
    position: int = -1,
    at: str = "hook_embed",
    sizes: Sequence[float] = SIZES,
    n_random: int = 8,
    seed: int = 0,
    prepend_bos: bool | None = None,
    fwd_hooks: FwdHooks = (),
    gradient: str | Rules = "plain",
    frozen: str | Sequence[str] = (),
    chunk_size: int | None = None,
    matmul_precision: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Linearity:
    """Perturb one token's vector by growing amounts, and compare the changes that the scope predicts with those of the model.

    The perturbations go along the scope's own direction, to which it is most sensitive (the first right singular vector of ``C J_t``),
    and along random directions, with both signs. The predicted change is that of leading order (Fisher: the second-order KL divergence);
    the actual change is that of the quantity which the scope explains.

    Args:
        scope: a registered name, with its options as further keywords; a scope object; or a function from the `State` to
            cotangents. ``fisher`` uses all directions of the Fisher matrix, which takes at most ``d_model`` backward passes.
        source: the position whose vector is perturbed; None: the one with the highest score, BOS excluded.
        sizes: increasing sizes of the perturbation, in units of the norm of that vector.
        n_random: the number of random directions.
        seed: the seed of the random directions.
        frozen: ``"attn"`` holds attention patterns constant, ``"norm"`` normalisation scales, also in the perturbed runs.
        {shared}

    Raises:
        InputError: the cases in which `attribute` raises it; sizes that are not increasing and positive; a source after the explained
            position.

    Example:
        >>> import jscope_tl as js
        >>> found = js.diagnostics.linearity(js.load_pocket_model(), "the keys to the cabinet near the doors", "log_prob")
        >>> found.own_radius > 0
        True
    """
    refuse("diagnostics.linearity", options)
    grid = _sizes(sizes)
    n_random, seed = count("n_random", n_random, 1), count("seed", seed, 0)
    setup = set_up(
        model, scope, options, at=at, one_point=True, fwd_hooks=fwd_hooks, reduction=NORM, gradient=gradient, frozen=frozen,
        chunk_size=chunk_size, matmul_precision=matmul_precision, progress=progress,
    )  # fmt: skip
    tokens, explained = setup.prompt(prompt, prepend_bos, position)
    warnings = setup.warnings(tokens)
    with setup.run(tokens, [explained]) as (base, backward):
        rows = VJP(backward).rows(setup.scope.rows(base.state()))
        t = _source(source, rows, setup.view, tokens, explained)
        x = base.activations[0][0, t].detach()
        directions = _directions(rows[:, t], n_random, seed)
        steps = grid.to(x) * x.norm()
        both_ways = rearrange(torch.stack([directions, -directions], 1), "direction sign d -> direction sign 1 d")
        moves = both_ways * rearrange(steps, "size -> size 1")
        along = einsum(rows[:, t], moves, "k d, direction sign size d -> k direction sign size")
        predicted = setup.scope.predicted_from(along, Score(rows[:, 0, 0]))
        each = rearrange(moves, "direction sign size d -> (direction sign size) d")
        actual = _actual(base, setup.scope, t, each).view(predicted.shape)
        asked_for = asked(setup, base.state())
    return Linearity(
        sizes=grid,
        predicted=predicted.double().cpu(),
        actual=actual,
        unit=setup.scope.effect_unit,
        scope=setup.scope.label,
        str_token=prompt_texts(setup.view, tokens.tolist())[t],
        source=t,
        norm=float(x.norm()),
        warnings=[*warnings, *backward.notes, *_rounded(x.dtype)],
        asked=asked_for,
    )


def _sizes(sizes: Any) -> Float[Tensor, "size"]:
    try:
        grid = torch.as_tensor([float(size) for size in sizes], dtype=torch.float64, device="cpu")
    except (TypeError, ValueError) as error:
        raise InputError(f"sizes are two or more increasing numbers above 0; got {sizes!r}.") from error
    if len(grid) < 2 or not grid.isfinite().all() or not (grid.diff() > 0).all() or grid[0] <= 0:
        raise InputError(f"sizes are two or more increasing numbers above 0; got {sizes!r}.")
    return grid


def _rounded(dtype: torch.dtype) -> list[str]:
    if dtype not in (torch.float16, torch.bfloat16):
        return []
    return [
        f"In {str(dtype).removeprefix('torch.')}, rounding hides the effects of small perturbations, which can make the radius 0. Try float32."
    ]


def _source(
    source: Any, rows: Float[Tensor, "k pos d_in"], view: ModelView, tokens: Int[Tensor, "pos"], explained: int
) -> int:
    if source is not None:
        t = to_position(source, len(tokens))
        if t > explained:
            raise InputError(
                f"source {source} is after the explained position {explained}, which does not attend to it. Give an earlier source."
            )
        return t
    scores = rows[:, : explained + 1].square().sum((0, 2))
    scores[list(bos_positions(view, tokens[:explained]))] = -1
    return int(scores.argmax())


def _directions(rows: Float[Tensor, "k d_in"], n_random: int, seed: int) -> Float[Tensor, "direction d_in"]:
    """The scope's own direction, followed by random ones, all of unit length."""
    own = torch.linalg.svd(rows, full_matrices=False).Vh[:1]
    drawn = torch.randn(n_random, rows.shape[1], generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return torch.cat([own, (drawn / drawn.norm(dim=1, keepdim=True)).to(own)])


def _actual(base: Run, scope: Scope, t: int, moves: Float[Tensor, "n d_in"]) -> Float[Tensor, "n"]:
    """The change of the quantity that the scope explains, for each perturbation."""
    effect, found = scope.effect_from(base.state()), []
    for some in moves.split(base.view.prompts_at_once(len(base.tokens), base.settings.fwd_hooks)):
        with run_again(base, len(some), Inputs(place=partial(_moved, t, some))) as away:
            states = [away.state(i) for i in range(len(some))]
            found += [effect(state.y.detach(), state.logits.detach()) for state in states]
    return torch.stack([value.detach().double().cpu() for value in found])


def _moved(
    t: int, moves: Float[Tensor, "n d_in"], activation: Float[Tensor, "n pos d_in"]
) -> Float[Tensor, "n pos d_in"]:
    moved = activation.clone()
    moved[:, t] += moves.to(activation)
    return moved
