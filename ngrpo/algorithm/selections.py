"""Which tokens of a batch a loss treats differently: pure functions of `Tokens`, one per published rule.

They look at the whole batch of a process, never at a micro-batch.
"""

import torch
from torch import Tensor

from ngrpo.algorithm.inputs import Tokens


def high_entropy(tokens: Tokens, *, share: float = 0.2) -> Tensor:
    """(B, T) bool: the `share` of the batch's tokens with the highest entropy, ties at the threshold included.

    Source: "Beyond the 80/20 Rule", arXiv 2506.01939.
    """
    values = tokens.entropy[tokens.mask]
    if not len(values):
        return tokens.mask
    count = min(len(values), max(1, round(share * len(values))))
    threshold = values.sort(descending=True).values[count - 1]
    return tokens.mask & (tokens.entropy >= threshold)


def high_entropy_of_row(tokens: Tokens, *, quantile: float = 0.8) -> Tensor:
    """(B, T) bool: tokens whose entropy exceeds that quantile of their own answer. Source: SimKO, arXiv 2510.14807."""
    values = tokens.entropy.double().masked_fill(~tokens.mask, torch.nan)
    threshold = torch.nanquantile(values, quantile, dim=1, keepdim=True).nan_to_num(torch.inf)
    return tokens.mask & (tokens.entropy.double() > threshold)


def covariance(tokens: Tokens) -> Tensor:
    """(B, T) float64: (A - mean A)(log pi - mean log pi), means over the tokens that count; 0 elsewhere.

    Source: "The Entropy Mechanism", arXiv 2505.22617.
    """
    centred = []
    for values in (tokens.advantages, tokens.log_probs):
        mean = values.double().where(tokens.mask, 0).sum() / tokens.mask.sum().clamp(min=1)
        centred.append(values.double() - mean)
    return (centred[0] * centred[1]).where(tokens.mask, 0)


def covariance_band(tokens: Tokens, *, share: float = 2e-4, low: float = 1.0, high: float = 5.0) -> Tensor:
    """(B, T) bool: of the tokens with a covariance between low and high a random `share` of all, at least one.

    Source: Clip-Cov, arXiv 2505.22617. Chosen by the tokens' own uniforms, so a rerun chooses the same.
    """
    value = covariance(tokens)
    return _highest(tokens.uniform, tokens.mask & (value > low) & (value < high), share, tokens.mask)


def covariance_top(tokens: Tokens, *, share: float = 2e-4) -> Tensor:
    """(B, T) bool: the `share` of tokens with the highest covariance, at least one. Source: KL-Cov, arXiv 2505.22617."""
    return _highest(covariance(tokens), tokens.mask, share, tokens.mask)


def _highest(values: Tensor, among: Tensor, share: float, mask: Tensor) -> Tensor:
    """The highest max(1, floor(share * tokens that count)) of `values`, of those marked in `among`."""
    count = min(max(1, int(share * int(mask.sum()))), int(among.sum()))
    order = values.double().masked_fill(~among, -torch.inf).flatten().sort(descending=True, stable=True).indices
    chosen = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    chosen[order[:count]] = True
    return chosen.view(values.shape)
