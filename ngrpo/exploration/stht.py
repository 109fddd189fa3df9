"""Soft and fuzzy tokens of "Soft Tokens, Hard Truths" (arXiv 2509.19170): thinking in noisy expected embeddings.

While the model thinks, log_prob is the Gaussian density of the fed vector; the answer is made of hard tokens.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.base import Exploration, State, chosen_places, where_explored
from ngrpo.exploration.gaussian_noise import root_mean_square
from ngrpo.exploration.scores import draw_token, tempered, token_log_prob
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import FORCED, GAUSSIAN, TOKEN, DecodeStep, Vocabulary


class SoftTokens(Exploration):
    """Thinking: h = softmax(z / soft_temperature) E, fed = h + sigma * N(0, I), sigma = scale * RMS(E) per coordinate,
    log_prob = log N(fed; h, sigma^2 I), differentiable through h in logits and table (section 3 of the paper).
    soft_temperature 0.5 gives soft tokens, 1e-4 fuzzy ones.

    The text of the thinking part is its greedy shadow (argmax). After `think_limit` thinking tokens `answer_start` is
    inserted; after it, inserted or not, `answer_prefix` is inserted and hard tokens follow, drawn at `temperature`.
    Inserted text carries no loss.
    """

    records_vectors = True
    rms: Tensor
    stops: Tensor
    inserted: Tensor

    def __init__(self, soft_temperature: float, scale: float, temperature: float = 1.0, think_limit: int | None = None):
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale={scale}: a Gaussian density needs scale > 0")
        self.soft_temperature, self.relative_scale, self.temperature = soft_temperature, scale, temperature
        self.think_limit = think_limit
        self.register_buffer("rms", torch.ones(()))

    def bind(self, vocabulary: Vocabulary, table: Tensor) -> None:
        super().bind(vocabulary, table)
        inserted = (*vocabulary.answer_start, *vocabulary.answer_prefix)
        for name, ids in (("stops", vocabulary.stops), ("inserted", inserted)):
            ids = torch.tensor(ids, dtype=torch.int64, device=table.device)
            self.register_buffer(name, ids, persistent=False)

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> dict[str, float]:
        self.rms = root_mean_square(table)
        return {"noise_scale": self.relative_scale * self.rms.item()}

    def start(self, rows: int, device: torch.device) -> State:
        """`thought`: thinking tokens so far; `insert`: position in the inserted text, -1 while thinking."""
        counts = torch.zeros(rows, dtype=torch.int64, device=device)
        return {"thought": counts, "insert": counts - 1, **self.thinking.start(rows, device)}

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        step, _, state = self.sample_and_log_prob(logits, state, draws, table)
        return step, state

    def sample_and_log_prob(
        self, logits: Tensor, state: State, draws: Draws, table: Tensor
    ) -> tuple[DecodeStep, Tensor, State]:
        state = self._open_answer_at_limit(state)
        thinking, inserting = state["insert"] < 0, (state["insert"] >= 0) & (state["insert"] < len(self.inserted))
        tokens, hard = logits.max(dim=-1).indices, chosen_places(~thinking)
        drawn = tokens.clone()
        drawn[hard] = draw_token(tempered(logits[hard], self.temperature), draws[hard].token)
        tokens = torch.where(thinking, tokens, drawn)
        if len(self.inserted):
            text = self.inserted[state["insert"].clamp(0, len(self.inserted) - 1)]
            tokens = torch.where(inserting, text, tokens)
        role = torch.where(thinking, GAUSSIAN, torch.where(inserting, FORCED, TOKEN))
        soft = thinking & ~torch.isin(tokens, self.stops)
        state = self._advance(state, tokens, thinking)
        exact, sigma = torch.promote_types(table.dtype, torch.float32), self.relative_scale * self.rms
        places = chosen_places(soft)
        mean = self._expected(logits[places], table)
        offset = torch.zeros(len(tokens), table.shape[-1], dtype=exact, device=table.device)
        offset[places] = mean + sigma * draws[places].normal(table.shape[-1])
        offset = torch.where(soft[:, None], offset, 0)
        role = torch.where(thinking & ~soft, FORCED, role)
        step = DecodeStep(tokens, role, soft, scale=sigma.expand(len(tokens)), offset=offset)
        return step, self._scored(step, logits, mean), state

    def _open_answer_at_limit(self, state: State) -> State:
        if self.think_limit is None:
            return state
        over = (state["insert"] < 0) & (state["thought"] >= self.think_limit)
        return {**state, "insert": state["insert"].masked_fill(over, 0)}

    def _advance(self, state: State, tokens: Tensor, thinking: Tensor) -> State:
        """Counters after `tokens`; a thinking part that ended by itself goes on with the answer's prefix."""
        ended, state = self.thinking.push(state, tokens)
        insert = torch.where(thinking, state["insert"], state["insert"] + 1)
        insert = insert.masked_fill(thinking & ended, len(self.vocabulary.answer_start))
        return {**state, "thought": state["thought"] + thinking, "insert": insert}

    def _expected(self, logits: Tensor, table: Tensor) -> Tensor:
        """h (..., D) in float32 at least, which the density needs, whatever precision the model runs in."""
        scores = tempered(logits, self.soft_temperature)
        with torch.autocast(scores.device.type, enabled=False):
            return scores.softmax(dim=-1) @ table.to(scores.dtype)

    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor:
        fed = F.embedding(steps.tokens, table)
        if steps.offset is None:
            return fed
        offset = steps.offset
        return where_explored(steps, fed, lambda at: offset[at])

    def log_prob(self, steps: DecodeStep, logits: Tensor, table: Tensor) -> Tensor:
        return self._scored(steps, logits, self._expected(logits[chosen_places(steps.role == GAUSSIAN)], table))

    def _scored(self, steps: DecodeStep, logits: Tensor, mean: Tensor) -> Tensor:
        """log_prob, given the expected embeddings (N, D) of the Gaussian steps."""
        soft = steps.role == GAUSSIAN
        assert steps.offset is not None and steps.scale is not None
        places, others = chosen_places(soft), chosen_places(~soft)
        density = gaussian_log_density(steps.offset[places], mean, steps.scale[places])
        hard = token_log_prob(tempered(logits[others], self.temperature), steps.tokens[others])
        if places is ...:
            return torch.where(soft, density.to(hard.dtype), hard)
        return hard.new_zeros(soft.shape).index_put(places, density.to(hard.dtype)).index_put(others, hard)


def gaussian_log_density(value: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """(N,) log N(value; mean, sigma^2 I) of vectors (N, D), with one standard deviation per row (N,)."""
    width = value.shape[-1]
    distance = (value - mean).square().sum(dim=-1)
    return -distance / (2 * sigma.square()) - width * (sigma.log() + 0.5 * math.log(2 * math.pi))
