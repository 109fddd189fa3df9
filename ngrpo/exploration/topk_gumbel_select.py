"""Mixtures of tokens selected by Gumbel noise: what N-GRPO's code calls "Gumbel Soft-Thinking" (`topk-gumbel`)."""

import torch
from torch import Tensor

from ngrpo.exploration.base import State, chosen_places, one_hot_elsewhere
from ngrpo.exploration.gate import Gate
from ngrpo.exploration.scores import candidates, draw_token, gumbel
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import TOKEN, DecodeStep


class TopkGumbelSelect(TokenSampling):
    """While a row thinks and the gate is open: candidates = the k ordinary tokens of largest z / temperature + Gumbel
    noise, weights = softmax of their z / temperature without noise, fed = sum of weight * E[c].

    text_token  "anchor": the text token is that of the largest noisy score, which is an exact sample of softmax(z /
                temperature), so its log-probability is exact; "sampled" (released): it is drawn by the inverse CDF, so
                text and mixture are independent
    Where either token is reserved, a stop or ends the thinking part, the step is a plain one. Source: ZJUSCL/N-GRPO at
    d9c94fe, without its second softmax.
    """

    def __init__(self, gate: Gate, k: int, text_token: str = "anchor", temperature: float = 1.0, top_p: float = 1.0):
        super().__init__(temperature, top_p)
        self.gate, self.k, self.text_token = gate, k, text_token

    def start(self, rows: int, device: torch.device) -> State:
        return self.thinking.start(rows, device)

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        scores, ordinary = self.scores(logits), self.thinking.ordinary
        tokens = draw_token(scores, draws.token)
        chosen = self.thinking.active(state) & self.gate.open(logits, draws, self.temperature)
        places = chosen_places(chosen)
        noisy = scores[places] + gumbel(draws[places].uniforms(scores.shape[-1])).to(scores.dtype)
        anchors = tokens.clone()
        anchors[places] = noisy.argmax(dim=-1)
        if self.text_token == "anchor":
            tokens = torch.where(chosen, anchors, tokens)
        ended, state = self.thinking.push(state, tokens)
        mixed = chosen & ordinary[anchors] & ~ended & ordinary[tokens]
        role = torch.full_like(tokens, TOKEN)
        if not len(noisy):
            return DecodeStep(tokens, role, mixed), state
        ids = tokens[:, None].repeat(1, self.k)
        ids[places] = candidates(noisy.masked_fill(~ordinary, -torch.inf), self.k)
        weights = scores.gather(-1, ids).softmax(dim=-1)
        return DecodeStep(tokens, role, mixed, *one_hot_elsewhere(mixed, tokens, ids, weights)), state
