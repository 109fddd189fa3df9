"""Hybrid latent reasoning (HRPO, arXiv 2505.18454): a learned gate blends the sampled token with the expected embedding."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ngrpo.exploration.base import State
from ngrpo.exploration.scores import draw_token
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import Draws, row_key
from ngrpo.rollout.records import TOKEN, DecodeStep, Vocabulary

C = 8.0  # sharpness of the gate


class HybridReasoning(TokenSampling):
    """Thinking: fed = a x + sqrt(1 - a^2 + 1e-8) (i h), x = E[o] of the sampled token o, h = p E / ||p||_2 with o ~ p,
    r = sigmoid(W_r x + b_r), i = sigmoid(W_i x + b_i), a = exp(-c softplus(-Lambda) r), c = 8.

    Initially a = u^r with u ~ U(r_min, r_max) per coordinate, so the token dominates. h is recorded, without gradient; a
    replay computes the gates again. Reserved tokens, stops and the delimiter that ends the thinking part are fed as they
    are, and so are all tokens after it. Source: the released code, Yueeeeeeee/HRPO at 8b49045.
    """

    records_vectors = True

    def __init__(
        self,
        seed: int,
        r_min: float = 0.99,
        r_max: float = 0.999,
        gate_learning_rate: float = 1e-4,
        lambda_learning_rate: float = 1e-3,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        if not 0 < r_min <= r_max < 1:
            raise ValueError(f"r_min={r_min}, r_max={r_max}: a gate needs 0 < r_min <= r_max < 1")
        super().__init__(temperature, top_p)
        self.seed, self.r_min, self.r_max = seed, r_min, r_max
        self.gate_learning_rate, self.lambda_learning_rate = gate_learning_rate, lambda_learning_rate

    def bind(self, vocabulary: Vocabulary, table: Tensor) -> None:
        """Makes the gates only if there are none yet, so that trained or loaded ones stay."""
        super().bind(vocabulary, table)
        if not list(self.parameters()):
            self._make_gates(table)

    def _make_gates(self, table: Tensor) -> None:
        width, dtype = table.shape[-1], torch.promote_types(table.dtype, torch.float32)
        generator = torch.Generator().manual_seed(row_key("hrpo gates", self.seed) % 2**63)
        bound = 1 / math.sqrt(width)  # torch's own initialization of a linear layer
        self.reset, self.input = (nn.Linear(width, width, device=table.device, dtype=dtype) for _ in range(2))
        for parameter in (*self.reset.parameters(), *self.input.parameters()):
            parameter.data.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        u = torch.empty(width, dtype=torch.float64).uniform_(self.r_min, self.r_max, generator=generator)
        self.Lambda = nn.Parameter(-torch.log(u ** (-1 / C) - 1).to(table.device, dtype))

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        gates = [*self.reset.parameters(), *self.input.parameters()]
        return [
            {"params": gates, "lr": self.gate_learning_rate},
            {"params": [self.Lambda], "lr": self.lambda_learning_rate},
        ]

    def start(self, rows: int, device: torch.device) -> State:
        return self.thinking.start(rows, device)

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        scores = self.scores(logits)
        tokens = draw_token(scores, draws.token)
        ended, state = self.thinking.push(state, tokens)
        soft = ~ended & self.thinking.ordinary[tokens]
        with torch.autocast(scores.device.type, enabled=False):
            p = scores.softmax(dim=-1)
            hidden = (p / p.norm(dim=-1, keepdim=True)) @ table.detach().to(p.dtype)
        offset = torch.where(soft[:, None], hidden.detach(), torch.zeros_like(hidden))
        return DecodeStep(tokens, torch.full_like(tokens, TOKEN), soft, offset=offset), state

    def retained(self, x: Tensor) -> Tensor:
        """a (..., D), the share of the token's embedding x (..., D)."""
        return torch.exp(-C * F.softplus(-self.Lambda) * torch.sigmoid(self.reset(x)))

    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor:
        """Every step goes through the gates, so that their parameters always have a gradient."""
        assert steps.offset is not None
        fed = F.embedding(steps.tokens, table)
        x = fed.to(self.Lambda.dtype)
        a = self.retained(x)
        hybrid = a * x + torch.sqrt(1 - a.square() + 1e-8) * torch.sigmoid(self.input(x)) * steps.offset
        return torch.where(steps.explored[..., None], hybrid.to(fed.dtype), fed)
