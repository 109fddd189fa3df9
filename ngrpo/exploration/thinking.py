"""Where a row's thinking part ends: the delimiter, found in its text as the text gains tokens."""

import torch
from torch import Tensor, nn

from ngrpo.rollout.records import Vocabulary
from ngrpo.rollout.texts import Text, transitions

State = dict[str, Tensor]  # per-row tensors, rows first; the engine gathers them when rows leave the batch


class TextMatch(nn.Module):
    """Whether each row has ended with one of some texts or stops, now or before; a state entry `read` (B,) int32.

    next: (states, V) int32, as rollout.texts.transitions makes it: one gather a decode step, and nothing is read back.
    """

    next: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        patterns: tuple[Text, ...],
        rows: int,
        device: torch.device | str = "cpu",
        stops: tuple[int, ...] = (),
    ):
        """patterns: bytes where the vocabulary has pieces, ids where it has none. rows: V, those of the table. stops: ids
        that end a text by themselves."""
        super().__init__()
        pieces = vocabulary.pieces.of if vocabulary.pieces else ()
        table = torch.from_numpy(transitions(pieces, patterns, rows, stops)).to(device)
        self.register_buffer("next", table, persistent=False)

    def start(self, rows: int, device: torch.device) -> State:
        return {"read": torch.zeros(rows, dtype=torch.int32, device=device)}

    def push(self, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """(B,) bool and the new state after the text gained `tokens` (B,). Without texts, nothing ever ends."""
        read = self.next[state["read"], tokens]
        return read == len(self.next) - 1, {**state, "read": read}


class Thinking(nn.Module):
    """Which rows still think: every row, until its text ends with `answer_start`; a state entry (B,) bool.

    ordinary: (V,) bool, ids that are neither reserved nor stops nor padding.
    """

    ordinary: Tensor

    def __init__(self, vocabulary: Vocabulary, rows: int, device: torch.device | str = "cpu"):
        super().__init__()
        self.answer = TextMatch(vocabulary, vocabulary.delimiters, rows, device)
        self.register_buffer("ordinary", vocabulary.ordinary(rows, device), persistent=False)

    def start(self, rows: int, device: torch.device) -> State:
        return {"thinking": torch.ones(rows, dtype=torch.bool, device=device), **self.answer.start(rows, device)}

    def push(self, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """(B,) bool, whether the delimiter has ended, with `tokens` (B,) or before, and the new state. The token in which
        it ends is no thought any more, whatever else stands in it."""
        ended, state = self.answer.push(state, tokens)
        return ended, {**state, "thinking": ~ended}
