"""The paper's formulas, naively: dense Jacobians of the HuggingFace model in float64, without TransformerLens or hooks.

HuggingFace's norms and softmax compute in float32 even in a float64 model, so these numbers are good to about 1e-6.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

V4 = transformers.__version__.startswith("4.")


@dataclass(frozen=True)
class Oracle:
    """``J [d_model, pos, d_model]``, ``y``, logits ``z`` and ``D = dz/dy`` of one prediction."""

    J: Tensor
    x: Tensor
    y: Tensor
    z: Tensor
    D: Tensor

    @property
    def p(self) -> Tensor:
        return self.z.softmax(-1)


def trunk(hf: Any, tokens: Tensor, position: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The function from input embeddings ``[pos, d]`` to ``y [d_model]``, and the embeddings of the prompt."""
    # Gemma multiplies embeddings by sqrt(d_model): transformers 4 inside the model, 5 in the embedding already. What
    # TransformerLens shows at hook_embed is the product.
    inside = hf.config.hidden_size**0.5 if hf.config.model_type == "gemma2" and V4 else 1.0
    embeds = inside * hf.get_input_embeddings()(tokens).detach()

    def f(x: Tensor) -> Tensor:
        return hf.base_model(inputs_embeds=x.unsqueeze(0) / inside, use_cache=False).last_hidden_state[0, position]

    return f, embeds


def logits_of(hf: Any, y: Tensor) -> Tensor:
    """Unembedding, bias and soft-cap, from the configuration."""
    z = hf.get_output_embeddings()(y)
    cap = getattr(hf.config, "final_logit_softcapping", None)
    return cap * torch.tanh(z / cap) if cap else z


def dense(hf: Any, tokens: Tensor, position: int = -1) -> Oracle:
    """Everything by brute force."""
    hf = copy.deepcopy(hf).double()
    f, x = trunk(hf, tokens, position)
    J = torch.autograd.functional.jacobian(f, x)
    y = f(x).detach()
    D = torch.autograd.functional.jacobian(lambda v: logits_of(hf, v), y)
    return Oracle(J, x, y, logits_of(hf, y).detach(), D)


def norm_score(J: Tensor, v: Tensor) -> Tensor:
    """Eq. 1: the norm of ``v^T J_t`` for every t."""
    return torch.stack([(v @ J[:, t]).norm() for t in range(J.shape[1])])


def semantic(o: Oracle, target: int) -> Tensor:
    return norm_score(o.J, o.D[target])


def log_prob(o: Oracle, target: int) -> Tensor:
    return norm_score(o.J, o.D[target] - o.p @ o.D)


def contrastive(o: Oracle, target: int, baseline: int) -> Tensor:
    return norm_score(o.J, o.D[target] - o.D[baseline])


def alternatives(o: Oracle, target: int, n: int) -> Tensor:
    """Against the mean of the ``n`` most probable others."""
    others = [i for i in o.z.argsort(descending=True).tolist() if i != target][:n]
    return norm_score(o.J, o.D[target] - sum(o.D[i] for i in others) / n)


def temperature(o: Oracle) -> Tensor:
    return norm_score(o.J, o.y / o.y.norm())


def logit_temperature(o: Oracle) -> Tensor:
    centred = o.z - o.z.mean()
    return norm_score(o.J, (centred / centred.norm()) @ (o.D - o.D.mean(0)))


def entropy(o: Oracle) -> Tensor:
    H = -(o.p * o.p.log()).sum()
    return norm_score(o.J, -(o.p * (o.p.log() + H)) @ o.D)


def fisher_matrix(o: Oracle) -> Tensor:
    """``F_u = D^T (diag p - p p^T) D``, as printed."""
    return o.D.T @ (torch.diag(o.p) - torch.outer(o.p, o.p)) @ o.D


def fisher(o: Oracle) -> Tensor:
    """Eqs. 4 and 6: ``tr(J_t^T F_u J_t)``."""
    F = fisher_matrix(o)
    return torch.stack([torch.trace(o.J[:, t].T @ F @ o.J[:, t]) for t in range(o.J.shape[1])])


def fisher_low_rank(o: Oracle, k: int) -> Tensor:
    """``Σ_{i≤k} λ_i ‖u_i^T J_t‖²``."""
    eigenvalues, U = torch.linalg.eigh(fisher_matrix(o))
    terms = [eigenvalues[-i] * norm_score(o.J, U[:, -i]) ** 2 for i in range(1, k + 1)]
    return torch.stack(terms).sum(0)


def fisher_input(o: Oracle, x0: Tensor | None = None) -> Tensor:
    """``½ δ^T J_t^T F_u J_t δ`` with ``δ = x_t - x0_t``."""
    F, delta = fisher_matrix(o), o.x if x0 is None else o.x - x0
    return torch.stack([0.5 * (o.J[:, t] @ delta[t]) @ F @ (o.J[:, t] @ delta[t]) for t in range(o.J.shape[1])])


def random_direction(o: Oracle, seed: int) -> Tensor:
    v = torch.randn(1, len(o.y), generator=torch.Generator().manual_seed(seed))[0].double()
    return norm_score(o.J, v / v.norm())


def pulled_back(o: Oracle, of: str = "jacobian") -> Tensor:
    """``J_t^T J_t``, or ``J_t^T F_u J_t``: ``[pos, d, d]``."""
    G = torch.eye(len(o.y)).double() if of == "jacobian" else fisher_matrix(o)
    return torch.einsum("api,ab,bpj->pij", o.J, G, o.J)


def spectral(o: Oracle, of: str = "jacobian") -> Tensor:
    """Root of the largest eigenvalue."""
    return torch.linalg.eigvalsh(pulled_back(o, of))[:, -1].sqrt()


SCOPES: dict[str, tuple[dict[str, Any], Callable[[Oracle], Tensor]]] = {
    "semantic": ({"target": 44}, lambda o: semantic(o, 44)),
    "log_prob": ({"target": 44}, lambda o: log_prob(o, 44)),
    "contrastive": ({"target": 44, "baseline": 3}, lambda o: contrastive(o, 44, 3)),
    "alternatives": ({"target": 44, "n": 3}, lambda o: alternatives(o, 44, 3)),
    "temperature": ({}, temperature),
    "logit_temperature": ({}, logit_temperature),
    "entropy": ({}, entropy),
    "fisher": ({"method": "exact"}, fisher),
    "fisher_input": ({"method": "exact"}, fisher_input),
    "random_direction": ({"seed": 3}, lambda o: random_direction(o, 3)),
    "spectral": ({}, spectral),
}
"""Every registered scope: options that make it deterministic, and its naive restatement."""


def relative_difference(scores: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest score."""
    return float((scores.double() - expected.double()).abs().max() / expected.abs().max())
