"""The records that published formulas take and give. P prompts, G group, B = P * G rows, T answer length.

Nothing in the rooms of `algorithm` knows models, prompts or processes.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Facts of P groups of G answers, each (P, G), before any token is weighed.

    rewards    float64, as the task gave them; for a group filter, after all shaping
    correct    bool, the task's verdict: a right answer that is punished for its length is still right
    lengths    int64, tokens
    truncated  bool, cut off at the limit
    log_probs  float64, sum over the answer's tokens at the time of the rollout
    parsed     bool, an answer was found in the text
    keys       int64, the answers' random keys
    limit      the longest answer that is allowed, in tokens
    bonus      float64, what is added to the rewards before they become advantages; None: nothing
    """

    rewards: Tensor
    correct: Tensor
    lengths: Tensor
    truncated: Tensor
    log_probs: Tensor
    parsed: Tensor
    keys: Tensor
    limit: int
    bonus: Tensor | None = None


class AnswerTokens(NamedTuple):
    """The tokens of a step whose advantages are shaped one by one, each (B, T), detached.

    advantages
    entropy     nats, before the first update; of softmax(logits / temperature) unless algorithm.tempered is false
    mask        bool, the tokens that count
    groups      the answers, row after row
    """

    advantages: Tensor
    entropy: Tensor
    mask: Tensor
    groups: Groups


class Tokens(NamedTuple):
    """Detached facts of the tokens among which some are selected, each (B, T).

    log_probs  under the weights of the moment: before the first update, or with select_per="update" before this one
    advantages
    entropy    nats, under the same weights; of softmax(logits / temperature) unless algorithm.tempered is false
    uniform    [0, 1), float64, a number of the token's own that nothing else is drawn from
    mask       bool, the tokens that count
    old        log-probabilities that the loss's ratio is to; with select_per="step" its ratio is 1 still
    """

    log_probs: Tensor
    advantages: Tensor
    entropy: Tensor
    uniform: Tensor
    mask: Tensor
    old: Tensor


@dataclass(frozen=True)
class LossInputs:
    """What a loss is given of a micro-batch, each (B, T) and masked. From `entropy` on they are there where the loss asks.

    log_probs      of the recorded steps under the current weights, with their gradient
    old            the same from before the first update, detached
    advantages
    mask           bool, true on the tokens that count
    correction     weights for an engine that differs from the policy, detached; None: nothing is corrected
    selected       bool, tokens that the algorithm's `select` has chosen
    entropy        nats of softmax(logits / temperature), with its gradient; algorithm.tempered false: of softmax(logits)
    top_log_probs  (B, T, K) its logarithm at the K likeliest tokens, K = algorithm.top_k, with their gradient
    greedy         bool, the text token is the likeliest
    hidden         (B, T, D) the states that the steps were drawn from, with their gradient
    """

    log_probs: Tensor
    old: Tensor
    advantages: Tensor
    mask: Tensor
    correction: Tensor | None = None
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
    """Per-token loss (B, T), to be minimized, and where clipping cut the gradient (B, T) bool."""

    loss: Tensor
    clipped: Tensor


class Counts(NamedTuple):
    """Sizes of a whole mini-batch over all micro-batches and ranks: tokens that count, sequences that have any, the longest
    answer that is allowed, and micro-batches."""

    tokens: Tensor
    sequences: Tensor
    length: int
    micro_batches: Tensor | int = 1
