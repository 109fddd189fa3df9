"""The records that published formulas take and give. P prompts, G group, B = P * G rows, T answer length.

Nothing in the rooms of `algorithm` knows models, prompts or processes.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Facts of P groups of G answers, each (P, G), before any token is weighed.

    rewards    float64, as the task gave them
    correct    bool, the task's verdict: a right answer that is punished for its length is still right
    lengths    int64, tokens
    truncated  bool, cut off at the limit
    log_probs  float64, sum over the answer's tokens at the time of the rollout
    limit      the longest answer that is allowed, in tokens
    """

    rewards: Tensor
    correct: Tensor
    lengths: Tensor
    truncated: Tensor
    log_probs: Tensor
    limit: int


class Tokens(NamedTuple):
    """Detached facts of a batch, each (B, T): log-probabilities before the first update, advantages, entropy of the
    rollout in nats, uniforms in [0, 1) that belong to the tokens, and the mask of those that count."""

    log_probs: Tensor
    advantages: Tensor
    entropy: Tensor
    uniform: Tensor
    mask: Tensor


@dataclass(frozen=True)
class LossInputs:
    """What a loss is given of a micro-batch, each (B, T) and masked. The last five are there where the loss asks for them.

    log_probs      of the recorded steps under the current weights, with their gradient
    old            the same from before the first update, detached
    advantages
    mask           bool, true on the tokens that count
    selected       bool, tokens that the algorithm's `select` has chosen
    entropy        nats of softmax(logits), with its gradient
    top_log_probs  (B, T, K) log softmax(logits) of the K likeliest tokens, K = algorithm.top_k, with their gradient
    greedy         bool, the realised token is the likeliest
    hidden         (B, T, D) the states that the steps were drawn from, with their gradient
    """

    log_probs: Tensor
    old: Tensor
    advantages: Tensor
    mask: Tensor
    selected: Tensor | None = None
    entropy: Tensor | None = None
    top_log_probs: Tensor | None = None
    greedy: Tensor | None = None
    hidden: Tensor | None = None

    @property
    def chosen(self) -> Tensor:
        """`selected`, for losses that ask for it."""
        assert self.selected is not None, "algorithm.select is not set, so no token is selected"
        return self.selected


class TokenLoss(NamedTuple):
    """Per-token loss (B, T), to be minimised, and where clipping cut the gradient (B, T) bool."""

    loss: Tensor
    clipped: Tensor


class Counts(NamedTuple):
    """Sizes of a whole mini-batch over all micro-batches and ranks: tokens that count, sequences that have any, and the
    longest answer that is allowed."""

    tokens: Tensor
    sequences: Tensor
    length: int
