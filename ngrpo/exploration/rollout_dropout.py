"""One dropout mask per rollout: each answer comes from its own thinned network, which training replays."""

import torch
from torch import Tensor

from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import Draws


class RolloutDropout(TokenSampling):
    """Token sampling with one mask per row and layer, whose entries are 0 with probability `dropout`, else 1 / (1 - dropout).

    A variant of this project for text, after the abstract of Dropout-GRPO (arXiv 2606.10184), which is for latent reasoning
    and whose code is not released; not a reproduction. That abstract has one mask per rollout, the same at every latent step
    and in the update. Here it multiplies the output of attention in every layer, at every token of the answer; the prompt,
    which rows share, is read without it. Masks depend on the rows' keys, so every replay, by a reference or a critic too,
    has those of the rollout. They act on whole answers, so no single step counts as explored.
    """

    acts_on = "attention"

    def __init__(self, dropout: float, temperature: float = 1.0, top_p: float = 1.0):
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: a share that leaves some entries needs 0 <= dropout < 1")
        super().__init__(temperature, top_p)
        self.dropout = dropout

    def masks(self, keys: Tensor, layers: int, width: int) -> Tensor | None:
        if not self.dropout:
            return None
        layer = torch.arange(layers, device=keys.device)  # instead of a decode step; nothing else draws these numbers
        kept = Draws(keys[:, None], layer[None]).uniforms(width) >= self.dropout
        return kept.float() / (1 - self.dropout)
