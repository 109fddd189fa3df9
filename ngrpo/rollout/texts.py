"""Texts as the bytes that tokens add to them, and a table per tokenizer that finds where given texts end in them.

A delimiter is seldom a fixed sequence of ids: most tokenizers merge `</think>` with the characters beside it. So it is
searched for in the bytes, by an automaton that steps over a whole token with one table look-up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Text = tuple[int, ...]  # symbols: bytes, or ids where their bytes are unknown


@dataclass(frozen=True)
class Pieces:
    """The bytes that each id adds to a text; none where it is not graded (padding, stops).

    leading: what decoding drops at the beginning of a text: the space of the first word.
    """

    of: tuple[bytes, ...]
    leading: bytes = b""

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids; ids beyond the tokenizer's add nothing."""
        joined = b"".join(self.of[token] for token in ids if token < len(self.of))
        return joined.removeprefix(self.leading).decode("utf-8", "replace")


@lru_cache(maxsize=8)  # strategies are bound anew for every evaluation, to the same tokenizer
def transitions(
    pieces: tuple[bytes, ...], patterns: tuple[Text, ...], rows: int, stops: tuple[int, ...] = ()
) -> np.ndarray:
    """(states, rows) int32: the state after a token. State 0 is the empty text; the last state, which no token leaves, means
    that a pattern or a token of `stops` has ended the text. Rows without a piece add nothing. Without pieces, ids are symbols.
    """
    by_bytes = bool(pieces and patterns)
    delta = table = automaton(patterns, 256 if by_bytes else rows)
    if by_bytes:
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
    """(states, symbols) int32, as `transitions`: a state is the longest prefix of a pattern that the text ends with
    (Aho and Corasick, 1975)."""
    prefixes = sorted({pattern[:length] for pattern in patterns for length in range(len(pattern))} | {()}, key=len)
    number = {prefix: state for state, prefix in enumerate(prefixes)}
    delta = np.zeros((len(prefixes) + 1, symbols), np.int32)
    delta[-1] = len(prefixes)
    for prefix in prefixes:
        for symbol in {symbol for pattern in patterns for symbol in pattern if 0 <= symbol < symbols}:
            text = (*prefix, symbol)
            ended = any(text[-len(pattern) :] == pattern for pattern in patterns)
            longest = next(number[text[cut:]] for cut in range(len(text) + 1) if text[cut:] in number)
            delta[number[prefix], symbol] = len(prefixes) if ended else longest
    return delta
