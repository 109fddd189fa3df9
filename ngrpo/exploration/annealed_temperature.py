"""Exploratory annealed decoding (arXiv 2510.05251): a high temperature at the beginning of a text, a low one at its end."""

import torch
from torch import Tensor

from ngrpo.exploration.base import State
from ngrpo.exploration.scores import draw_token, filtered, tempered, token_log_prob
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import TOKEN, DecodeStep


class AnnealedTemperature(TokenSampling):
    """o ~ softmax(z / tau_t) at decode step t from 0, tau_t = temperature * max(1 + start - e^(t / horizon), end).

    Source: Yang et al., 2025, the schedule of their method section with tau_max = start, tau_min = end and d = horizon;
    they train at temperature 1, so the schedule is in units of `temperature`. Not implemented: the fixed temperature of
    the first template tokens and a horizon that grows with the RL step. The temperature of a step is recorded as its
    `scale`, which log_prob uses, filters included.
    """

    def __init__(self, start: float, end: float, horizon: float, temperature: float = 1.0, top_p: float = 1.0):
        super().__init__(temperature, top_p)
        if not start >= end > 0:
            raise ValueError(f"start={start}, end={end}: a falling temperature needs start >= end > 0")
        self.first, self.last, self.horizon = start, end, horizon

    def schedule(self, steps: Tensor) -> Tensor:
        """tau_t at decode steps (...,), float32."""
        factor = 1 + self.first - torch.exp(steps.double() / self.horizon)
        return (self.temperature * factor.clamp(min=self.last)).float()

    def temperature_of(self, steps: DecodeStep) -> Tensor:
        assert steps.scale is not None
        return steps.scale[..., None]

    def annealed(self, logits: Tensor, tau: Tensor, keep: Tensor | None = None) -> Tensor:
        """(..., V) whose softmax is the distribution at temperatures tau (..., 1)."""
        return filtered(tempered(logits, 1.0) / tau, self.top_p, keep)

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        tau = self.schedule(draws.steps.expand(len(logits)))
        tokens = draw_token(self.annealed(logits, tau[:, None]), draws.token)
        unexplored = torch.zeros_like(tokens, dtype=torch.bool)
        return DecodeStep(tokens, torch.full_like(tokens, TOKEN), unexplored, scale=tau), state

    def log_prob(self, steps: DecodeStep, logits: Tensor, table: Tensor) -> Tensor:
        return token_log_prob(self.annealed(logits, self.temperature_of(steps), steps.tokens), steps.tokens)
