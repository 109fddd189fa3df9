"""Texts as the bytes that tokens add to them, and where in a text one of some others ends, compiled per tokenizer.

A delimiter is seldom a sequence of ids of its own: most tokenizers merge `</think>` with what stands beside it. So it is
looked for in the bytes, by an automaton whose step over a whole token is one look into a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Text = tuple[int, ...]  # symbols: bytes, or ids where nothing is known of their bytes


@dataclass(frozen=True)
class Pieces:
    """What each id adds to a text; nothing where it is no part of what is graded (padding, stops).

    leading: what decoding leaves out where a text begins: the space of a first word.
    """

    of: tuple[bytes, ...]
    leading: bytes = b""

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids; those that the tokenizer does not have add nothing."""
        joined = b"".join(self.of[token] for token in ids if token < len(self.of))
        return joined.removeprefix(self.leading).decode("utf-8", "replace")


@lru_cache(maxsize=8)  # strategies are bound anew for every evaluation, to the same tokenizer
def transitions(
    pieces: tuple[bytes, ...], patterns: tuple[Text, ...], rows: int, stops: tuple[int, ...] = ()
) -> np.ndarray:
    """(states, rows) int32: the state after a token. State 0 is the empty text; the last state, which no token leaves, means
    that a pattern or a token of `stops` has ended the text. Rows without a piece add nothing. Without pieces, ids are symbols.
    """
    delta = table = automaton(patterns, 256 if pieces else rows)
    if pieces:
        pieces = pieces[:rows]
        lengths = np.array([len(piece) for piece in pieces])
        begins, symbols = lengths.cumsum() - lengths, np.frombuffer(b"".join(pieces), np.uint8)
        table = np.repeat(np.arange(len(delta), dtype=np.int32)[:, None], rows, axis=1)
        for place in range(lengths.max(initial=0)):
            longer = np.flatnonzero(lengths > place)
            table[:, longer] = delta[table[:, longer], symbols[begins[longer] + place]]
    table[:, [token for token in stops if 0 <= token < rows]] = len(table) - 1
    return table


def automaton(patterns: Sequence[Text], symbols: int) -> np.ndarray:
    """(states, symbols) int32, as `transitions`: a state is the longest beginning of a pattern that a text ends with."""
    beginnings = sorted({pattern[:length] for pattern in patterns for length in range(len(pattern))} | {()}, key=len)
    number = {beginning: state for state, beginning in enumerate(beginnings)}
    delta = np.zeros((len(beginnings) + 1, symbols), np.int32)
    delta[-1] = len(beginnings)
    for beginning in beginnings:
        for symbol in {symbol for pattern in patterns for symbol in pattern if 0 <= symbol < symbols}:
            text = (*beginning, symbol)
            ended = any(text[-len(pattern) :] == pattern for pattern in patterns)
            longest = next(number[text[cut:]] for cut in range(len(text) + 1) if text[cut:] in number)
            delta[number[beginning], symbol] = len(beginnings) if ended else longest
    return delta
