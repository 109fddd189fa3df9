"""Token sampling with a share of uniformly random tokens: the oldest exploration there is."""

import math

import torch
from torch import Tensor

from ngrpo.exploration.base import State
from ngrpo.exploration.scores import draw_token, tempered, token_log_prob
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import TOKEN, DecodeStep, Vocabulary


class EpsilonGreedy(TokenSampling):
    """o ~ p' = (1 - epsilon) softmax(z / temperature) + epsilon u, u uniform over ordinary tokens and stops.

    log_prob = log p', whichever of the two a token came from. `explored` marks where the uniform part was drawn from, even
    if its token happens to be the likeliest.
    """

    allowed: Tensor
    ids: Tensor

    def __init__(self, epsilon: float, temperature: float = 1.0):
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon={epsilon}: a mixture of two distributions needs 0 < epsilon < 1")
        super().__init__(temperature)
        self.epsilon = epsilon

    def bind(self, vocabulary: Vocabulary, table: Tensor) -> None:
        super().bind(vocabulary, table)
        allowed = vocabulary.ordinary(len(table), table.device)
        allowed[torch.tensor(vocabulary.stops, dtype=torch.int64, device=table.device)] = True
        self.register_buffer("allowed", allowed, persistent=False)
        self.register_buffer("ids", allowed.nonzero().squeeze(-1), persistent=False)

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        uniform = self.ids[(draws.token * len(self.ids)).long()]
        explored = draws.explore < self.epsilon
        tokens = torch.where(explored, uniform, draw_token(self.scores(logits), draws.token))
        return DecodeStep(tokens, torch.full_like(tokens, TOKEN), explored), state

    def log_prob(self, steps: DecodeStep, logits: Tensor, table: Tensor) -> Tensor:
        softmax = token_log_prob(tempered(logits, self.temperature), steps.tokens) + math.log1p(-self.epsilon)
        uniform = torch.full_like(softmax, math.log(self.epsilon / len(self.ids)))
        return torch.where(self.allowed[steps.tokens], torch.logaddexp(softmax, uniform), softmax)
