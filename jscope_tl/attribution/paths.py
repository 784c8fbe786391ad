"""The inputs at which the model is linearised: the prompt itself, points on a line from an origin, or noisy copies."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jscope_tl.errors import InputError, count, nearest
from jscope_tl.model.embeddings import NAMED

Points = Float[Tensor, "n pos d_in"]


@dataclass(frozen=True, eq=False)
class Path(ABC):
    """The points at which the model is linearised, and the ``origin`` that is subtracted from the input in gradient x input scores.

    The origin is ``"zero"``, ``"mean"`` (of the vocabulary), ``"bos"``, ``"pad"``, or a tensor ``[d]`` or ``[pos, d]``.
    """

    origin: str | Float[Tensor, "*pos d_in"] = field(default="zero", kw_only=True)

    def __post_init__(self) -> None:
        known = isinstance(self.origin, str) and self.origin in NAMED
        if not known and not (isinstance(self.origin, Tensor) and self.origin.ndim in (1, 2)):
            near = nearest(str(self.origin), NAMED) if isinstance(self.origin, str) else ""
            raise InputError(
                f"origin must be one of {', '.join(NAMED)}, or a tensor [d] or [pos, d]; got {self.origin!r}.{near}"
            )

    @abstractmethod
    def n_points(self) -> int:
        """The number of points; each takes a forward pass, in addition to that of the prompt itself."""

    @abstractmethod
    def points(self, x: Float[Tensor, "pos d_in"], x0: Float[Tensor, "*pos d_in"], which: range) -> Points:
        """The points with the numbers ``which``, computed from the prompt's activation ``x`` and the origin ``x0``."""

    def describe(self) -> dict[str, Any]:
        """The path as a dict, for the result's options."""
        kept = {name: value for name, value in vars(self).items() if not isinstance(value, Tensor)}
        own = {"origin": "a tensor"} if isinstance(self.origin, Tensor) else {}
        return {"name": type(self).__name__, **kept, **own, "n_points": self.n_points()}


@dataclass(frozen=True, eq=False)
class Point(Path):
    """The prompt itself, as in the paper. The origin matters only for the reductions ``dot`` and ``elementwise``."""

    def n_points(self) -> int:
        """One point: the prompt."""
        return 0

    def points(self, x: Float[Tensor, "pos d_in"], x0: Float[Tensor, "*pos d_in"], which: range) -> Points:
        """The prompt's activation itself."""
        return x.new_zeros(0, *x.shape)


@dataclass(frozen=True, eq=False)
class Line(Path):
    """Points on the straight line from an origin to the prompt: integrated gradients (Sundararajan et al. 2017; Eqs. 9, 10).

    Rows are averaged over ``steps`` midpoints ``α = (i - ½)/steps`` of ``x(α) = x0 + α (x - x0)``. With ``reduction="dot"`` the
    signed contributions then add up to the change of the explained quantity between origin and prompt, up to the discretisation
    error. ``options["resolved"]["completeness"]`` has both numbers (for scopes with one cotangent whose quantity is known), and the
    result has a warning if they differ by more than 5 %.
    In models with RMSNorm the gradient varies strongly near the zero origin, and hundreds of steps may be too few.

    Args:
        steps: the number of steps; each takes a forward and a backward pass. The paper uses 100.
        alphas: points to use instead of the midpoints; a single point gives the integrand there (Fig. 15).

    Raises:
        InputError: there are no steps, an alpha is not a number, or the origin is unknown.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> prompt = "tom grew up in the south and goes to columbia . at school he is a"
        >>> path = js.Line(steps=100, origin="bos")
        >>> result = js.attribute(model, prompt, "semantic", target=" liberal", path=path, reduction="dot")
        >>> whole = result.options["resolved"]["completeness"]
        >>> abs(whole["sum"] - whole["change"]) < 0.05 * abs(whole["change"])
        True
    """

    steps: int = 50
    alphas: Sequence[float] | Float[Tensor, "alpha"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "steps", count("steps", self.steps, 1))
        if self.alphas is not None:
            object.__setattr__(self, "alphas", _numbers(self.alphas))

    def describe(self) -> dict[str, Any]:
        """The number of steps, or the alphas."""
        unused = "steps" if self.alphas is not None else "alphas"
        return {name: value for name, value in super().describe().items() if name != unused}

    def n_points(self) -> int:
        """One point for each step."""
        return len(self._alphas())

    def points(self, x: Float[Tensor, "pos d_in"], x0: Float[Tensor, "*pos d_in"], which: range) -> Points:
        """``x0 + α (x - x0)``."""
        alphas = torch.tensor([self._alphas()[i] for i in which], device="cpu").to(x)
        return x0 + rearrange(alphas, "n -> n 1 1") * (x - x0)

    def _alphas(self) -> list[float]:
        if self.alphas is not None:
            return list(self.alphas)
        return [(i + 0.5) / self.steps for i in range(self.steps)]


@dataclass(frozen=True, eq=False)
class Noise(Path):
    """Copies of the prompt with noise added to every vector: SmoothGrad (Smilkov et al. 2017).

    Rows are averaged over ``samples`` copies ``x_t + sigma · rms(x_t) · n``, ``n`` standard normal, in pairs ``± n``.

    Args:
        samples: the number of copies; each takes a forward and a backward pass.
        sigma: the size of the noise in units of each vector's root mean square.
        seed: the seed of the noise; the global random generator is not touched.
    """

    samples: int = 16
    sigma: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "samples", count("samples", self.samples, 1))
        object.__setattr__(self, "seed", count("seed", self.seed, 0))
        sigma = _number(self.sigma)
        if sigma is None or sigma < 0:
            raise InputError(
                f"sigma is the size of the noise relative to each vector's, 0 or more; got {self.sigma!r}."
            )
        object.__setattr__(self, "sigma", sigma)

    def n_points(self) -> int:
        """One point for each sample."""
        return self.samples

    def points(self, x: Float[Tensor, "pos d_in"], x0: Float[Tensor, "*pos d_in"], which: range) -> Points:
        """Noisy copies; a sample does not depend on which others are computed with it."""
        size = self.sigma * x.float().square().mean(-1, keepdim=True).sqrt().to(x)
        return torch.stack([x + size * self._noise(i, x) for i in which])

    def _noise(self, i: int, x: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos d_in"]:
        generator = torch.Generator("cpu").manual_seed((2**20 * self.seed + i // 2) % 2**63)
        return (-1) ** i * torch.randn(x.shape, generator=generator, device="cpu").to(x)


PATHS: dict[str, type[Path]] = {"point": Point, "line": Line, "noise": Noise}


def to_path(path: Any) -> Path:
    """The path for None, a name or a `Path`."""
    if path is None:
        return Point()
    if isinstance(path, Path):
        return path
    if isinstance(path, str) and path in PATHS:
        return PATHS[path]()
    near = nearest(path, PATHS) if isinstance(path, str) else ""
    raise InputError(
        f"path must be js.Point(), js.Line(), js.Noise(), or one of their names in lower case; got {path!r}.{near}"
    )


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        number = float(value) if not isinstance(value, bool | str) else float("nan")
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) else None


def _numbers(alphas: Any) -> tuple[float, ...]:
    single = isinstance(alphas, str) or getattr(alphas, "ndim", 1) == 0
    given = [_number(alpha) for alpha in alphas] if isinstance(alphas, Iterable) and not single else []
    numbers = tuple(number for number in given if number is not None)
    if not numbers or len(numbers) < len(given):
        raise InputError(f"alphas must be one or more numbers, 0 at the origin and 1 at the prompt; got {alphas!r}.")
    return numbers
