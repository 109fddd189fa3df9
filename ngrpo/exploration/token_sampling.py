"""Plain token sampling at a temperature, optionally from a nucleus: the baseline that every trick has to beat.

It knows no embedding but that of the sampled token.
"""

import torch
from torch import Tensor

from ngrpo.exploration.base import Exploration, State, draw_token, filtered, tempered, token_log_prob
from ngrpo.keys import Draws
from ngrpo.rollouts import TOKEN, Step


class TokenSampling(Exploration):
    """o ~ softmax(z / temperature), fed = E[o].

    With top_p < 1 the log-probability is that of the renormalised nucleus of the current logits; the realised token is
    counted in even where the nucleus has moved away from it, so that it keeps a gradient.
    """

    def __init__(self, temperature: float = 1.0, top_p: float = 1.0):
        super().__init__()
        self.temperature, self.top_p = temperature, top_p

    def draw(self, logits: Tensor, draws: Draws) -> Tensor:
        """(B,) sampled tokens."""
        return draw_token(filtered(tempered(logits, self.temperature), self.top_p), draws.token)

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[Step, State]:
        tokens = self.draw(logits, draws)
        return Step(tokens, torch.full_like(tokens, TOKEN), torch.zeros_like(tokens, dtype=torch.bool)), state

    def log_prob(self, steps: Step, logits: Tensor, table: Tensor) -> Tensor:
        scores = filtered(tempered(logits, self.temperature), self.top_p, keep=steps.tokens)
        return token_log_prob(scores, steps.tokens)
