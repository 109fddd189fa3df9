"""Plain token sampling at a temperature, optionally filtered: the baseline for every trick."""

import torch
from torch import Tensor

from ngrpo.exploration.base import Exploration, State
from ngrpo.exploration.scores import draw_token, filtered, tempered, token_log_prob
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import TOKEN, DecodeStep


class TokenSampling(Exploration):
    """o ~ softmax(z / temperature), fed = E[o].

    With top_k, top_p < 1 or min_p > 0 the log-probability is that of the filtered, renormalized current logits; the text
    token is always kept, even if the filter would now cut it, so that it has a gradient.
    """

    def __init__(self, temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None, min_p: float = 0.0):
        super().__init__()
        self.temperature, self.top_p, self.top_k, self.min_p = temperature, top_p, top_k, min_p

    def scores(self, logits: Tensor, keep: Tensor | None = None) -> Tensor:
        """(..., V) whose softmax tokens are drawn from; `keep` (...,) are tokens that are never cut."""
        return filtered(tempered(logits, self.temperature), self.top_p, keep, self.top_k, self.min_p)

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        tokens = draw_token(self.scores(logits), draws.token)
        return DecodeStep(tokens, torch.full_like(tokens, TOKEN), torch.zeros_like(tokens, dtype=torch.bool)), state

    def log_prob(self, steps: DecodeStep, logits: Tensor, table: Tensor) -> Tensor:
        return token_log_prob(self.scores(logits, keep=steps.tokens), steps.tokens)
