"""Where a row's thinking part ends: the delimiter, found in the tokens as the text gains them."""

import torch
from torch import Tensor, nn

from ngrpo.rollout.records import Vocabulary

State = dict[str, Tensor]  # per-row tensors, rows first; the engine gathers them when rows leave the batch


class SuffixMatch:
    """Whether each row's text has just ended with `suffix`; kept as a state entry `recent` of tokens (B, L)."""

    def __init__(self, suffix: tuple[int, ...]):
        self.suffix = suffix

    def start(self, rows: int, device: torch.device) -> State:
        return {"recent": torch.full((rows, max(len(self.suffix), 1)), -1, device=device)}

    def push(self, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """(B,) bool and the new state after the text gained `tokens` (B,). An empty suffix never matches."""
        recent = torch.cat((state["recent"][:, 1:], tokens[:, None]), dim=1)
        matched = torch.full_like(tokens, bool(self.suffix), dtype=torch.bool)
        for column, token in enumerate(self.suffix):  # one token at a time, so that nothing is copied to a device
            matched = matched & (recent[:, column] == token)
        return matched, {**state, "recent": recent}


class Thinking(nn.Module):
    """Which rows still think: every row, until its text ends with `answer_start`; a state entry (B,) bool.

    ordinary: (V,) bool, ids that are neither reserved nor stops nor padding.
    """

    ordinary: Tensor

    def __init__(self, vocabulary: Vocabulary, rows: int, device: torch.device | str = "cpu"):
        super().__init__()
        self.answer = SuffixMatch(vocabulary.answer_start)
        self.register_buffer("ordinary", vocabulary.ordinary(rows, device), persistent=False)

    def start(self, rows: int, device: torch.device) -> State:
        return {"thinking": torch.ones(rows, dtype=torch.bool, device=device), **self.answer.start(rows, device)}

    def push(self, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """(B,) bool, whether `tokens` (B,) end the delimiter, and the new state; such a token is no thought any more."""
        ended, state = self.answer.push(state, tokens)
        return ended, {**state, "thinking": state["thinking"] & ~ended}
