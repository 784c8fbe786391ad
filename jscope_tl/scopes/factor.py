"""Factors ``S [n, d_model]`` of a matrix ``S^T S``, used through matrix products: a factor with a row per token is never built."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.model.turns import cached_property

VOCAB_BLOCK = 2048
"""Number of tokens multiplied at once: longer sums lose digits in float32, and half precision is converted block by block."""
LIKELIEST = 2048
"""Number of likely tokens whose rows give a first guess of the leading directions: most of the probability in language models."""
SPARE = 3
"""Additional directions for faster convergence; also, products of four or more rows are precise, those of one row are not."""
CONVERGED = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Accepted residual of an eigenvector relative to the largest eigenvalue, for each precision of products."""
ROUNDS = 12
"""Maximum number of rounds before the matrix is built instead."""


class Factor(ABC):
    """A matrix ``S [n, d_model]`` that is defined by its products; subclasses implement them."""

    n: int
    d_model: int

    @abstractmethod
    def left(self, V: Float[Tensor, "m d_model"]) -> Float[Tensor, "m n"]:
        """``V S^T``."""

    @abstractmethod
    def right(self, U: Float[Tensor, "m n"]) -> Float[Tensor, "m d_model"]:
        """``U S``."""

    @abstractmethod
    def gram(self) -> Float[Tensor, "d_model d_model"]:
        """``S^T S``."""

    @abstractmethod
    def likely(self) -> Float[Tensor, "some d_model"]:
        """Rows that hold most of ``S``."""

    @property
    def n_directions(self) -> int:
        """Upper bound of the number of singular values that are not 0."""
        return min(self.n, self.d_model)

    def principal(self) -> Float[Tensor, "rank d_model"]:
        """``λ_i^{1/2} u_i^T`` for all eigenvectors of ``S^T S``, see `principal_rows`."""
        return principal_rows(self.gram())

    def leading(self, rank: int) -> Float[Tensor, "rank d_model"]:
        """``λ_i^{1/2} u_i^T`` for the leading eigenvectors of ``S^T S``, see `leading_rows`."""
        return leading_rows(self, rank)

    def leading_directions(self, rank: int) -> Float[Tensor, "rank n"]:
        """Orthonormal combinations of the rows that contain most of ``S``, see `leading_directions`."""
        return leading_directions(self, rank)


@dataclass(frozen=True)
class Matrix(Factor):
    """A factor that is given as a matrix in memory."""

    S: Float[Tensor, "n d_model"]

    @property
    def n(self) -> int:  # type: ignore[override]
        """Rows."""
        return self.S.shape[0]

    @property
    def d_model(self) -> int:  # type: ignore[override]
        """The number of columns."""
        return self.S.shape[1]

    def left(self, V: Float[Tensor, "m d_model"]) -> Float[Tensor, "m n"]:
        """``V S^T``."""
        return V.to(self.S) @ self.S.T

    def right(self, U: Float[Tensor, "m n"]) -> Float[Tensor, "m d_model"]:
        """``U S``."""
        return U.to(self.S) @ self.S

    def gram(self) -> Float[Tensor, "d_model d_model"]:
        """``S^T S``."""
        return self.S.T @ self.S

    def likely(self) -> Float[Tensor, "some d_model"]:
        """All rows."""
        return self.S


