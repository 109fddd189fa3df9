"""One dropout mask per rollout: each answer comes from a thinned network of its own, which training replays."""

import torch
from torch import Tensor

from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import Draws


class RolloutDropout(TokenSampling):
    """Token sampling under a mask per row and layer, of entries that are 0 with probability `dropout`, else 1 / (1 - dropout).

    A variant of this project's own for text, after the abstract of Dropout-GRPO (arXiv 2606.10184), which is for latent
    reasoning and whose code is not released: no reproduction. That abstract has one mask per rollout, the same at every latent
    step and in the update. Here it multiplies the attention's output in every layer, at every token of the answer; rows
    share their prompt, which is read without. Masks come from the rows' keys, so a replay, that of a reference or a
    critic too, has those of the rollout. They act on whole answers, so no single step counts as explored.
    """

    acts_on = "attention"

    def __init__(self, dropout: float, temperature: float = 1.0, top_p: float = 1.0):
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: a share of entries that leaves some needs 0 <= dropout < 1")
        super().__init__(temperature, top_p)
        self.dropout = dropout

    def masks(self, keys: Tensor, layers: int, width: int) -> Tensor | None:
        if not self.dropout:
            return None
        layer = torch.arange(layers, device=keys.device)  # in the place of a decode step: nothing else draws these
        kept = Draws(keys[:, None], layer[None]).uniforms(width) >= self.dropout
        return kept.float() / (1 - self.dropout)
