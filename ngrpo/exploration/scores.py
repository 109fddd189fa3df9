"""From logits to a distribution over tokens and a sample of it: temperature, filters, candidates, inverse CDF."""

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 128  # tokens
LARGE = 4096  # tokens; for larger vocabularies blocks are faster


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits over the temperature, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1 else logits / temperature


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """(..., V) bool: the smallest set of tokens, likeliest first and ties by lowest id, whose probability reaches top_p.

    Source: Holtzman et al., 2020 (arXiv 1904.09751). It always has the likeliest token.
    """
    ordered, order = scores.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before < top_p)


def candidates(scores: Tensor, count: int) -> Tensor:
    """(..., count) ids of the largest scores (..., V), largest first, ties by lowest id.

    topk does not specify which of several equal scores it takes, so those equal to the last one are chosen again.
    """
    values, ids = scores.topk(min(count + 1, scores.shape[-1]), dim=-1)
    ties = values[..., count - 1] == values[..., -1]
    values, ids = values[..., :count], ids[..., :count]
    if scores.device.type != "cpu" or ties.any():  # elsewhere, asking would wait for the device
        ids = _lowest(scores, values, ids)
    ids = ids.sort(dim=-1).values
    order = scores.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices
    return ids.gather(-1, order)


def _lowest(scores: Tensor, values: Tensor, ids: Tensor) -> Tensor:
    """The ids (..., count) of the largest scores, where those of scores equal to the last are the lowest such ids."""
    count = values.shape[-1]
    places = torch.arange(scores.shape[-1], dtype=torch.int32, device=scores.device)
    equal = torch.where(scores == values[..., -1:], -places, -scores.shape[-1]).topk(count, dim=-1).indices
    above = (values > values[..., -1:]).sum(dim=-1, keepdim=True)
    slots = torch.arange(count, device=scores.device)
    return torch.where(slots < above, ids, equal.gather(-1, (slots - above).clamp(min=0)))


def largest(scores: Tensor, count: int) -> Tensor:
    """(..., V) bool: the `count` largest scores, ties by lowest id. Source: top-k, Fan et al., 2018 (arXiv 1805.04833)."""
    ids = candidates(scores, min(count, scores.shape[-1]))
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, ids, True)


def near_best(scores: Tensor, min_p: float) -> Tensor:
    """(..., V) bool: p >= min_p * max p. Source: min-p, Nguyen et al., 2024 (arXiv 2407.01082)."""
    p = scores.softmax(dim=-1)
    return p >= min_p * p.amax(dim=-1, keepdim=True)


def filtered(
    scores: Tensor, top_p: float, keep: Tensor | None = None, top_k: int | None = None, min_p: float = 0.0
) -> Tensor:
    """Scores (..., V) with -inf where a filter cuts; `keep` (...,) are tokens that are never cut.

    The order is that of transformers: top-k, then top-p and min-p, each over what the filter before it left, renormalized.
    The likeliest token always stays.
    """
    if top_k is None and top_p >= 1 and min_p <= 0:
        return scores
    left = scores.detach()
    if top_k is not None:
        left = left.masked_fill(~largest(left, top_k), -torch.inf)
    if top_p < 1:
        left = left.masked_fill(~nucleus(left, top_p), -torch.inf)
    if min_p > 0:
        left = left.masked_fill(~near_best(left, min_p), -torch.inf)
    inside = left != -torch.inf
    if keep is not None:
        inside = inside.scatter(-1, keep[..., None], True)
    return scores.masked_fill(~inside, -torch.inf)


def draw_token(scores: Tensor, uniform: Tensor) -> Tensor:
    """(B,) tokens by the inverse CDF of softmax(scores) in token-id order, accumulated in float64.

    A large vocabulary is summed in blocks, and token by token only in the block of the target.
    """
    p, target = scores.softmax(dim=-1), uniform.double()[:, None]
    if p.shape[-1] <= LARGE:
        cdf = p.cumsum(dim=-1, dtype=torch.float64)
        return _inverse(cdf, target * cdf[:, -1:]).squeeze(-1)
    if p.shape[-1] % BLOCK:
        p = F.pad(p, (0, -p.shape[-1] % BLOCK))
    p = p.unflatten(-1, (-1, BLOCK))
    ends = p.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = target * ends[:, -1:]
    block = _inverse(ends, target)
    before = F.pad(ends, (1, 0)).gather(-1, block)
    within = p.take_along_dim(block[..., None], dim=1).squeeze(1).cumsum(dim=-1, dtype=torch.float64)
    return (block * BLOCK + _inverse(before + within, target)).squeeze(-1)


def _inverse(cdf: Tensor, target: Tensor) -> Tensor:
    """(B, 1) the first places where cdf (B, N) exceeds target (B, 1), never ones of probability 0."""
    place = torch.searchsorted(cdf, target, right=True)
    last = torch.searchsorted(
        cdf, cdf[:, -1:].contiguous()
    )  # beyond it, probabilities are 0; rounding must not get there
    return torch.minimum(place, last).clamp(max=cdf.shape[-1] - 1)  # NaN sorts past the end


def token_log_prob(scores: Tensor, tokens: Tensor) -> Tensor:
    """(...,) log softmax(scores) at `tokens`."""
    return scores.log_softmax(dim=-1).gather(-1, tokens[..., None]).squeeze(-1)


def entropy(scores: Tensor) -> Tensor:
    """(...,) nats of softmax(scores (..., V))."""
    log_p = scores.log_softmax(dim=-1)
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(dim=-1)  # 0 x -inf is 0


def gumbel(uniforms: Tensor) -> Tensor:
    """Standard Gumbel noise from uniforms in [0, 1), finite for each of them."""
    return -torch.log(-torch.log(uniforms.clamp(min=2.0**-54)))
