"""Soft Thinking (arXiv 2505.15778): deterministic thinking in expected embeddings, so there is nothing to train."""

import torch
from torch import Tensor

from ngrpo.exploration.base import Exploration, State, one_hot_elsewhere
from ngrpo.exploration.scores import candidates, draw_token, entropy, filtered, tempered, token_log_prob
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import FORCED, TOKEN, DecodeStep, Vocabulary


class SoftThinking(Exploration):
    """Thinking: fed = sum of p(v) E[v] over the `max_topk` likeliest tokens of the filtered softmax(z / temperature),
    renormalized; the text token is the likeliest. The answer is sampled with its own temperature and filters.

    Cold stop: after `low_steps` consecutive thinking steps whose softmax(z / temperature) has less than
    `entropy_threshold` nats, the last of them is replaced by `answer_start`, which is inserted token by token and fed
    as it is; any other step resets the count. Threshold 0 or an empty `answer_start`: never.
    The released code also aborts a text whose count fills up in the answer; the paper has no such rule, nor do we.
    Reserved tokens, stops and the delimiter are fed as they are. log_prob is that of the unfiltered tempered softmax at
    the token, for information only: a thinking step is not a sample.
    """

    deviates = "a thinking step is not a sample"
    inserted: Tensor

    def __init__(
        self,
        max_topk: int = 10,
        temperature: float = 0.6,
        top_p: float = 0.95,
        top_k: int | None = 30,
        min_p: float = 0.001,
        entropy_threshold: float = 0.01,
        low_steps: int = 256,
        answer_temperature: float = 0.6,
        answer_top_p: float = 0.95,
        answer_top_k: int | None = 30,
    ):
        super().__init__()
        self.max_topk, self.temperature = max_topk, temperature
        self.top_p, self.top_k, self.min_p = top_p, top_k, min_p
        self.entropy_threshold, self.low_steps = entropy_threshold, low_steps
        self.answer_temperature, self.answer_top_p, self.answer_top_k = answer_temperature, answer_top_p, answer_top_k

    def bind(self, vocabulary: Vocabulary, table: Tensor) -> None:
        super().bind(vocabulary, table)
        ids = torch.tensor(vocabulary.answer_start, dtype=torch.int64, device=table.device)
        self.register_buffer("inserted", ids, persistent=False)

    def start(self, rows: int, device: torch.device) -> State:
        """`low`: consecutive steps of low entropy; `insert`: position in the inserted text, -1 while thinking."""
        counts = torch.zeros(rows, dtype=torch.int64, device=device)
        return {"low": counts, "insert": counts - 1, **self.thinking.start(rows, device)}

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        scores = tempered(logits, self.temperature)
        known = scores[:, : self.vocabulary.size]  # padding rows are not candidates
        ids = candidates(known, min(self.max_topk, known.shape[-1]))
        state = self._stop_cold(scores, state, ids[:, 0])
        thinking, inserting = state["insert"] < 0, (state["insert"] >= 0) & (state["insert"] < len(self.inserted))
        answer = filtered(tempered(logits, self.answer_temperature), self.answer_top_p, top_k=self.answer_top_k)
        tokens = torch.where(thinking, ids[:, 0], draw_token(answer, draws.token))
        if len(self.inserted):
            tokens = torch.where(inserting, self.inserted[state["insert"].clamp(0, len(self.inserted) - 1)], tokens)
        ended, state = self.thinking.push(state, tokens)
        mixed = thinking & ~ended & self.thinking.ordinary[tokens]
        weights = filtered(known, self.top_p, top_k=self.top_k, min_p=self.min_p).gather(-1, ids).softmax(dim=-1)
        insert = torch.where(thinking, state["insert"], state["insert"] + 1)
        state = {**state, "insert": insert.masked_fill(thinking & ended, len(self.inserted))}
        role = torch.where(inserting, FORCED, TOKEN)
        tau = torch.where(thinking, self.temperature, self.answer_temperature).to(scores.dtype)
        return DecodeStep(tokens, role, mixed, *one_hot_elsewhere(mixed, tokens, ids, weights), scale=tau), state

    def _stop_cold(self, scores: Tensor, state: State, tokens: Tensor) -> State:
        """Starts to insert where the count is full, unless the token (B,) itself ends the thinking part."""
        thinking = state["insert"] < 0
        low = (state["low"] + 1) * (thinking & (entropy(scores) < self.entropy_threshold))
        ends, _ = self.thinking.push(state, tokens)
        full = (low >= self.low_steps) & ~ends & bool(self.vocabulary.answer_start)
        return {**state, "low": low.masked_fill(full, 0), "insert": state["insert"].masked_fill(full, 0)}

    def temperature_of(self, steps: DecodeStep) -> Tensor:
        assert steps.scale is not None
        return steps.scale[..., None]

    def log_prob(self, steps: DecodeStep, logits: Tensor, table: Tensor) -> Tensor:
        return token_log_prob(tempered(logits, 1.0) / self.temperature_of(steps), steps.tokens)
