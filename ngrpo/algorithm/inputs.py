"""The records that published formulas take and return. P prompts, G group, B = P * G rows, T answer length."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """P groups of G answers, each field (P, G).

    rewards    float64, as the task gave them; for a group filter, after all shaping
    correct    bool, the task's verdict: a right answer that is punished for its length is still right
    lengths    int64, tokens
    truncated  bool, cut off at the limit
    log_probs  float64, sum over the answer's tokens, by the rollout engine
    parsed     bool, an answer was found in the text
    keys       int64, the answers' random keys
    limit      the longest answer allowed, in tokens
    bonus      float64, added to the rewards before they become advantages; None: nothing
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
    """The tokens of a step, for advantages that are shaped per token; each field (B, T), detached.

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
    """The tokens among which some are selected, each field (B, T), detached.

    log_probs  under the current weights: before the first update, or with select_per="update" before this one
    advantages
    entropy    nats, under the same weights; of softmax(logits / temperature) unless algorithm.tempered is false
    uniform    [0, 1), float64, a random number of the token that nothing else uses
    mask       bool, the tokens that count
    old        the denominator of the loss's ratio, as log-probabilities; with select_per="step" the ratio is still 1
    """

    log_probs: Tensor
    advantages: Tensor
    entropy: Tensor
    uniform: Tensor
    mask: Tensor
    old: Tensor


@dataclass(frozen=True)
class LossInputs:
    """A micro-batch as the loss gets it, each field (B, T) and masked. Fields from `entropy` on only if the loss asks for them.

    log_probs      of the recorded steps under the current weights, with gradient
    old            the same before the first update, detached
    advantages
    mask           bool, true on the tokens that count
    correction     weights for an engine that differs from the policy, detached; None: no correction
    selected       bool, tokens chosen by the algorithm's `select`
    entropy        nats, of softmax(logits / temperature), with gradient; algorithm.tempered false: of softmax(logits)
    top_log_probs  (B, T, K) log-probabilities of the K likeliest tokens, K = algorithm.top_k, with gradient
    greedy         bool, the text token is the likeliest
    hidden         (B, T, D) the hidden states that the steps were drawn from, with gradient
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
    """Sizes of a whole mini-batch over all micro-batches and ranks: tokens that count, sequences with such tokens, the
    longest answer allowed, and micro-batches."""

    tokens: Tensor
    sequences: Tensor
    length: int
    micro_batches: Tensor | int = 1
