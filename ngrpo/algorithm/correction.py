"""Weights for the loss of rollouts whose engine is not quite the policy that is trained: another precision, other kernels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ngrpo.algorithm.losses import LOG_RATIO_LIMIT

LARGE_GAP = 0.01  # nats a token: an engine in bfloat16 under a policy in float32 is 0.002 to 0.003 off (bundled model)


DIVERGENCES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "k2": lambda d: d.square() / 2,
    "k3": lambda d: d.exp() - 1 - d,
}


@dataclass(frozen=True)
class Correction:
    """How the loss treats tokens whose log-probability by the engine is not that of the policy, which was d higher.

    kind       none
               tis            the loss of a token is weighed by min(w, cap), w = exp(d): truncated importance sampling
                              (Ionides, 2008; for rollout engines Yao et al., 2025)
               mis            by w where floor <= w <= cap, else 0; what is masked still counts in the aggregation's
                              denominator (TRL's masks; with 0.5 and 5 IcePop)
               rejection      by 1; what is outside of the bounds leaves the mask, and so the denominator
               rejection_tis  the same, and what stays is weighed by min(w, cap) (verl's sequence MIS)
               bypass         by 1; the ratio of the loss is to the engine's log-probabilities instead
    level      token; or one w per answer, of its tokens that count: exp(sum of d) (sequence), exp(mean of d) (mean)
    measure    ratio: w must be within the bounds. k2, k3: rejection only; d^2/2 or w - 1 - d must be at most the cap, of a
               token, or its sum, mean or largest value (max) over the answer
    normalize  weights are divided by their mean over the batch: of tokens, or of answers where those have one weight

    d is bounded by 20 either way. Raises ValueError for what does not go together.
    """

    kind: str = "none"
    level: str = "token"
    cap: float = 2.0
    floor: float = 0.0
    measure: str = "ratio"
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.measure != "ratio" and self.kind != "rejection":
            raise ValueError(
                f"algorithm.correction_measure={self.measure}: is for rejection alone; algorithm.correction=rejection"
            )
        if self.level == "max" and self.measure == "ratio":
            raise ValueError(
                "algorithm.correction_level=max: is for the measures k2 and k3; algorithm.correction_level=token"
            )
        if self.floor > self.cap:
            raise ValueError(
                f"algorithm.correction_floor={self.floor:g}: must be at most the cap; algorithm.correction_floor=0"
            )
        if self.normalize and self.kind in ("none", "bypass", "rejection"):
            raise ValueError(
                f"algorithm.correction_normalize=true: {self.kind} has no weights; algorithm.correction_normalize=false"
            )

    @property
    def of_batch(self) -> bool:
        """Whether the whole batch must be looked at before its first update: tokens leave it, or weights have its mean."""
        return self.normalize or self.kind.startswith("rejection")

    def weigh(self, old: Tensor, rollout: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) weights, detached, and bool, true on what stays; 1 and true where nothing counts.

        old, rollout: (B, T) log-probabilities of the recorded steps, by the trainer before its first update and by the engine.
        """
        limit = LOG_RATIO_LIMIT
        off = ((old - rollout).double() * mask).detach()
        ratio = _pooled(off, mask, "token" if self.level == "max" else self.level).clamp(-limit, limit).exp()
        weights = ratio.clamp(max=self.cap) if self.kind.endswith("tis") else torch.ones_like(ratio)
        if self.measure == "ratio":
            inside = (ratio >= self.floor) & (ratio <= self.cap)
        else:
            inside = _pooled(DIVERGENCES[self.measure](off.clamp(-limit, limit)), mask, self.level) <= self.cap
        if self.kind == "mis":
            weights = torch.where(inside, ratio, 0)
        kept = inside if self.kind.startswith("rejection") else torch.ones_like(inside)
        return weights.expand_as(old).to(old.dtype), kept.expand_as(mask)

    def normalized(self, weights: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, T) the weights with a mean of 1, over all ranks by `total`; as they are where every weight is 0."""
        if not self.normalize:
            return weights
        counted = mask if self.level == "token" else mask & (mask.cumsum(dim=1) == 1)  # one token for each answer
        added, count = total(torch.stack(((weights.double() * counted).sum(), counted.double().sum())))
        return weights * (count / added).to(weights.dtype) if added > 0 else weights


def _pooled(values: Tensor, mask: Tensor, level: str) -> Tensor:
    """(B, T) values, or (B, 1) of all of an answer's; values are 0 where nothing counts."""
    if level == "token":
        return values
    if level == "max":
        return values.amax(dim=1, keepdim=True)
    added = values.sum(dim=1, keepdim=True)
    return added if level == "sequence" else added / mask.sum(dim=1, keepdim=True).clamp(min=1)


def settled(figures: dict[str, float]) -> dict[str, float]:
    """Means over all tokens as figures of a run: in place of that of the squared weights the effective sample size,
    (sum of w)^2 / sum of w^2 as a share of the tokens, 0 where every weight is. Without a correction, as they are."""
    if "correction_squared" not in figures:
        return figures
    squared = figures.pop("correction_squared")
    return figures | {"effective_sample_size": figures["correction"] ** 2 / squared if squared else 0.0}


def large_gap(gap: float, kind: str) -> str | None:
    """What a run says whose rollouts are further from the policy than LARGE_GAP; None where they are not."""
    if gap <= LARGE_GAP:
        return None
    fix = (
        "algorithm.correction=tis corrects for it" if kind == "none" else f"algorithm.correction={kind} corrects for it"
    )
    told = f"the engine's log-probabilities are {gap:.2g} nats a token from the policy's, above {LARGE_GAP}"
    return f"{told}; {fix}, and a precision of float32 makes it small"