@dataclass(frozen=True)
class FisherFactor(Factor):
    """``S`` with ``S^T S = F_u / size²`` and ``F_u = D^T (diag p - p p^T) D``: row ``v`` is ``p_v^{1/2} (d_v - μ)``, ``μ = Σ_v p_v d_v``.

    ``d_v``, a row of ``D = ∂z/∂y``, is a token's unembedding times the derivative of soft-cap and logit scale (``slope``).
    ``F_u`` is tiny for very certain predictions, and its squares would underflow in float32; hence the division by
    ``size² = Σ_v p_v (1 - p_v)``.

    The mean is subtracted from the products, in float64, and not from ``W_U``: the multiplied coefficients sum to zero over the
    tokens, so that nothing cancels, even for peaked ``p``.

    Args:
        W_U: the unembedding; it is not copied.
        slope: the derivative of each logit with respect to its value before soft-cap and scale.
        p: the next-token distribution, in float64.
        dtype: the precision of products: float32, or float64 for float64 models.
    """

    W_U: Float[Tensor, "d_model d_vocab"]
    slope: Float[Tensor, "d_vocab"]
    p: Float[Tensor, "d_vocab"]
    dtype: torch.dtype = torch.float32

    @property
    def n(self) -> int:  # type: ignore[override]
        """The number of tokens of the vocabulary."""
        return len(self.p)

    @property
    def d_model(self) -> int:  # type: ignore[override]
        """The dimension of ``y``."""
        return self.W_U.shape[0]

    @cached_property
    def _top(self) -> Int[Tensor, ""]:
        return self.p.argmax()

    @cached_property
    def size(self) -> float:
        """``(Σ_v p_v (1 - p_v))^{1/2}``; 1 if the prediction is certain and this would be 0."""
        others = self.p.index_fill(0, self._top, 0)
        return float((self.p[self._top] * others.sum() + others @ (1 - others)).sqrt()) or 1.0

    @cached_property
    def _weights(self) -> Float[Tensor, "d_vocab"]:
        return self.p.sqrt() / self.size

    def left(self, V: Float[Tensor, "m d_model"]) -> Float[Tensor, "m n"]:
        """``V S^T``, in the precision of ``p``."""
        # For a few rows this order is twice as fast if W_U is stored by token, as in HuggingFace models.
        logits = torch.cat([W.T @ V.T.to(W) for W in self._blocks()]).T.to(self.p).mul_(self.slope)
        logits -= logits[:, self._top].clone().unsqueeze(1)
        return logits.sub_((logits @ self.p).unsqueeze(1)).mul_(self._weights)

    def right(self, U: Float[Tensor, "m n"]) -> Float[Tensor, "m d_model"]:
        """``U S``."""
        U = U.to(self.p) * self._weights
        return self._unembedded(self._summing_to_zero(U - U.sum(1, keepdim=True) * self.p) * self.slope)

    def logits(
        self, rows: Float[Tensor, "k d_model"], directions: Float[Tensor, "k d_model"]
    ) -> Float[Tensor, "k d_vocab"]:
        """The change of the logits per unit of movement of each of some orthogonal rows ``λ^{1/2} u^T``: ``λ^{-1/2} D u``."""
        sizes = (rows * directions).sum(1, keepdim=True)
        along = torch.where(sizes > 0, directions / sizes, torch.zeros_like(directions))
        return torch.cat([along @ W for W in self._blocks()], 1) * self.slope.to(along)

    def gram(self) -> Float[Tensor, "d_model d_model"]:
        """``S^T S`` from centred rows, `VOCAB_BLOCK` tokens at a time."""
        mean = self._unembedded(self._summing_to_zero(self.p.clone().unsqueeze(0)) * self.slope)[0]
        blocks = torch.arange(self.n, device=self.p.device).split(VOCAB_BLOCK)
        rows = (self._rows(block, self._from_top(block) - mean) for block in blocks)
        return sum((S.T @ S for S in rows), mean.new_zeros(()))

    def likely(self) -> Float[Tensor, "some d_model"]:
        """The rows of the most probable tokens, minus their own mean."""
        p, tokens = self.p.topk(min(LIKELIEST, self.n))
        D = self._from_top(tokens)
        return self._rows(tokens, D - (p / p.sum()).to(D) @ D)

    def _from_top(self, tokens: Int[Tensor, "some"]) -> Float[Tensor, "some d_model"]:
        """Rows of ``D`` minus that of the most probable token, which is close to the mean for peaked ``p``."""
        slope = rearrange(self.slope.to(self.dtype), "d_vocab -> d_vocab 1")
        W, top = self.W_U.T, self._top
        return (W[tokens].to(self.dtype) * slope[tokens]).sub_(W[top].to(self.dtype) * slope[top])

    def _rows(
        self, tokens: Int[Tensor, "some"], centred: Float[Tensor, "some d_model"]
    ) -> Float[Tensor, "some d_model"]:
        weights = self._weights[tokens].clamp_max(
            torch.finfo(self.dtype).max
        )  # of the top token, whose row is nearly 0
        return centred.mul_(rearrange(weights.to(self.dtype), "some -> some 1"))

    def _summing_to_zero(self, U: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """Set the most probable token's entries to minus the sum of the others, which is exact for peaked ``p``."""
        U[:, self._top] = 0
        U[:, self._top] = -U.sum(1)
        return U

    def _unembedded(self, U: Float[Tensor, "m n"]) -> Float[Tensor, "m d_model"]:
        """``U W_U^T``: each block in ``dtype``, their sum in the precision of ``p``."""
        parts = zip(U.split(VOCAB_BLOCK, 1), self._blocks(), strict=True)
        return sum(((u.to(W) @ W.T).to(self.p) for u, W in parts), self.p.new_zeros(())).to(self.dtype)

    def _blocks(self) -> Iterator[Float[Tensor, "d_model some"]]:
        for W in self.W_U.split(VOCAB_BLOCK, 1):
            yield W.to(self.dtype)


def leading_rows(S: Factor, rank: int) -> Float[Tensor, "rank d_model"]:
    """``λ_i^{1/2} u_i^T`` for the leading eigenvectors of ``S^T S``, in order of decreasing ``λ_i``, to the precision `CONVERGED`.

    Block Lanczos, started at the leading directions of the likely rows; each round multiplies with ``S`` and with its transpose. For
    many directions, or without convergence, ``S^T S`` is built and decomposed instead.
    """
    if 8 * rank > S.n_directions:
        return principal_rows(S.gram())[:rank]
    basis = leading_of(S.likely(), rank + SPARE)
    images = S.right(S.left(basis))
    for _ in range(ROUNDS):
        values, mixed = (found.flip(-1)[..., : rank + SPARE] for found in torch.linalg.eigh(basis @ images.T))
        rest = mixed.T @ images - rearrange(values, "m -> m 1") * (mixed.T @ basis)
        if float(rest[:rank].norm(dim=1).max()) <= CONVERGED[basis.dtype] * float(values[0]):
            return rearrange(values[:rank].clamp_min(0).sqrt(), "m -> m 1") * (mixed.T @ basis)[:rank]
        new = orthonormal(without(orthonormal(without(rest, basis)), basis))
        basis, images = torch.cat([basis, new]), torch.cat([images, S.right(S.left(new))])
    return principal_rows(S.gram())[:rank]


def leading_directions(S: Factor, rank: int) -> Float[Tensor, "rank n"]:
    """Orthonormal combinations of the rows of ``S`` that contain most of it, estimated from the likely rows."""
    along, mixed = torch.linalg.qr(S.left(leading_of(S.likely(), rank + 2 * SPARE)).T)
    return (along @ torch.linalg.svd(mixed).U)[:, :rank].T


def leading_of(S: Float[Tensor, "n d_model"], rank: int, rounds: int = 5) -> Float[Tensor, "rank d_model"]:
    """Orthonormal directions that contain most of a matrix, approximately, by subspace iteration."""
    start = torch.randn(
        min(rank, *S.shape), S.shape[1], generator=torch.Generator("cpu").manual_seed(2**40), device="cpu"
    )
    V = start.to(S)
    for _ in range(rounds):
        V = orthonormal(V @ S.T @ S)
    return V


def principal_rows(F: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "rank d_model"]:
    """``R`` with ``R^T R = F``: rows ``λ_i^{1/2} u_i^T`` in order of decreasing ``λ_i``, without those of ``λ_i = 0``."""
    eigenvalues, eigenvectors = torch.linalg.eigh(F)
    # Not the usual d * eps: F_u's spectrum has a long tail, and J may be large along it.
    kept = eigenvalues > eigenvalues[-1].clamp_min(0) * torch.finfo(F.dtype).eps
    if not kept.any():  # p is certain of one token: F is 0
        return torch.zeros_like(F[:1])
    return (eigenvectors[:, kept] * eigenvalues[kept].sqrt()).T.flip(0)


def orthonormal(vectors: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Orthonormal rows that span the same space, for ``m <= n``."""
    return torch.linalg.qr(vectors.T).Q.T


def without(vectors: Float[Tensor, "m n"], known: Float[Tensor, "known n"]) -> Float[Tensor, "m n"]:
    """The part of each row that is orthogonal to the known rows, which are orthonormal."""
    return vectors - (vectors @ known.T) @ known
