"""Bonuses for answers whose representation in a frozen model is unlike those of their group: pure functions."""

from math import sqrt

import torch
from torch import Tensor

from ngrpo.algorithm.inputs import Groups
from ngrpo.rollout.keys import Draws


def elliptical(
    groups: Groups,
    features: Tensor,
    key: int,
    *,
    beta: float = 0.01,
    dimensions: int = 32,
    ridge: float = 0.01,
    kind: str = "leverage",
    all_correct: bool = True,
) -> Tensor:
    """(P, G) float64 to add to rewards: beta b_i, with b_i = z_i' S^-1 z_i and S = ridge I + sum_j z_j z_j' of the group.

    z (P, G, dimensions) are the features (P, G, D) after a sparse random projection, minus the mean of their group; `key`
    chooses the projection. kind "leverage" is b_i, in [0, 1); "leave_one_out" leaves z_i out of S: b_i / (1 - b_i). Groups
    without a right answer get no bonus, nor, unless `all_correct`, do all-right groups: there only the bonus differs, so
    that dividing by the deviation cancels beta.

    Source: RepExp, arXiv 2510.11686, as released (verl-project/verl-recipe, rep_exp): its training script has the values
    above, its YAML leave_one_out, beta 1 and 512 dimensions. The paper's text on ridge and beta was not read. Its covariance
    across steps and its normalizations of b are off there and not implemented here.
    """
    projected = features.double() @ sparse_projection(features.shape[-1], dimensions, key, features.device)
    bonus = leverage(projected - projected.mean(dim=1, keepdim=True), ridge)
    if kind == "leave_one_out":
        bonus = bonus / (1 - bonus)
    right = groups.correct.any(dim=1) & (all_correct | ~groups.correct.all(dim=1))
    return beta * bonus * right[:, None]


def leverage(points: Tensor, ridge: float) -> Tensor:
    """(P, G) z_i' (ridge I + sum_j z_j z_j')^-1 z_i of points z (P, G, d) float64.

    It is the diagonal of K (ridge I + K)^-1 with K = z z' (G, G) of the group, which is smaller than (d, d).
    """
    products = points @ points.mT
    diagonal = ridge * torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    return torch.linalg.solve(products + diagonal, products).diagonal(dim1=1, dim2=2)


def sparse_projection(width: int, dimensions: int, key: int, device: torch.device | str = "cpu") -> Tensor:
    """(width, dimensions) float64: +-1 / sqrt(share dimensions), each sign with probability share / 2, share = 1 / sqrt(width).

    Source: Li, Hastie and Church, 2006, "Very sparse random projections"; scikit-learn's SparseRandomProjection.
    """
    share = 1 / sqrt(width)
    uniform = Draws(torch.tensor(key, device=device), torch.arange(width, device=device)).uniforms(dimensions)
    signs = (uniform < share / 2).double() - (uniform >= 1 - share / 2).double()
    return signs / sqrt(share * dimensions)
