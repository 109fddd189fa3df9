"""Thinking in mixtures of randomly perturbed candidates, trained by their density; the kind of noise is exchangeable."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.base import State, mixture, where_explored
from ngrpo.exploration.scores import candidates, draw_token, tempered
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import TOKEN, DecodeStep

CUT = -1e30  # score of a candidate outside the nucleus; finite, because records are multiplied by masks


class Noise(ABC):
    """How candidates are perturbed, the weights that result, and the density. `role` is that of its steps."""

    role: ClassVar[int]

    @abstractmethod
    def perturb(self, log_p: Tensor, draws: Draws) -> Tensor:
        """Scores y (B, K) from log-probabilities l (B, K), -inf where a candidate is cut."""

    @abstractmethod
    def weigh(self, scores: Tensor) -> Tensor:
        """Weights (B, K) from scores y, largest first, CUT where a candidate is cut."""

    @abstractmethod
    def density(self, scores: Tensor, log_p: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Each candidate's term of the log-density of y under l' (..., K), and which of them count (..., K) bool."""


class PerturbedThinking(TokenSampling):
    """Thinking: candidates = the `thinking_top_k` likeliest tokens, renormalized, minus those outside the nucleus
    `thinking_top_p`; their log-probabilities l (temperature included), renormalized again, are perturbed to scores y, y is
    turned into weights, and the weighted sum of their embeddings is fed, detached from the table. The text token is the
    candidate of largest weight. The answer is sampled as usual, at `temperature` and `top_p`.

    log_prob of a thinking step is the density of the recorded y under the current l' of the recorded candidates, their
    mean and not their sum, as released. A text token that is reserved, a stop or the end of the delimiter is fed as it is
    and keeps its density. Any token of the vocabulary may be a candidate, or no text would end. Source:
    zz1358m/SofT-GRPO-master at 2b9d8ec (paper: arXiv 2511.06411).
    """

    deviates = "the density of a thinking step is a mean over candidates"

    def __init__(
        self,
        noise: Noise,
        thinking_top_k: int = 5,
        thinking_top_p: float = 0.95,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(temperature, top_p)
        self.noise, self.thinking_top_k, self.thinking_top_p = noise, thinking_top_k, thinking_top_p

    def start(self, rows: int, device: torch.device) -> State:
        return self.thinking.start(rows, device)

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        soft = self.thinking.active(state)
        ids, log_p = self._candidates(logits)
        scores = self.noise.perturb(log_p, draws).to(log_p.dtype).masked_fill(log_p.isneginf(), CUT)
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(-1, order)
        tokens = torch.where(soft, ids[:, 0], draw_token(self.scores(logits), draws.token))
        ended, state = self.thinking.push(state, tokens)
        explored = ~ended & self.thinking.ordinary[tokens]
        weights = self.noise.weigh(scores)
        plain = F.one_hot(torch.zeros_like(tokens), weights.shape[-1]).to(weights.dtype)
        weights = torch.where(explored[:, None], weights, plain)
        ids = torch.where(soft[:, None], ids, tokens[:, None])
        scores = torch.where(soft[:, None], scores, torch.zeros_like(scores))
        return DecodeStep(tokens, torch.where(soft, self.noise.role, TOKEN), explored, ids, weights, scores), state

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, K), likeliest first, and log-probabilities (B, K), -inf outside the nucleus."""
        ids = candidates(logits[:, : self.vocabulary.size], min(self.thinking_top_k, self.vocabulary.size))
        log_p = tempered(logits.gather(-1, ids), self.temperature).log_softmax(dim=-1)
        before = log_p.exp().cumsum(dim=-1) - log_p.exp()
        cut = before >= self.thinking_top_p if self.thinking_top_p < 1 else torch.zeros_like(before, dtype=torch.bool)
        return ids, log_p.masked_fill(cut, -torch.inf).log_softmax(dim=-1)

    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor:
        fed = F.embedding(steps.tokens, table)
        return where_explored(steps, fed, lambda at: mixture(steps[at], table.detach()))

    def log_prob(self, steps: DecodeStep, logits: Tensor, table: Tensor) -> Tensor:
        assert steps.mix_ids is not None and steps.scores is not None
        hard = super().log_prob(steps, logits, table)
        valid = steps.scores > CUT / 2
        scores = tempered(logits.gather(-1, steps.mix_ids), self.temperature)
        log_p = scores.masked_fill(~valid, -torch.inf).log_softmax(dim=-1)
        terms, counted = self.noise.density(steps.scores, log_p.masked_fill(~valid, 0.0), valid)
        soft = torch.where(counted, terms, torch.zeros_like(terms)).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)
        return torch.where(steps.role == self.noise.role, soft.to(hard.dtype), hard)
