"""Where a row's thinking part ends: the delimiter is looked for in its text, token by token."""

import torch
from torch import Tensor, nn

from ngrpo.rollout.records import Vocabulary
from ngrpo.rollout.texts import Text, transitions

State = dict[str, Tensor]  # per-row tensors, rows first; the engine selects rows when others leave the batch


class TextMatch(nn.Module):
    """Whether each row has ended with one of some texts or stops, now or before; a state entry `read` (B,) int32.

    next: (states, V) int32, from rollout.texts.transitions: one gather per decode step, and nothing is read back.
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
        """(B,) bool, whether a pattern has ended, and the new state, after `tokens` (B,). Without patterns never."""
        read = self.next[state["read"], tokens]
        return read == len(self.next) - 1, {**state, "read": read}


class Thinking(TextMatch):
    """Which rows still think: those whose text does not contain `answer_start` yet.

    ordinary: (V,) bool, ids that are neither reserved nor stops nor padding.
    """

    ordinary: Tensor

    def __init__(self, vocabulary: Vocabulary, rows: int, device: torch.device | str = "cpu"):
        super().__init__(vocabulary, vocabulary.delimiters, rows, device)
        self.register_buffer("ordinary", vocabulary.ordinary(rows, device), persistent=False)

    def active(self, state: State) -> Tensor:
        """(B,) bool, rows that still think. The token in which the delimiter ends is not thinking, whatever else it
        contains."""
        return state["read"] != len(self.next) - 1
