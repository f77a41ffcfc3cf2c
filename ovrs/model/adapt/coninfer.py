"""ConInfer: the patches of many windows are classified together, by what their text says and by what they look like.

Source: arXiv 2603.29271 (CVPR 2026 Findings), constants of Dog-Yang/ConInfer@ebaddcc. Equations, for patch i of N and query
k of K, with unit features f and cosines u:

    y_ik = softmax_k(s · u_ik)                                     what the text says (prior)
    l_ik = -1/2 Σ_d (f_id - μ_kd)² / σ_d                           one Gaussian per query, one diagonal for all
    z_ik = y_ik exp(l_ik / τ) / Σ_j y_ij exp(l_ij / τ)             joined: the least KL(z || y) - Σ z l / τ
    μ_k  = n_k / |n_k|, n_k = Σ_i z_ik f_i / Σ_i z_ik
    σ_d  = Σ_ik z_ik (f_id - μ_kd)² / N

The means start from the eight patches that each query is surest of, σ from 1 / D. The paper takes f from DINOv3 and u from
CLIP; here both come from the one network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1e-8
"""Of a variance: a dimension in which all patches agree."""


class Mixture(NamedTuple):
    """One Gaussian per query."""

    means: Tensor
    """μ `(K, D)`, unit vectors."""
    variances: Tensor
    """σ `(D,)`, of all Gaussians."""


def first_mixture(patches: Tensor, log_prior: Tensor, confident: int) -> Mixture:
    """Means of the patches that each query is surest of, weighted by the prior.

    Args:
        patches: `(N, D)`, unit vectors.
        log_prior: log y `(N, K)`.
        confident: Patches per query.
    """
    best, rows = log_prior.topk(min(confident, len(log_prior)), dim=0)
    weights = (best - best[:1]).exp()  # y up to a factor of each query, which no direction depends on
    means = torch.einsum("nk,nkd->kd", weights, patches[rows])
    return Mixture(F.normalize(means, dim=-1), patches.new_full((patches.shape[1],), 1 / patches.shape[1]))


def log_likelihood(patches: Tensor, mixture: Mixture) -> Tensor:
    """Return l `(…, K)` of patches `(…, D)`, without the terms that all Gaussians share."""
    means, precision = mixture.means, 1 / mixture.variances.clamp(min=_LEAST)
    square = patches.square() @ precision
    return -0.5 * (square[..., None] - 2 * patches @ (means * precision).T + means.square() @ precision)


def joined(log_prior: Tensor, likelihood: Tensor, tau: float) -> Tensor:
    """Return z `(…, K)` from log y and l."""
    return (log_prior + likelihood / tau).softmax(dim=-1)


def refitted(patches: Tensor, z: Tensor, mixture: Mixture) -> Mixture:
    """Means and variances of the patches `(N, D)` as z `(N, K)` shares them; a query without a share keeps its mean."""
    shares = z.sum(dim=0)
    sums = z.T @ patches
    means = torch.where(shares[:, None] > 0, F.normalize(sums, dim=-1), mixture.means)
    spread = patches.square().sum(dim=0) - 2 * (means * sums).sum(dim=0) + shares @ means.square()
    return Mixture(means, (spread / len(patches)).clamp(min=_LEAST))


def fit(patches: Tensor, log_prior: Tensor, *, tau: float, rounds: int, confident: int) -> tuple[Mixture, Tensor]:
    """Mixture and z of patches that are classified together.

    Args:
        patches: `(N, D)`, unit vectors; N at least 1.
        log_prior: log y `(N, K)`.
        tau: Temperature τ of the likelihood.
        rounds: How often the mixture is refitted.
        confident: Patches per query that the means start from.

    Returns:
        The last mixture, and z `(N, K)` under it.
    """
    mixture = first_mixture(patches, log_prior, confident)
    z = joined(log_prior, log_likelihood(patches, mixture), tau)
    for _ in range(rounds):
        mixture = refitted(patches, z, mixture)
        z = joined(log_prior, log_likelihood(patches, mixture), tau)
    return mixture, z
