"""Weights for the loss of rollouts whose engine is not quite the policy that is trained: another precision, other kernels."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ngrpo.algorithm.losses import LOG_RATIO_LIMIT

LARGE_GAP = 0.01  # nats a token: an engine in bfloat16 under a policy in float32 is 0.002 to 0.003 off (bundled model)


def truncated(ratio: Tensor, cap: float) -> Tensor:
    """min(w, cap). Source: truncated importance sampling, Ionides, 2008; for rollout engines Yao et al., 2025."""
    return ratio.clamp(max=cap)


def masked(ratio: Tensor, cap: float) -> Tensor:
    """w where it is at most the cap, else 0; what is masked still counts in the aggregation's denominator."""
    return torch.where(ratio <= cap, ratio, 0)


CORRECTIONS: Mapping[str, Callable[[Tensor, float], Tensor]] = {"tis": truncated, "mis": masked}


def importance_weights(kind: str, level: str, cap: float, old: Tensor, rollout: Tensor, mask: Tensor) -> Tensor:
    """(B, T), detached: w = exp(old - rollout), truncated or masked, 1 where nothing counts.

    old, rollout: (B, T) log-probabilities of the recorded steps, by the trainer before its first update and by the engine.
    level: "token", or "sequence": the product over the tokens of an answer that count, the same for all of them.
    """
    difference = ((old - rollout).double() * mask).detach()
    if level == "sequence":
        difference = difference.sum(dim=1, keepdim=True)
    ratio = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return CORRECTIONS[kind](ratio, cap).expand_as(old).to(old.dtype)


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
