"""Mixtures of tokens that Gumbel noise picks: "Gumbel Soft-Thinking" as N-GRPO's code has it (`topk-gumbel`).

It is not Gumbel soft thinking: the noise chooses the candidates and the weights are made without it. It does not know
an embedding's neighbours.
"""

import torch
from torch import Tensor

from ngrpo.exploration.base import State, chosen_places
from ngrpo.exploration.mixing import one_hot_elsewhere
from ngrpo.exploration.scores import candidates, draw_token, gumbel
from ngrpo.exploration.token_sampling import ThinkingSampling
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import TOKEN, Step


class TopkGumbelSelect(ThinkingSampling):
    """With probability `rate` per thinking step (null: always): candidates = the k ordinary tokens of largest z /
    temperature + Gumbel noise, weights = softmax of their z / temperature without noise, fed = sum of weight * E[c].

    realisation  "anchor": the text gains the token of largest noisy score, which is an exact sample of softmax(z /
                 temperature), so the token's log-probability is its behaviour density; "sampled" (released): it gains
                 the token drawn by the inverse CDF, so text and mixture are independent
    Where either token is reserved, a stop or ends the thinking part, the step is a plain one. Source: ZJUSCL/N-GRPO at
    d9c94fe, without its second softmax.
    """

    def __init__(
        self, rate: float | None, k: int, realisation: str = "anchor", temperature: float = 1.0, top_p: float = 1.0
    ):
        super().__init__(temperature, top_p)
        self.rate = 1.0 if rate is None else rate
        self.k, self.realise_anchor = k, realisation == "anchor"

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[Step, State]:
        scores = self.scores(logits)
        tokens = draw_token(scores, draws.token)
        chosen = state["thinking"] & (draws.explore < self.rate)
        places = chosen_places(chosen)
        noisy = scores[places] + gumbel(draws[places].uniforms(scores.shape[-1])).to(scores.dtype)
        anchors = tokens.clone()
        anchors[places] = noisy.argmax(dim=-1)
        if self.realise_anchor:
            tokens = torch.where(chosen, anchors, tokens)
        _, state = self.thinking.push(state, tokens)
        mixed = chosen & self.ordinary[anchors] & state["thinking"] & self.ordinary[tokens]
        role = torch.full_like(tokens, TOKEN)
        if not len(noisy):
            return Step(tokens, role, mixed), state
        ids = tokens[:, None].repeat(1, self.k)
        ids[places] = candidates(noisy.masked_fill(~self.ordinary, -torch.inf), self.k)
        weights = scores.gather(-1, ids).softmax(dim=-1)
        return Step(tokens, role, mixed, *one_hot_elsewhere(mixed, tokens, ids, weights)), state
