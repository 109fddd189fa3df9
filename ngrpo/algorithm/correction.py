"""Importance weights for rollouts of an engine that is not quite the trained policy: another precision, other kernels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ngrpo.algorithm.losses import KL_ESTIMATORS, LOG_RATIO_LIMIT
from ngrpo.targets import SettingsError

LARGE_GAP = 0.01  # nats a token: an engine in bfloat16 under a policy in float32 is 0.002 to 0.003 off (bundled model)


@dataclass(frozen=True)
class Correction:
    """How the loss treats tokens whose log-probability under the policy is d higher than the engine's.

    kind       none
               tis            the loss of a token is weighted by min(w, cap), w = exp(d): truncated importance sampling
                              (Ionides, 2008; for rollout engines Yao et al., 2025)
               mis            by w where floor <= w <= cap, else 0; masked tokens still count in the aggregation's
                              denominator (TRL's masks; IcePop with bounds 0.5 and 5)
               rejection      by 1; tokens out of bounds leave the mask, and so the denominator
               rejection_tis  as rejection, and tokens that stay are weighted by min(w, cap) (verl's sequence MIS)
               bypass         by 1; the ratio of the loss is to the engine's log-probabilities instead
    level      token; or one w per answer, of its tokens that count: exp(sum of d) (sequence), exp(mean of d) (mean)
    measure    ratio: w must be within the bounds. k2, k3: rejection only; d^2/2 or w - 1 - d must be at most the cap, of a
               token, or its sum, mean or largest value (max) over the answer
    normalize  weights are divided by their mean over the batch: of tokens, or of answers where those have one weight

    d is bounded by 20 either way. Raises SettingsError for settings that do not go together.
    """

    kind: str = "none"
    level: str = "token"
    cap: float = 2.0
    floor: float = 0.0
    measure: str = "ratio"
    normalize: bool = False

    def __post_init__(self) -> None:
        problem = ""
        if self.measure != "ratio" and self.kind != "rejection":
            problem = f"measure={self.measure}: is for rejection alone; algorithm.correction=rejection"
        elif self.level == "max" and self.measure == "ratio":
            problem = "level=max: is for the measures k2 and k3; algorithm.correction_level=token"
        elif self.floor > self.cap:
            problem = f"floor={self.floor:g}: must be at most the cap; algorithm.correction_floor=0"
        elif self.normalize and self.kind in ("none", "bypass", "rejection"):
            problem = f"normalize=true: {self.kind} has no weights; algorithm.correction_normalize=false"
        if problem:
            raise SettingsError(f"algorithm.correction_{problem}")

    @property
    def of_batch(self) -> bool:
        """Whether it needs the whole batch, before its first update: tokens leave the batch, or weights have its mean."""
        return self.normalize or self.kind.startswith("rejection")

    def weigh(self, old: Tensor, rollout: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) weights, detached, and bool, true on tokens that stay; 1 and true outside the mask.

        old, rollout: (B, T) log-probabilities of the recorded steps, by the policy before its first update and by the engine.
        """
        limit = LOG_RATIO_LIMIT
        gap = ((old - rollout).double() * mask).detach()
        ratio = _pooled(gap, mask, "token" if self.level == "max" else self.level).clamp(-limit, limit).exp()
        weights = ratio.clamp(max=self.cap) if self.kind.endswith("tis") else torch.ones_like(ratio)
        if self.measure == "ratio":
            inside = (ratio >= self.floor) & (ratio <= self.cap)
        else:
            divergence = KL_ESTIMATORS[self.measure](torch.zeros_like(gap), gap.clamp(-limit, limit))
            inside = _pooled(divergence, mask, self.level) <= self.cap
        if self.kind == "mis":
            weights = torch.where(inside, ratio, 0)
        kept = inside if self.kind.startswith("rejection") else torch.ones_like(inside)
        return weights.expand_as(old).to(old.dtype), kept.expand_as(mask)

    def normalized(self, weights: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, T) the weights with a mean of 1; `total` sums over ranks. Unchanged where every weight is 0."""
        if not self.normalize:
            return weights
        counted = mask if self.level == "token" else mask & (mask.cumsum(dim=1) == 1)  # one token for each answer
        weight, count = total(torch.stack(((weights.double() * counted).sum(), counted.double().sum())))
        return weights * (count / weight).to(weights.dtype) if weight > 0 else weights


def _pooled(values: Tensor, mask: Tensor, level: str) -> Tensor:
    """(B, T) values, or one per answer (B, 1); values are 0 outside the mask."""
    if level == "token":
        return values
    if level == "max":
        return values.amax(dim=1, keepdim=True)
    total = values.sum(dim=1, keepdim=True)
    return total if level == "sequence" else total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def settled(figures: dict[str, float]) -> dict[str, float]:
    """Figures of a step whose mean of squared weights is replaced by the effective sample size, (sum of w)^2 / sum of w^2
    as a share of the tokens, 0 where every weight is 0. Unchanged without a correction."""
    if "correction_squared" not in figures:
        return figures
    squared = figures.pop("correction_squared")
    return figures | {"effective_sample_size": figures["correction"] ** 2 / squared if squared else 0.0}


def large_gap(gap: float, kind: str) -> str | None:
    """The warning of a run whose rollouts are further from the policy than LARGE_GAP; None where they are not."""
    if gap <= LARGE_GAP:
        return None
    found = f"the engine's log-probabilities are {gap:.2g} nats a token from the policy's, above {LARGE_GAP}"
    fix = f"algorithm.correction={'tis' if kind == 'none' else kind} corrects for it"
    return f"{found}; {fix}, and a precision of float32 makes it small"
